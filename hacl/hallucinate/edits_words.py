"""Edits of attributes and of phrases (relations, actions): which words of a caption may become which others."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache

from hacl.hallucinate.context import Candidate, ImageContext
from hacl.hallucinate.english import DETERMINERS, FUNCTION_WORDS, Replacement, apart, apply, noun_run
from hacl.hallucinate.lexicon import AttributeSet, PhraseRule

_COPULAS = frozenset(("is", "are", "looks", "was", "were"))
_DEGREES = frozenset(
    "small tiny big large clean dirty tidy neat dry wet old young new modern long short tall bright dark empty busy "
    "quiet cold hot plain wide narrow thin thick simple crowded".split()
)
_LIGHT_WORDS = frozenset("a an the of to in at on from away far up down out his her their with for by".split())


def make(context: ImageContext, kind: str, replacements: list[Replacement], phrase: str, **fields) -> Candidate:
    """A candidate of the edited caption."""
    text, span = apply(context.text, replacements)
    slot = (min(r.start for r in replacements), max(r.end for r in replacements))
    return Candidate(kind, text, span, slot, phrase, **fields)


def head_noun(context: ImageContext, at: int) -> str:
    """Head of the noun phrase that starts at word `at`, known compounds whole; "" where there is none."""
    words = context.words
    while at < len(words) and (words[at].text in DETERMINERS or words[at].text in context.lexicon.numbers):
        at += 1
    first, stop = noun_run(context.text, words, at)
    if first == stop:
        return ""
    for mention in context.mentions:
        if mention.stop == stop and mention.first >= first:
            return " ".join(word.text for word in words[mention.first : mention.stop])
    return words[stop - 1].text


# Attributes


def attribute_edits(context: ImageContext, draw: random.Random) -> Iterator[Candidate]:
    """Another value of an attribute, for the nouns it suits."""
    words = context.words
    for at, word in enumerate(words):
        if context.bank is not None:
            yield from _predicate(context, at)
            yield from _listed_colour(context, at)
            yield from _very(context, at)
        if not _is_plain_adjective(context, at):
            continue
        head = head_noun(context, at + 1)
        for values in context.lexicon.attributes:
            if head and word.text in values.words and applies(context, values, head):
                yield from _attribute(context, values, at)
                break
        else:
            if head and context.bank is not None:
                yield from _attested_values(context, at)


def _predicate(context: ImageContext, at: int) -> Iterator[Candidate]:
    """ "a door is open" -> "a door is closed": a value said of the noun before "is", not of one after it."""
    words = context.words
    if at < 2 or words[at - 1].text not in _COPULAS or words[at - 2].text in FUNCTION_WORDS:
        return
    if at + 1 < len(words) and not apart(context.text, words[at], words[at + 1]):
        if words[at + 1].text not in FUNCTION_WORDS - DETERMINERS - {"of", "to", "for", "up", "down", "out", "as"}:
            return
    for values in context.lexicon.attributes:
        if words[at].text in values.words and applies(context, values, words[at - 2].text):
            yield from _attribute(context, values, at)
            return


def _listed_colour(context: ImageContext, at: int) -> Iterator[Candidate]:
    """One of two colours of a thing: "red and white kite" -> "red and green kite"; "black and white" stays whole."""
    words = context.words
    if words[at].text not in context.lexicon.adjectives:
        return
    for other, noun in ((at + 2, at + 3), (at - 2, at + 1)):
        if other < 0 or noun >= len(words) or words[(at + other) // 2].text != "and":
            continue
        pair = {words[at].text, words[other].text}
        head = head_noun(context, noun)
        if not head or pair == {"black", "white"} or words[noun].text in FUNCTION_WORDS or len(pair) < 2:
            continue
        for values in context.lexicon.attributes:
            if values.name != "colour" or not pair <= set(values.words) or not applies(context, values, head):
                continue
            near = pair.union(*(group for group in values.alike if group & pair))
            yield from (made for made in _attribute(context, values, at) if made.phrase not in near)
            break


def _very(context: ImageContext, at: int) -> Iterator[Candidate]:
    """ "very messy" -> "very tidy": values that have degrees."""
    if at == 0 or context.words[at - 1].text != "very" or at + 1 == len(context.words):
        return
    head = head_noun(context, at + 1)
    for values in context.lexicon.attributes:
        if head and values.opposites is not None and context.words[at].text in values.words:
            if applies(context, values, head):
                yield from (made for made in _attribute(context, values, at) if made.phrase in _DEGREES)
                return


def _attested_values(context: ImageContext, at: int) -> Iterator[Candidate]:
    """Values of the same attributes that the collection has before the next word."""
    for values in context.lexicon.attributes:
        if values.nouns is not None and context.words[at].text in values.words:
            for candidate in _attribute(context, values, at):
                if (candidate.phrase, context.words[at + 1].text) in context.bank.bigrams:
                    yield candidate


def _is_plain_adjective(context: ImageContext, at: int) -> bool:
    """Whether the word at `at` modifies what follows, alone: no list, no "black and white", no "of"."""
    words, text = context.words, context.text
    if context.is_tagged(at, frozenset(("ADP", "ADV", "PRON"))):
        return False
    if at + 1 == len(words) or apart(text, words[at], words[at + 1]) or words[at + 1].text in ("and", "or", "of"):
        return False
    return at == 0 or words[at - 1].text not in ("and", "or", "very") and not apart(text, words[at - 1], words[at])


def applies(context: ImageContext, values: AttributeSet, head: str) -> bool:
    """Whether a noun can have values of the attribute."""
    if head.endswith("'s"):
        return False
    if values.nouns is not None:
        return context.lexicon.is_a(head, values.nouns)
    return not context.lexicon.is_a(head, values.not_nouns)


def _attribute(context: ImageContext, values: AttributeSet, at: int) -> Iterator[Candidate]:
    word = context.words[at]
    for new in values.words if values.opposites is None else values.opposites[word.text]:
        close = any(word.text in group and new in group for group in values.alike)
        if new == word.text or close:
            continue
        claims = {new} | {other for group in values.alike if new in group for other in group}
        replacement = Replacement(word.start, word.end, new)
        yield make(context, "attribute", [replacement], new, claims=frozenset(claims))


# Phrases


def phrase_edits(context: ImageContext, draw: random.Random) -> Iterator[Candidate]:
    """What the lexicon's phrase rules make of the caption; a word belongs to the longest phrase that matches there."""
    taken: set[int] = set()
    spoken = {word.text for word in context.words}
    for rule in context.lexicon.rules_of(spoken):
        if not spoken.issuperset(_split(rule.phrase)):  # nearly all rules, nearly always
            continue
        length = len(_split(rule.phrase))
        for at in range(len(context.words) - length + 1):
            place = set(range(at, at + length))
            if place & taken or not _matches(context, rule, at, length):
                continue
            if length > 1:
                taken |= place
            if _fits(context, rule, at, at + length):
                yield from _phrase(context, rule, at, at + length)


