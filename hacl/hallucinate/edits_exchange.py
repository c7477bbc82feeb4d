"""Exchange a noun, a preposition or a verb for another of its group, where a collection's captions use it like that."""

from __future__ import annotations

import random
from collections.abc import Iterator

from hacl.hallucinate.context import Candidate, ImageContext
from hacl.hallucinate.edits_words import head_noun, make
from hacl.hallucinate.english import DETERMINERS, FUNCTION_WORDS, Replacement, is_finite_singular, plural, singular
from hacl.hallucinate.noun_phrases import ends_at
from hacl.hallucinate.phrase_bank import preposition_at
from hacl.hallucinate.plausibility import can_relate, keeps_medium

# Verbs and prepositions that are true whenever another is.
_IMPLIED = {
    "sitting": "seated sits sit sat seat resting relaxing",
    "standing": "stands stand stood",
    "lying": "laying lays lies lay laid resting asleep sleeping",
    "laying": "lying lays lies lay laid resting asleep sleeping",
    "resting": "lying laying sitting sleeping asleep relaxing lays lies sits",
    "sleeping": "asleep nap napping resting lying laying lays lies",
    "walking": "walks walk strolling crossing running",
    "running": "runs run race racing ran",
    "eating": "eats eat ate bite biting dinner lunch breakfast meal food grazing chewing feeding",
    "grazing": "eating eats grass graze feeding",
    "playing": "plays play game player match",
    "holding": "holds held hand hands carrying carries with",
    "carrying": "carries carried holding holds with",
    "riding": "rides ride rode rider",
    "wearing": "wears dressed worn in with",
    "flying": "flies fly flight air",
    "throwing": "throws thrown pitch pitching pitcher tossing",
    "catching": "catches caught catch catcher",
    "hitting": "hits hit swing swinging swings serve",
    "swinging": "swings swing hitting hits hit",
    "using": "uses use with on holding playing typing talking",
    "looking": "looks look watching watches staring stares",
    "staring": "looks look looking watching watches stares",
    "watching": "watches looking looks",
    "posing": "poses photo picture pose",
    "waiting": "waits wait",
    "parked": "parking stopped sits sitting",
    "driving": "drives drive moving traveling",
    "moving": "driving traveling drives moves going",
    "traveling": "driving moving drives travels going",
    "stopped": "stops stop parked waiting",
    "preparing": "making cooking prepares makes cutting",
    "making": "preparing cooking prepares makes cutting",
    "leaning": "leans",
    "drinking": "drinks drink",
    "jumping": "jumps jump air trick",
    "hanging": "hangs hung",
}
_ANYWHERE = frozenset(("without", "next to", "behind", "in front of", "beside"))
_ABSTRACT = frozenset(
    "day night time game match air sky distance way picture photo photograph view background direction motion position "
    "color colors style use middle center hand hands head mouth face lap back hair eye eyes order set variety other "
    "work dusk dawn noon home bat base once speed rest jump trick camera sunlight rain weather morning evening "
    "afternoon".split()
)
# Of these two lists, one of each may be true at once.
_POSTURES = frozenset(
    "sitting standing lying laying kneeling sits stands lies lays kneels sit stand lie lay kneel".split()
)
_SOFT = frozenset(
    "posing waiting resting working playing eating grazing drinking leaning hanging sleeping poses waits rests works "
    "plays "
    "eats grazes drinks leans hangs sleeps pose wait rest work play eat graze drink lean hang sleep".split()
) - {"sleeping", "sleeps", "sleep"}
# What keeps anybody from nearly everything else, and the words it goes before.
_INSTEAD = {
    "sleeping": frozenset("in on near by under next beside behind at outside inside".split()),
    "dancing": frozenset("in on at with near by next beside outside inside around".split()),
    "running": frozenset("in on at along across through down up around near past toward towards".split()),
    "swimming": frozenset("in near across".split()),
}
_ING_NOUNS = frozenset("lots sides".split())
_LOOSE = frozenset("on of at in".split())
_FLYING = frozenset({"bird", "kite"})
_BOUND = frozenset(
    "filled covered topped accompanied followed decorated surrounded made full loaded dressed served paired stuffed "
    "lined "
    "crowded piled equipped cluttered adorned".split()
)
_NOT_HEADS = frozenset(
    "what it's its preparation top front middle side back edge end left right background foreground distance".split()
)


