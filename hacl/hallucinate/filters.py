"""Named filters over candidates: each returns why a candidate must not be used, or None.

A hallucinated caption that is true of its image, or that is no proper English, is worse than none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hacl.hallucinate.context import Candidate, ImageContext
from hacl.hallucinate.english import DETERMINERS, same_text_key, words_of

Filter = Callable[[Candidate, ImageContext], str | None]
MIN_LENGTH_RATIO, MAX_LENGTH_RATIO = 0.7, 1.3


def same_as_a_caption(candidate: Candidate, context: ImageContext) -> str | None:
    """The text is one of the image's captions, up to case and punctuation."""
    key = same_text_key(candidate.text)
    return "same as a caption" if any(key == same_text_key(text) for text in context.texts) else None


def object_present(candidate: Candidate, context: ImageContext) -> str | None:
    """An object it adds is annotated, or named or hinted at by a caption."""
    return "object is present" if candidate.adds & context.present else None


def mentioned(candidate: Candidate, context: ImageContext) -> str | None:
    """A caption of the image has one of the new words, or one that makes them true."""
    claims = {form for word in candidate.claims for form in context.lexicon.same(word)}
    return "said by a caption" if claims & context.said else None


def length_ratio(candidate: Candidate, context: ImageContext) -> str | None:
    """Number of words outside 0.7 to 1.3 times that of the caption."""
    ratio = len(words_of(candidate.text)) / max(1, len(context.words))
    return None if MIN_LENGTH_RATIO <= ratio <= MAX_LENGTH_RATIO else "too long or too short"


def repeated_word(candidate: Candidate, context: ImageContext) -> str | None:
    """A word twice in a row, or two determiners in a row, that the caption did not have."""

    def slips(text: str) -> int:
        words = [word.text for word in words_of(text)]
        pairs = list(zip(words, words[1:], strict=False))
        return sum(a == b or (a in DETERMINERS - {"that", "all"} and b in DETERMINERS) for a, b in pairs)

    return "repeated word" if slips(candidate.text) > slips(context.text) else None


DEFAULT_FILTERS: Mapping[str, Filter] = {
    "same_as_a_caption": same_as_a_caption,
    "object_present": object_present,
    "mentioned": mentioned,
    "length_ratio": length_ratio,
    "repeated_word": repeated_word,
}


def first_reason(candidate: Candidate, context: ImageContext, filters: Mapping[str, Filter]) -> str | None:
    """The reason of the first filter that refuses the candidate, None when all accept it."""
    return next((reason for check in filters.values() if (reason := check(candidate, context))), None)