@cache
def _split(phrase: str) -> tuple[str, ...]:
    return tuple(phrase.split())


def _matches(context: ImageContext, rule: PhraseRule, at: int, length: int) -> bool:
    words = context.words[at : at + length]
    if [word.text for word in words] != list(_split(rule.phrase)):
        return False
    return not any(apart(context.text, a, b) for a, b in zip(words, words[1:], strict=False))


def _fits(context: ImageContext, rule: PhraseRule, at: int, stop: int) -> bool:
    words = context.words
    if rule.type == "action" and at > 0 and words[at - 1].text in DETERMINERS - {"that"}:
        return False  # a noun: "people in the stands"
    ends = stop == len(words) or apart(context.text, words[stop - 1], words[stop])
    if rule.followers is not None and ("" if ends else words[stop].text) not in rule.followers:
        return False
    if rule.landmarks is not None:
        head = "" if ends else head_noun(context, stop)
        if not head or not context.lexicon.is_a(head, rule.landmarks):
            return False
    if rule.subjects is not None:
        before = [mention for mention in context.mentions if mention.stop <= at]
        if not before or before[-1].kind.group not in rule.subjects:
            return False
        if rule.after and before[-1].stop != at and words[at - 1].text not in rule.after:
            return False
    return True


def _phrase(context: ImageContext, rule: PhraseRule, at: int, stop: int) -> Iterator[Candidate]:
    start, end = context.words[at].start, context.words[stop - 1].end
    for new in rule.replacements:
        kept = set(rule.phrase.split())
        claims = {word for word in new.split() if word not in _LIGHT_WORDS and word not in kept}
        claims |= rule.claims.get(new, frozenset())
        yield make(context, rule.type, [Replacement(start, end, new)], new, claims=frozenset(claims))
