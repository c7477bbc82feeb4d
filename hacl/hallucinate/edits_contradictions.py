"""Edits that contradict what other captions of the image say, and edits of places told by a pronoun."""

from __future__ import annotations

import random
from collections.abc import Iterator

from hacl.hallucinate.context import Candidate, ImageContext
from hacl.hallucinate.edits_words import applies, make
from hacl.hallucinate.english import (
    DETERMINERS,
    FUNCTION_WORDS,
    Replacement,
    is_finite_singular,
    is_plural,
    noun_run,
    plural,
)
from hacl.hallucinate.noun_phrases import ends_at
from hacl.hallucinate.phrase_bank import preposition_at

# preposition before "it" or "them" -> what it may become
_WHERE = {
    "in": ("next to", "behind", "under", "near"), "inside": ("next to", "behind", "under"),
    "on": ("under", "next to", "behind", "near"), "on top of": ("under", "next to", "behind"),
    "next to": ("on top of", "under", "behind"), "beside": ("on top of", "under", "behind"),
    "behind": ("in front of", "next to", "on top of"), "in front of": ("behind", "next to", "under"),
    "under": ("on", "next to", "behind"), "above": ("under", "next to"), "around": ("under", "behind"),
    "near": ("under", "on top of"),
}  # fmt: skip
_HAVING = frozenset("with has have having including containing features featuring contains wearing".split())
_QUANTITIES = frozenset("various several many other assorted different identical more lots much".split())
_CHILDREN = frozenset(
    "child children kid kids boy boys girl girls baby babies toddler toddlers young teen teens teenagers student "
    "students "
    "son sons daughter daughters family families little".split()
)
_ADULTS = frozenset("people man woman men women lady guy adults adult person".split())
_GROWN = {
    "people": "children", "person": "child", "adults": "children", "adult": "child", "man": "child", "woman": "child",
    "men": "children", "women": "children", "lady": "child", "guy": "child",
}  # fmt: skip


def contradiction_edits(context: ImageContext, draw: random.Random) -> Iterator[Candidate]:
    """A value other than the one another caption names, children for people, another place of "it"."""
    yield from _values(context)
    yield from _children(context)
    yield from _numbers(context)
    yield from _pronouns(context)
    if context.bank is not None:
        yield from _denials(context)


def _values(context: ImageContext) -> Iterator[Candidate]:
    """ "a plate" -> "a red plate", where another caption has "white plate" and none has a red one."""
    words, lexicon = context.words, context.lexicon
    for at, word in enumerate(words):
        if (
            word.text in FUNCTION_WORDS | lexicon.adjectives
            or at
            and words[at - 1].text not in FUNCTION_WORDS | lexicon.numbers.keys()
        ):
            continue
        if not (said := _described(context, word.text)):
            continue
        if not ends_at(context, at + 1) and words[at + 1].text not in FUNCTION_WORDS | lexicon.followers:
            continue
        for values in lexicon.attributes:
            for old in said.intersection(values.words):
                if not applies(context, values, word.text):
                    continue
                for new in values.words if values.opposites is None else values.opposites[old]:
                    if new in _QUANTITIES:
                        continue
                    alike = any(old in group and new in group for group in values.alike)
                    if new not in said and not alike:
                        noun = context.text[word.start : word.end]
                        edit = Replacement(word.start, word.end, f"{new} {noun[0].lower() + noun[1:]}")
                        yield make(context, "attribute", [edit], new, claims=frozenset({new}))


def _described(context: ImageContext, noun: str) -> set[str]:
    """The words that stand before a noun in any caption of the image; what several are, one of them is."""
    forms = {noun} if is_plural(noun) else {noun, plural(noun)}
    return set().union(*(context.described.get(form, ()) for form in forms))


