"""More edits of how many things there are, for captions of a surveyed collection: any countable noun, any place."""

from __future__ import annotations

import random
from collections.abc import Iterator

from hacl.hallucinate.context import Candidate, ImageContext
from hacl.hallucinate.edits_numbers import agrees_with_any, plural_fixes
from hacl.hallucinate.edits_words import make
from hacl.hallucinate.english import (
    FUNCTION_WORDS,
    Replacement,
    is_finite_singular,
    is_plural,
    noun_run,
    plural,
    singular,
)
from hacl.hallucinate.lexicon import Mention, ObjectKind
from hacl.hallucinate.noun_phrases import MANY_PEOPLE, NounPhrase, ends_at
from hacl.hallucinate.tagger import NOUNS

_NOT_COUNTED = frozenset(
    "group couple lot bunch pair number row line variety close top view way picture photo photograph image side middle "
    "front back background bit few stack pile set herd flock crowd team kind type piece edge end day night time game "
    "match trick pitcher batter catcher umpire batsman goalie head face bite meal display assortment collection "
    "field beach city ocean sky".split()
)
_ONE_ONLY = frozenset(
    "riding rides ride wearing wears as like ridden driving drives playing plays doing taking".split()
)
_HOLDS_ONE = frozenset("on in at inside into through down up over under atop across onto to for from as".split())
_GROUPS = frozenset("group couple pair family team crowd people".split())
_WORDS_OF_NUMBER = frozenset("two three four five six several many pair couple both some few multiple various".split())
_VAGUE = frozenset({"some", "many", "several", "multiple", "various"})
_OF_MANY = frozenset("their them they each other that who which are themselves together row line both all".split())
_MANY = tuple(
    tuple(phrase.split())
    for phrase in "a group of;a bunch of;a herd of;a flock of;a couple of;a pair of;a few;several;lots of;a lot of;"
    "some;many;a crowd of;a number of;a row of;a variety of;a large group of;a small group of".split(";")
)
_VALUES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6}


def count_edits(context: ImageContext, draw: random.Random) -> Iterator[Candidate]:
    """ "near a tree" -> "near two trees", "two men are" -> "one man is"; never a number the annotation allows."""
    if context.bank is None:
        return
    words = context.words
    for at, word in enumerate(words):
        if word.text in ("a", "an", "one"):
            yield from _more(context, at)
        elif word.text in context.lexicon.numbers or word.text == "several":
            yield from _one(context, at, at)
            yield from _other(context, at)
        elif word.text in _VAGUE or (word.text not in FUNCTION_WORDS and at + 1 <= len(words)):
            yield from _bare(context, at)
    for at in range(len(words) - 2):
        length = next((len(p) for p in _MANY if [w.text for w in words[at : at + len(p)]] == list(p)), 0)
        if length:
            yield from _one(context, at, at + length - 1)


def _head(context: ImageContext, at: int) -> tuple[int, int, Mention | None] | None:
    """[first, stop) of the noun after the determiner `at` and what it names; None where it is no plain noun phrase."""
    words, first = context.words, at + 1
    while first < len(words) and words[first].text in context.lexicon.adjectives:
        first += 1
    mention = next((m for m in context.mentions if m.first == first), None)
    if mention is None:
        _, stop = noun_run(context.text, words, first)
        if stop == first or stop > first + 3:
            return None
        mention = next((m for m in context.mentions if m.stop == stop and m.first >= first), None)
        first = stop - 1
    stop = first + 1 if mention is None else mention.stop
    following = "" if ends_at(context, stop) else words[stop].text
    if context.is_tagged(stop - 1, NOUNS) is False:
        return None
    plain = (
        not following
        or context.is_tagged(stop, NOUNS) is False
        or following in FUNCTION_WORDS
        or following in context.lexicon.followers
    )
    if not plain and not agrees_with_any(following) and not is_finite_singular(following):
        return None
    return first, stop, mention


def _more(context: ImageContext, at: int) -> Iterator[Candidate]:
    found = _head(context, at)
    words, said = context.words, context.said
    if found is None:
        return
    first, stop, mention = found
    noun = " ".join(word.text for word in words[first:stop])
    many = plural(noun)
    if is_plural(noun) or words[stop - 1].text in _NOT_COUNTED or many.split()[-1] in said:
        return
    if mention is None and (context.cooccurrence is None or not context.cooccurrence.words.get(many.split()[-1])):
        return
    if mention is not None and not mention.kind.countable and mention.kind.group == "person":
        return
    count = None if mention is None else context.count(mention.kind.name)
    if count is None and said & _WORDS_OF_NUMBER or mention and mention.kind.group == "person" and said & MANY_PEOPLE:
        return
    fixes = _fixes(context, at, stop)
    if fixes is None:
        return
    for word, value in _VALUES.items():
        if (count or 1) < value <= (count or 1) + 3:
            claims = frozenset({word, "several", "many"} | ({"couple", "pair"} if value == 2 else set()))
            noun_edit = Replacement(words[first].start, words[stop - 1].end, many)
            edits = [Replacement(words[at].start, words[at].end, word), noun_edit, *fixes]
            yield make(context, "number", edits, word, claims=claims, weight=1 / value)


