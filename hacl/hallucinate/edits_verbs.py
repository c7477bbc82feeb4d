"""Exchange a verb for another of its frame, where a collection's captions use it like that."""

from __future__ import annotations

import random
from collections.abc import Iterator

from hacl.hallucinate.context import Candidate, ImageContext
from hacl.hallucinate.edits_exchange import allowed, used_after
from hacl.hallucinate.edits_words import head_noun, make
from hacl.hallucinate.english import DETERMINERS, FUNCTION_WORDS, Replacement, is_finite_singular, is_plural
from hacl.hallucinate.noun_phrases import ends_at
from hacl.hallucinate.tagger import VERBS

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
# Of these two lists, one of each may be true at once.
_POSTURES = frozenset(
    "sitting standing lying laying kneeling sits stands lies lays kneels sit stand lie lay kneel".split()
)
_SOFT = frozenset(
    "posing waiting resting working playing eating grazing drinking leaning hanging sleeping poses waits rests works "
    "plays eats grazes drinks leans hangs sleeps pose wait rest work play eat graze drink lean hang sleep".split()
) - {"sleeping", "sleeps", "sleep"}
# What keeps anybody from nearly everything else, and the words it goes before.
_INSTEAD = {
    "sleeping": frozenset("in on near by under next beside behind at outside inside".split()),
    "dancing": frozenset("in on at with near by next beside outside inside around".split()),
    "running": frozenset("in on at along across through down up around near past toward towards".split()),
    "swimming": frozenset("in near across".split()),
}
_ALONG = frozenset("down up along across through past into".split())
_ING_NOUNS = frozenset("lots sides".split())


def verb_edits(context: ImageContext, draw: random.Random) -> Iterator[Candidate]:
    """Verbs of one frame; what no list has becomes something that leaves no room for it."""
    if context.bank is not None:
        yield from _verbs(context)


def _verbs(context: ImageContext) -> Iterator[Candidate]:
    words, bank = context.words, context.bank
    for at in range(1, len(words)):
        old = words[at].text
        if context.is_tagged(at, VERBS) is False:
            continue
        if words[at - 1].text in DETERMINERS - {"that"} or ends_at(context, at):
            continue
        head = head_noun(context, at + 1) if at + 1 < len(words) else ""
        transitive = bool(head) and words[at + 1].text not in FUNCTION_WORDS - DETERMINERS
        before = [mention for mention in context.mentions if mention.stop <= at]
        follows = "" if at + 1 == len(words) else words[at + 1].text
        if old in context.lexicon.plural_verbs and not is_plural(words[at - 1].text):
            if "and" not in {word.text for word in words[max(0, at - 3) : at]} or at < 3:
                continue
        flies = {word.text for word in words[at + 1 : at + 6]}
        if old not in context.lexicon.known_verbs:
            yield from _anything_else(context, at)
        for group in context.lexicon.verb_groups:
            if old not in group:
                continue
            for new in group:
                if new == old or {old, new} & _SOFT and {old, new} & _POSTURES:
                    continue
                if not transitive and group in context.lexicon.transitive_verbs:
                    continue
                if new in ("flying", "flies", "fly") or new in _POSTURES and follows in _ALONG:
                    continue
                if transitive and not (used_after(context, new, head) and allowed(context, new, head, head)):
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
