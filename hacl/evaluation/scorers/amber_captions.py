"""AMBER's generative task: which listed nouns of one caption the image explains.

Source: junyangwang0410/AMBER@534babf6, ``inference.py``; definitions in arXiv 2311.07397, section 4.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from hacl.evaluation.scorers.amber_references import ImageWords
from hacl.evaluation.scorers.amber_similarity import Similarity

THRESHOLD = 0.8


@dataclass(frozen=True)
class CaptionVerdict:
    """One caption, judged.

    Attributes:
        nouns: nouns of the caption that AMBER lists, with repetition: the denominator of CHAIR.
        hallucinated: those that nothing explains: its numerator.
        covered: positions of truth words mentioned (Cover).
        invented: positions of typical hallucinations mentioned (Cog).
    """

    nouns: Sequence[str]
    hallucinated: Sequence[str]
    covered: frozenset[int]
    invented: frozenset[int]


def judge_caption(
    nouns: Sequence[str],
    image: ImageWords,
    *,
    vocabulary: Collection[str],
    safe_words: Collection[str],
    similarity: Similarity,
    threshold: float = THRESHOLD,
) -> CaptionVerdict:
    """Judge the nouns of one caption in order.

    A noun is passed over if it is a safe word (it stays in ``nouns``); it covers a truth word if it is one or a listed
    relative. Otherwise it marks a typical hallucination it equals, *and* the first one more similar than ``threshold``,
    and may still be excused by the first truth word or relative more similar than that. The rest is hallucinated.
    """
    kept = [noun for noun in nouns if noun in vocabulary]
    hallucinated: list[str] = []
    covered: set[int] = set()
    invented: set[int] = set()
    for noun in kept:
        if noun in safe_words:
            continue
        if noun in image.truth_index:
            covered.add(image.truth_index[noun])
            continue
        if noun in image.hallu_index:
            invented.add(image.hallu_index[noun])
        near = _first_similar(noun, image.hallu_index, similarity, threshold)
        if near is not None:
            invented.add(near)
        excuse = _first_similar(noun, image.truth_index, similarity, threshold)
        if excuse is None:
            hallucinated.append(noun)
        else:
            covered.add(excuse)
    return CaptionVerdict(kept, hallucinated, frozenset(covered), frozenset(invented))


def _first_similar(noun: str, index, similarity: Similarity, threshold: float) -> int | None:
    """Position of the listed word of the first entry, in listed order, that is more similar than the threshold."""
    return next((position for word, position in index.items() if similarity(noun, word) > threshold), None)