def _fixes(context: ImageContext, at: int, stop: int) -> list[Replacement] | None:
    """What else changes when words [at, stop) become plural, None where that cannot be told."""
    words = context.words
    after = words[stop:]
    if at == 0 or at == 2 and words[0].text == "there":
        pseudo = NounPhrase(Mention(ObjectKind(""), at + 1, stop, "", False), at, "a", "")
        fixes = plural_fixes(context, pseudo)
        if after and at == 0 and after[0].text == "and" and not any(is_finite_singular(w.text) for w in after):
            return []
        if fixes is not None and at == 2:
            if words[1].text != "is" or any(is_finite_singular(word.text) for word in after):
                return None
            fixes = [*fixes, Replacement(words[1].start, words[1].end, "are")]
        return fixes
    before = words[at - 1].text
    if before == "of" and words[at - 2].text in ("side", "top", "front", "middle", "back", "end", "edge", "inside"):
        return None
    if before in _HOLDS_ONE:
        return None
    if before not in FUNCTION_WORDS and not before.endswith("ing") or before in _ONE_ONLY or before == "or":
        return None
    if before == "and" and any(is_finite_singular(word.text) for word in words):
        return None
    if {word.text for word in after} & {"it", "its", "each", "itself"}:
        return None
    if (
        after
        and not ends_at(context, stop)
        and (is_finite_singular(after[0].text) or after[0].text in ("that", "which"))
    ):
        return None
    return []


def _other(context: ImageContext, at: int) -> Iterator[Candidate]:
    """ "two giraffes" -> "three giraffes", where words that are no nouns follow."""
    words = context.words
    mention = next((m for m in context.mentions if at < m.first <= at + 3 and m.plural), None)
    old = context.lexicon.numbers.get(words[at].text)
    if mention is None or old is None:
        return
    count = context.count(mention.kind.name)
    for word, value in _VALUES.items():
        if value != old and (count is None and value > old or count is not None and value > max(count, old)):
            claims = frozenset({word, "several", "many"})
            yield make(context, "number", [Replacement(words[at].start, words[at].end, word)], word, claims=claims)


def _bare(context: ImageContext, at: int) -> Iterator[Candidate]:
    """ "cars", "some cars", "many cars" -> "two cars", where at least five are annotated or many are spoken of."""
    words = context.words
    vague = words[at].text in _VAGUE
    mention = next((m for m in context.mentions if m.first == at + vague and m.plural), None)
    if mention is None or (at and words[at - 1].text not in FUNCTION_WORDS - {"the", "their", "his", "her", "its"}):
        return
    count = context.count(mention.kind.name)
    if count is None and words[at].text != "many" or _WORDS_OF_NUMBER & context.said - _VAGUE:
        return
    end = words[at].end if vague else words[at].start
    some = ("two", "three") if count is None or count >= 5 else [w for w, value in _VALUES.items() if value > count + 1]
    for word in some if count != 0 else ():
        text = word if vague else word + " "
        edit = Replacement(words[at].start, end, text)
        yield make(context, "number", [edit], word, claims=frozenset({word}))


def _one(context: ImageContext, start: int, at: int) -> Iterator[Candidate]:
    """ "two dogs on" or "a group of dogs on" -> "one dog on", words start to `at` being the number.

    Not where the annotation says that one is all there is.
    """
    words = context.words
    found = _head(context, at)
    if found is None:
        return
    first, stop, mention = found
    noun = " ".join(word.text for word in words[first:stop])
    count = None if mention is None else context.count(mention.kind.name)
    if not is_plural(noun) or count is not None and count < 2 or context.said & {"one", "single", "lone", "alone"}:
        return
    after = "" if ends_at(context, stop) else words[stop].text
    fixes = []
    if after in ("are", "have", "were"):
        verb = {"are": "is", "have": "has", "were": "was"}[after]
        fixes = [Replacement(words[stop].start, words[stop].end, verb)]
    elif after and (after not in FUNCTION_WORDS or after in ("and", "or")) and not agrees_with_any(after):
        return
    if {word.text for word in words[stop:]} & _OF_MANY - {after} or after in ("that", "who", "which"):
        return
    if start and words[start - 1].text in ("the", "of", "are", "by"):
        return
    one = " ".join([*noun.split()[:-1], singular(noun.split()[-1])])
    for word in ("one", "a single", "a lone"):
        edits = [
            Replacement(words[start].start, words[at].end, word),
            Replacement(words[first].start, words[stop - 1].end, one),
        ]
        yield make(
            context, "number", [*edits, *fixes], word, claims=frozenset({"one", "single", "lone", "alone"}), weight=0.5
        )