def exchange_edits(context: ImageContext, draw: random.Random) -> Iterator[Candidate]:
    """Nouns of one group, verbs of one frame, prepositions, where the collection uses the new one like that."""
    if context.bank is None:
        return
    yield from _nouns(context)
    yield from _modifiers(context)
    yield from _prepositions(context)
    yield from _verbs(context)


def _nouns(context: ImageContext) -> Iterator[Candidate]:
    words, lexicon = context.words, context.lexicon
    for at in range(len(words)):
        for length in (2, 1):
            if at + length > len(words) or not (entries := lexicon.groups_of(_joined(context, at, length))):
                continue
            following = "" if ends_at(context, at + length) else words[at + length].text
            if following and not (
                following in FUNCTION_WORDS or following in lexicon.followers or is_finite_singular(following)
            ):
                break
            before = _governor(context, at)
            for kind, group, many in entries:
                old = _joined(context, at, length)
                if at and words[at - 1].text in ("other", "another"):
                    continue
                for word in group:
                    new = plural(word) if many else word
                    if (
                        new == old
                        or not _allowed(context, before, old, word)
                        or not _attested(context, before, word if not many else new, at)
                    ):
                        continue
                    edit = Replacement(words[at].start, words[at + length - 1].end, new)
                    claims = frozenset((new, *new.split()[-1:]))
                    yield make(context, kind, [edit], new, adds=lexicon.names_of(word), claims=claims)
            break


def _modifiers(context: ImageContext) -> Iterator[Candidate]:
    """ "tennis court" -> "basketball court": what kind of thing the noun after it is."""
    words = context.words
    for at in range(len(words) - 1):
        after = words[at + 1].text
        if ends_at(context, at + 1) or after in FUNCTION_WORDS or is_finite_singular(after) or after.endswith("ing"):
            continue
        for group, nouns in context.lexicon.modifiers:
            if words[at].text not in group:
                continue
            for new in group:
                fits = after in nouns or singular(after) in nouns or (new, after) in context.bank.bigrams
                if new != words[at].text and fits:
                    edit = Replacement(words[at].start, words[at].end, new)
                    adds = context.lexicon.names_of(new) & context.lexicon.objects.keys()
                    yield make(context, "attribute", [edit], new, adds=adds, claims=frozenset({new}))


def _allowed(context: ImageContext, governor: str, old: str, new: str) -> bool:
    """Whether what may follow the governor, and what the thing moves on, lets the new noun in."""
    lexicon = context.lexicon
    names = lexicon.names_of(new) & lexicon.objects.keys()
    allowed = lexicon.selects.get(governor)
    if names and allowed is not None and governor not in _LOOSE and not names & allowed:
        return False
    kinds = [lexicon.objects[name].group for name in names]
    was = {lexicon.objects[name].group for name in lexicon.names_of(singular(old)) & lexicon.objects.keys()}
    fits = (keeps_medium(context, group, kind) for group in was for kind in kinds)
    return all(fits) or bool(names & _FLYING and was == {"aircraft"})


def _joined(context: ImageContext, at: int, length: int) -> str:
    return " ".join(word.text for word in context.words[at : at + length])


def _governor(context: ImageContext, at: int) -> str:
    """The preposition or verb whose noun phrase has its noun at word `at`, "" where there is none."""
    words, lexicon = context.words, context.lexicon
    first = at
    while first > 0 and (words[first - 1].text in lexicon.adjectives or words[first - 1].text in lexicon.numbers):
        first -= 1
    if first > 0 and words[first - 1].text in DETERMINERS:
        first -= 1
    for start in range(max(0, first - 4), first):
        if start + preposition_at(context, start) == first:
            return _joined(context, start, first - start)
    return words[first - 1].text if first else ""


def _attested(context: ImageContext, governor: str, noun: str, at: int) -> bool:
    """Whether captions of the collection have the noun, or two of its class, after that preposition or verb."""
    if used_after(context, governor, noun):
        return True
    before = context.words[at - 1].text if at else ""
    return governor == "" and (before, noun.split()[0]) in context.bank.bigrams


def used_after(context: ImageContext, governor: str, noun: str) -> bool:
    """Whether the collection has the noun itself, or two nouns of its class, after a preposition or verb."""
    pairs = context.bank.pairs
    governor = context.lexicon.doing(governor)
    return (governor, noun) in pairs or any(
        pairs.get((governor, name), 0) > 1 for name in context.lexicon.classes_of(noun)
    )


