"""Exchange a noun, a preposition or a verb for another of its group, where a collection's captions use it like that."""

from __future__ import annotations

import random
from collections.abc import Iterator

from hacl.hallucinate.context import Candidate, ImageContext
from hacl.hallucinate.edits_words import head_noun, make
from hacl.hallucinate.english import DETERMINERS, FUNCTION_WORDS, Replacement, is_finite_singular, plural, singular
from hacl.hallucinate.noun_phrases import ends_at
from hacl.hallucinate.phrase_bank import preposition_at

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
    "work rest jump trick camera sunlight rain weather morning evening afternoon".split()
)
_NOT_HEADS = frozenset("top front middle side back edge end left right background foreground distance".split())


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
                for word in group:
                    new = plural(word) if many else word
                    if new == old or not _attested(context, before, word if not many else new, at):
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
        if head and head not in _NOT_HEADS and follows not in ("front", "top", "the middle") and head != "background":
            for new in context.lexicon.prepositions.get(old, ()):
                loose = new in _ANYWHERE and head not in _ABSTRACT and head.split()[-1] in context.bank.nouns
                if not loose and not used_after(context, new, head):
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
        for group in context.lexicon.verb_groups:
            if old not in group:
                continue
            for new in group:
                if new == old:
                    continue
                if transitive and not used_after(context, new, head):
                    continue
                if not transitive and not (_joins(context, at, new)):
                    continue
                if before and not transitive and (before[-1].kind.group, new) not in bank.doers:
                    continue
                claims = implied(context, new)
                edit = Replacement(words[at].start, words[at].end, new)
                yield make(context, "action", [edit], new, claims=claims)


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
    return (new, words[at + 1].text) in context.bank.bigrams
