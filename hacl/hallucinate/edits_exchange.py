"""Exchange a noun or a preposition for another of its group, where a collection's captions use it like that."""

from __future__ import annotations

import random
from collections.abc import Iterator

from hacl.hallucinate.context import Candidate, ImageContext
from hacl.hallucinate.edits_words import head_noun, make
from hacl.hallucinate.english import DETERMINERS, FUNCTION_WORDS, Replacement, is_finite_singular, plural, singular
from hacl.hallucinate.noun_phrases import ends_at
from hacl.hallucinate.phrase_bank import preposition_at
from hacl.hallucinate.plausibility import can_relate, is_place, is_plural_here, keeps_medium
from hacl.hallucinate.tagger import NOUNS

_ANYWHERE = frozenset(("without", "next to", "behind", "in front of", "near"))
_ABSTRACT = frozenset(
    "day night time game match air sky distance way picture photo photograph view background direction motion position "
    "color colors style use middle center hand hands head mouth face lap back hair eye eyes order set variety other "
    "row circle group line pile variety number party trip angle meeting ceremony reception event competition race "
    "show parade march state case season world hurry shade corner half piece sun shape form manner distance pose "
    "uniform inside outside work dusk dawn noon home bat base once speed rest jump trick camera sunlight rain "
    "weather morning evening "
    "afternoon".split()
)
# After these any thing may stand.
_FREE = frozenset(("near", "next to", "beside", "behind", "in front of", "with", "and", "by", "including", "close to"))
_PICTURES = frozenset("photo picture image photograph painting drawing cartoon".split())
_LOOSE = frozenset("of at in".split())
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
    """Nouns of one group and prepositions, where the collection uses the new one like that."""
    if context.bank is None:
        return
    yield from _nouns(context)
    yield from _modifiers(context)
    yield from _prepositions(context)


def _nouns(context: ImageContext) -> Iterator[Candidate]:
    words, lexicon = context.words, context.lexicon
    for at in range(len(words)):
        for length in (2, 1):
            if at + length > len(words) or not (entries := lexicon.groups_of(_joined(context, at, length))):
                continue
            following = "" if ends_at(context, at + length) else words[at + length].text
            if context.is_tagged(at + length - 1, NOUNS) is False:
                break
            compound = bool(following) and context.is_tagged(at + length, NOUNS)
            if (
                compound
                or compound is None
                and following
                and not (following in FUNCTION_WORDS or following in lexicon.followers or is_finite_singular(following))
            ):
                break
            before = _governor(context, at)
            several = is_plural_here(context, at)
            for kind, group, many in entries:
                many = many or several
                old = _joined(context, at, length)
                if at and words[at - 1].text in ("other", "another"):
                    continue
                for word in group:
                    new = plural(word) if many else word
                    if (
                        new == old
                        or not allowed(context, before, old, word)
                        or not _attested(context, before, word if not many else new, at, at + length)
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


def allowed(context: ImageContext, governor: str, old: str, new: str) -> bool:
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


def _attested(context: ImageContext, governor: str, noun: str, at: int, stop: int) -> bool:
    """Whether captions of the collection have the noun, or two of its class, after that preposition or verb."""
    following = "" if ends_at(context, stop) else context.words[stop].text
    if following == "of" and (noun.split()[-1], "of") not in context.bank.bigrams:
        return False
    if noun in _PICTURES and following != "of":
        return False
    if is_place(noun):
        return (context.lexicon.doing(governor), noun) in context.bank.pairs
    if used_after(context, governor, noun) or governor in _FREE and noun.split()[-1] in context.bank.nouns:
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
        bound = words[at - 1].text in _BOUND or words[at - 2].text in _BOUND
        if (
            head
            and not bound
            and head not in _NOT_HEADS
            and follows not in ("front", "top", "the middle")
            and head != "background"
        ):
            concrete = head not in _ABSTRACT and (
                follows in ("a", "an", "the", "their", "his", "her", "its")
                or bool(context.lexicon.classes_of(head))
                or head in context.bank.landmarks
            )
            for new in context.lexicon.prepositions.get(old, ()):
                loose = new in _ANYWHERE and (concrete or old == "with" and head not in _ABSTRACT)
                if not can_relate(old, new, head) or not loose and (new, head) not in context.bank.pairs:
                    continue
                kept = set(old.split())
                claims = frozenset(
                    w for w in new.split() if w not in kept and w not in ("of", "to", "in", "on", "with")
                )
                edit = Replacement(words[at].start, words[stop - 1].end, new)
                yield make(context, "relation", [edit], new, claims=claims, weight=0.5)
        at = stop