def _prepositions(context: ImageContext) -> Iterator[Candidate]:
    words, at = context.words, 1
    while at < len(words):
        length = preposition_at(context, at)
        if not length:
            at += 1
            continue
        old = _joined(context, at, length)
        stop = at + length
        head = "" if ends_at(context, stop - 1) or stop == len(words) else head_noun(context, stop)
        follows = "" if stop == len(words) else words[stop].text
        bound = words[at - 1].text in _BOUND
        if (
            head
            and not bound
            and head not in _NOT_HEADS
            and follows not in ("front", "top", "the middle")
            and head != "background"
        ):
            for new in context.lexicon.prepositions.get(old, ()):
                loose = (
                    new in _ANYWHERE
                    and head not in _ABSTRACT
                    and (bool(context.lexicon.classes_of(head)) or head in context.bank.landmarks)
                )
                if not can_relate(old, new, head) or not loose and (new, head) not in context.bank.pairs:
                    continue
                kept = set(old.split())
                claims = frozenset(
                    w for w in new.split() if w not in kept and w not in ("of", "to", "in", "on", "with")
                )
                edit = Replacement(words[at].start, words[stop - 1].end, new)
                yield make(context, "relation", [edit], new, claims=claims, weight=0.5)
        at = stop


def _verbs(context: ImageContext) -> Iterator[Candidate]:
    words, bank = context.words, context.bank
    for at in range(1, len(words)):
        old = words[at].text
        if words[at - 1].text in DETERMINERS - {"that"} or ends_at(context, at):
            continue
        head = head_noun(context, at + 1) if at + 1 < len(words) else ""
        transitive = bool(head) and words[at + 1].text not in FUNCTION_WORDS - DETERMINERS
        before = [mention for mention in context.mentions if mention.stop <= at]
        flies = {word.text for word in words[at + 1 : at + 6]}
        if not any(old in group for group in context.lexicon.verb_groups):
            yield from _anything_else(context, at)
        for group in context.lexicon.verb_groups:
            if old not in group:
                continue
            for new in group:
                if new == old or {old, new} & _SOFT and {old, new} & _POSTURES:
                    continue
                if transitive and not (used_after(context, new, head) and _allowed(context, new, head, head)):
                    continue
                if not flies.isdisjoint(("sky", "air")) and new not in ("flying", "flies"):
                    continue
                if not transitive and not (_joins(context, at, new)):
                    continue
                if before and not transitive and (before[-1].kind.group, context.lexicon.doing(new)) not in bank.doers:
                    continue
                claims = implied(context, new)
                edit = Replacement(words[at].start, words[at].end, new)
                yield make(context, "action", [edit], new, claims=claims)


def _anything_else(context: ImageContext, at: int) -> Iterator[Candidate]:
    """Of a person or animal that does what no list has: something that leaves no room for that."""
    words = context.words
    old = words[at].text
    third = old not in _ING_NOUNS and is_finite_singular(old) and old not in ("is", "was", "has", "does", "'s")
    if not third and not (old.endswith("ing") and len(old) > 5) or at + 1 == len(words):
        return
    before = words[at - 1].text
    stop = at - 1 if before in ("is", "are") else at
    subject = next((m for m in context.mentions if m.stop == stop and m.kind.group in ("person", "animal")), None)
    follows = words[at + 1].text
    if subject is None or ends_at(context, at + 1) or subject.kind.name == "bird":
        return
    for new, next_words in _INSTEAD.items():
        if follows in next_words and (subject.kind.group == "person" or new in ("sleeping", "running")):
            written = context.lexicon.third_persons.get(new, new) if third else new
            edit = Replacement(words[at].start, words[at].end, written)
            yield make(context, "action", [edit], written, claims=implied(context, written))


def implied(context: ImageContext, verb: str) -> frozenset[str]:
    """Words of which any, said of the image, may make the verb true."""
    base = next((ing for ing, third in context.lexicon.third_persons.items() if third == verb), verb)
    forms = {verb, base, context.lexicon.third_persons.get(base, base)}
    return frozenset(forms | set(_IMPLIED.get(base, "").split())) - {"in", "on", "with"}


def _joins(context: ImageContext, at: int, new: str) -> bool:
    """Whether the collection has the new verb before the word that follows."""
    words = context.words
    if at + 1 == len(words) or ends_at(context, at + 1):
        return True
    doing = context.lexicon.doing(new)
    forms = (new, doing, context.lexicon.third_persons.get(doing, doing))
    return any((form, words[at + 1].text) in context.bank.bigrams for form in forms)