def _children(context: ImageContext) -> Iterator[Candidate]:
    """ "people" -> "children", where at least two other captions tell of people and none of children."""
    if len(context.record.captions) < 3 or context.said & _CHILDREN:
        return
    for word in context.words:
        if (new := _GROWN.get(word.text)) and sum(_ADULTS & said != set() for said in context.others_said) > 2:
            yield make(context, "attribute", [Replacement(word.start, word.end, new)], new, claims=frozenset({new}))


def _numbers(context: ImageContext) -> Iterator[Candidate]:
    """ "some dogs" -> "four dogs", where another caption has "two dogs" and the annotation no more than that."""
    words, numbers = context.words, context.lexicon.numbers
    for at, word in enumerate(words):
        known = [numbers[old] for old in context.described.get(word.text, ()) if old in numbers]
        before = words[at - 1].text if at else ""
        if not known or not is_plural(word.text) or before and before not in ("some", "several", *FUNCTION_WORDS):
            continue
        if before in DETERMINERS - {"some"} or not ends_at(context, at + 1) and words[at + 1].text in ("and", "of"):
            continue
        mention = next((m for m in context.mentions if m.stop == at + 1), None)
        count = None if mention is None else context.count(mention.kind.name)
        for new, value in numbers.items():
            if max(known) < value <= max(known) + 3 and value > (count or 0):
                old = words[at - 1] if before in ("some", "several") else None
                start, end = (old.start, old.end) if old else (word.start, word.end)
                noun = context.text[word.start : word.end]
                edit = Replacement(start, end, new if old else f"{new} {noun[0].lower() + noun[1:]}")
                yield make(context, "number", [edit], new, claims=frozenset({new, "several", "many"}), weight=1 / value)


def _pronouns(context: ImageContext) -> Iterator[Candidate]:
    """ "with a lamp on it" -> "with a lamp under it"."""
    words = context.words
    for at in range(2, len(words) - 1):
        length = preposition_at(context, at)
        stop = at + length
        if not length or stop >= len(words) or words[stop].text not in ("it", "them") or not ends_at(context, stop + 1):
            continue
        old = " ".join(word.text for word in words[at:stop])
        for new in _WHERE.get(old, ()):
            claims = frozenset(set(new.split()) - set(old.split()) - {"to", "on", "of", "in", "front"})
            edit = Replacement(words[at].start, words[stop - 1].end, new)
            yield make(context, "relation", [edit], new, claims=claims, weight=0.5)


def _denials(context: ImageContext) -> Iterator[Candidate]:
    """ "with a stove and a sink" -> "with a stove but no sink": the last of several things that something has."""
    words, lexicon = context.words, context.lexicon
    at = max((i for i, word in enumerate(words) if word.text == "and"), default=0)
    governor = next((i for i in range(at - 1, -1, -1) if words[i].text in _HAVING), None)
    if governor is None or at + 1 == len(words) or at < 2:
        return
    listed = words[governor + 1 : at]
    if any(is_finite_singular(w.text) or w.text.endswith("ing") or w.text in ("that", "who", "of") for w in listed):
        return
    known = words[at - 1].text in context.bank.nouns or lexicon.groups_of(words[at - 1].text)
    if not listed or not known or words[at - 1].text in lexicon.adjectives:
        return
    noun = at + 2 if words[at + 1].text in ("a", "an", "some") else at + 1
    first, stop = noun_run(context.text, words, noun)
    if first == stop or words[stop - 1].text.endswith(("ing", "ed")) or words[first].text in lexicon.adjectives:
        return
    if not ends_at(context, stop) and not (words[stop].text in ("in", "on") and ends_at(context, stop + 2)):
        return
    if words[stop - 1].text in lexicon.adjectives or words[stop - 1].text not in context.bank.nouns:
        return
    if words[first].text in _QUANTITIES or words[first].text in lexicon.numbers:
        return
    edit = Replacement(words[at].start, words[noun - 1].end, "but no")
    yield make(context, "relation", [edit], "but no", weight=0.3)
