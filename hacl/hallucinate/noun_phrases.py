"""Noun phrases around the objects a caption names."""

from __future__ import annotations

from dataclasses import dataclass

from hacl.hallucinate.context import ImageContext
from hacl.hallucinate.english import DETERMINERS, FUNCTION_WORDS, apart, is_finite_singular
from hacl.hallucinate.lexicon import Mention

PERSONAL_PRONOUNS = frozenset("he him his himself she her hers herself it its itself".split())
MANY_PEOPLE = frozenset("people couple group crowd family friends team children kids adults others everyone".split())


@dataclass(frozen=True)
class NounPhrase:
    """Determiner and adjectives of a mention: words [first, mention.first); before: the word in front, "" at the start.

    determiner: its text, "" for a bare plural.
    """

    mention: Mention
    first: int
    determiner: str
    before: str


def noun_phrase(context: ImageContext, mention: Mention) -> NounPhrase | None:
    """The noun phrase that ends in the mention, None for the inside of a compound ("fire truck", "dog bed")."""
    words, at = context.words, mention.first
    while (
        at > 0 and words[at - 1].text in context.lexicon.adjectives and not apart(context.text, *words[at - 1 : at + 1])
    ):
        at -= 1
    left = words[at - 1].text if at > 0 and not apart(context.text, words[at - 1], words[at]) else ""
    if words[mention.stop - 1].text.endswith("'s"):
        return None
    counted = left in context.lexicon.numbers or left in ("one", "several", "many", "few", "some", "various")
    if left in DETERMINERS or counted:
        return NounPhrase(mention, at - 1, left, words[at - 2].text if at > 1 else "")
    if mention.plural and (not left or left in FUNCTION_WORDS or left in context.lexicon.selects):
        return NounPhrase(mention, at, "", left)
    return None


def ends_at(context: ImageContext, stop: int) -> bool:
    """Whether the clause or the caption ends before word `stop`."""
    return stop == len(context.words) or apart(context.text, context.words[stop - 1], context.words[stop])


def is_head(context: ImageContext, mention: Mention) -> bool:
    """Whether the mention is not the first part of a compound ("laptop computer"): what follows it is known."""
    following = "" if ends_at(context, mention.stop) else context.words[mention.stop].text
    if following in ("sit", "stand") and not mention.plural:
        return False
    return not following or following == "of" or following in context.lexicon.followers or is_finite_singular(following)
