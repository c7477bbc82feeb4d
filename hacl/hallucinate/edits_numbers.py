"""Edits of how many things there are."""

from __future__ import annotations

import random
from collections.abc import Iterator

from hacl.hallucinate.context import Candidate, ImageContext
from hacl.hallucinate.edits_words import make
from hacl.hallucinate.english import (
    DETERMINERS,
    Replacement,
    base_form,
    is_finite_singular,
    is_plural,
    noun_run,
    plural,
)
from hacl.hallucinate.noun_phrases import MANY_PEOPLE, PERSONAL_PRONOUNS, NounPhrase, ends_at, is_head, noun_phrase

_ALWAYS_PAIRS = frozenset(
    "scissors skis shoes pants glasses sunglasses jeans gloves boots shorts socks goggles tongs feet hands".split()
)


_UNCHANGED = frozenset(
    "can can't cannot could will would may must sat stood came went ran took made held set built seen parked full high "
    "shown hung left gave got just".split()
)


def number_edits(context: ImageContext, draw: random.Random) -> Iterator[Candidate]:
    """Another number of things, never the annotated one."""
    yield from _exact_numbers(context)
    yield from _vague_numbers(context)
    yield from _singles(context)


def _exact_numbers(context: ImageContext) -> Iterator[Candidate]:
    by_value = {value: word for word, value in context.lexicon.numbers.items()}
    for at, word in enumerate(context.words):
        old = context.lexicon.numbers.get(word.text)
        noun = _counted(context, at + 1)
        if old is None or noun is None:
            continue
        true = context.count(noun) if noun else None
        higher = [value for value in range(old + 1, old + 4) if true is None or value > true]
        lower = [value for value in range(2, old) if true == old]
        for value in (*lower, *higher):
            if value in by_value:
                yield _number(context, at, at + 1, by_value[value], 1.0 if value <= old + 2 else 0.4)
        if "several" in context.lexicon.vague_numbers and old <= 3 and true in (None, old):
            yield _number(context, at, at + 1, "several", 0.5)


def _vague_numbers(context: ImageContext) -> Iterator[Candidate]:
    singular_verb = any(is_finite_singular(word.text) for word in context.words)
    by_value = {value: word for word, value in context.lexicon.numbers.items()}
    for phrase, least in context.lexicon.vague_numbers.items():
        parts = phrase.split()
        for at in range(len(context.words) - len(parts)):
            if [word.text for word in context.words[at : at + len(parts)]] != parts or singular_verb:
                continue
            noun = _counted(context, at + len(parts))
            if noun is None or context.words[at + len(parts)].text in DETERMINERS:
                continue
            true = context.count(noun) if noun else None
            for value in (2,) if least > 2 else (3, 4, 5):
                fits = true is None or (value < true - 1 if least > 2 else value > true)
                if fits and value in by_value:
                    yield _number(context, at, at + len(parts), by_value[value], 1.0)


def _counted(context: ImageContext, at: int) -> str | None:
    """Name of the plural noun that words from `at` count, "" for one that is not in the lexicon, None if not plural."""
    first, stop = noun_run(context.text, context.words, at)
    if first == stop:
        return None
    head = context.words[stop - 1].text
    if head in _ALWAYS_PAIRS or not is_plural(head) and head != "sheep" or _is_part(head):
        return None
    return next((m.kind.name for m in context.mentions if m.stop == stop and m.first >= first), "")


def _is_part(noun: str) -> bool:
    return noun in (
        "sides",
        "minutes",
        "hours",
        "stories",
        "tiers",
        "wheels",
        "legs",
        "ways",
        "lanes",
        "rows",
        "others",
    )


def _number(context: ImageContext, at: int, stop: int, new: str, weight: float) -> Candidate:
    start, end = context.words[at].start, context.words[stop - 1].end
    return make(context, "number", [Replacement(start, end, new)], new, claims=frozenset({new}), weight=weight)


def _singles(context: ImageContext) -> Iterator[Candidate]:
    """ "a dog" -> "two dogs", with the verb, where the caption's grammar is simple enough."""
    words = context.words
    for mention in context.mentions:
        phrase = noun_phrase(context, mention)
        if phrase is None or phrase.determiner not in ("a", "an", "one") or not is_head(context, mention):
            continue
        exact = mention.word in mention.kind.words or mention.kind.group in ("person", "animal")
        if mention.plural or not mention.kind.countable or not exact:
            continue
        if context.count(mention.kind.name) not in (None, 1) or plural(mention.word) in context.said:
            continue
        if (
            context.count(mention.kind.name) is None
            and context.annotated
            and mention.kind.name not in context.annotated
        ):
            continue
        fixes = plural_fixes(context, phrase)
        if fixes is None or (mention.kind.group == "person" and context.said & MANY_PEOPLE):
            continue
        start, end = words[mention.first].start, words[mention.stop - 1].end
        vague = [phrase for phrase in ("several", "a couple of") if phrase in context.lexicon.vague_numbers]
        for value in ("two", "three", *vague):
            determiner = Replacement(words[phrase.first].start, words[phrase.first].end, value)
            noun = Replacement(start, end, plural(mention.word))
            yield make(
                context,
                "number",
                [determiner, noun, *fixes],
                value,
                claims=frozenset({"two", value.split()[-1]} - {"of"}),
                weight=0.5,
            )


def plural_fixes(context: ImageContext, phrase: NounPhrase) -> list[Replacement] | None:
    """What else must change when the noun becomes plural; None where that cannot be told."""
    words, stop = context.words, phrase.mention.stop
    after = words[stop:]
    if any(word.text in PERSONAL_PRONOUNS for word in after) or "each" in {word.text for word in words}:
        return None
    is_subject = phrase.before == ""
    if not is_subject:
        if phrase.before not in ("with", "and", "of") or phrase.before == "of" and phrase.first > 2:
            return None
        return None if after and not ends_at(context, stop) and after[0].text in ("and", "or") else []
    if not after or ends_at(context, stop):
        return []
    following = after[0].text
    relative = following in ("that", "which", "who")
    verb = after[1] if relative and len(after) > 1 else after[0]
    rest = after[after.index(verb) + 1 :]
    if any(is_finite_singular(word.text) for word in rest) or "wearing" in {word.text for word in after}:
        return None
    if is_finite_singular(verb.text):
        return [Replacement(verb.start, verb.end, base_form(verb.text))]
    if (
        relative
        or following in ("and", "or", "in")
        or not (following in context.lexicon.followers or agrees_with_any(following))
    ):
        return None
    return []


def agrees_with_any(word: str) -> bool:
    """Whether a word that follows a noun stays the same for several things: participles, past tense, modal verbs."""
    return len(word) > 4 and word.endswith(("ing", "ed")) or word in _UNCHANGED
