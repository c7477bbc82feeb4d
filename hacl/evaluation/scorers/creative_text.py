"""Variety of texts: distinct n-grams, self-BLEU, repetition.

Sources: distinct-n, Li et al. 2016 (arXiv 1510.03055); self-BLEU, Zhu et al. 2018 (arXiv 1802.01886), BLEU-4 of
Papineni et al. 2002 with the first smoothing of Chen and Cherry 2014 (a match count of zero becomes 0.1);
repetition, seq-rep-4 of Welleck et al. 2020 (arXiv 1908.04319).
"""

from __future__ import annotations

import bisect
import math
import re
from collections import Counter
from collections.abc import Sequence

WORD = re.compile(r"\w+(?:['’-]\w+)*")
ORDERS = (1, 2, 3, 4)
SMALL = 0.1


def words_of(text: str) -> list[str]:
    """Lower-cased words; a script without blanks between words gives long ones."""
    return WORD.findall(text.lower())


def ngrams(words: Sequence[str], order: int) -> list[tuple[str, ...]]:
    """All n-grams in order, ``len(words) - order + 1`` of them."""
    return [tuple(words[start : start + order]) for start in range(len(words) - order + 1)]


def distinct(texts: Sequence[Sequence[str]], order: int) -> tuple[int, int]:
    """(different n-grams, all n-grams) over all texts together."""
    found = [gram for words in texts for gram in ngrams(words, order)]
    return len(set(found)), len(found)


def repetition(words: Sequence[str], order: int = 4) -> float | None:
    """Share of a text's n-grams that repeat an earlier one; None for a text shorter than one n-gram."""
    grams = ngrams(words, order)
    return 1 - len(set(grams)) / len(grams) if grams else None


def self_bleu(texts: Sequence[Sequence[str]]) -> list[float]:
    """BLEU-4 of each text with all the others as references; high means alike. Needs two texts, none of them empty.

    The clip count of an n-gram is its largest count in another text: the largest of all, or the second largest for the
    text that holds the largest, so the whole is linear in the number of words.

    Raises:
        ValueError: fewer than two texts, or an empty one.
    """
    if len(texts) < 2 or not all(texts):
        raise ValueError(f"self-BLEU needs two texts or more, none of them empty; got {len(texts)}")
    counted = [{order: Counter(ngrams(words, order)) for order in ORDERS} for words in texts]
    highest = {order: _two_highest([counts[order] for counts in counted]) for order in ORDERS}
    lengths = sorted(len(words) for words in texts)
    scores = []
    for owner, (words, counts) in enumerate(zip(texts, counted, strict=True)):
        logs = []
        for order in ORDERS:
            matches = 0
            for gram, count in counts[order].items():
                best, holder, second = highest[order][gram]
                matches += min(count, second if holder == owner else best)
            if order == 1 and not matches:
                break
            logs.append(math.log((matches or SMALL) / max(1, len(words) - order + 1)))
        if not logs:
            scores.append(0.0)
            continue
        nearest = _nearest_other(lengths, len(words))
        penalty = 1.0 if len(words) > nearest else math.exp(1 - nearest / len(words))
        scores.append(penalty * math.exp(sum(logs) / len(ORDERS)))
    return scores


def _two_highest(counts: Sequence[Counter]) -> dict[tuple[str, ...], tuple[int, int, int]]:
    """n-gram -> (largest count, the text that has it, largest count in any other text)."""
    highest: dict[tuple[str, ...], tuple[int, int, int]] = {}
    for owner, grams in enumerate(counts):
        for gram, count in grams.items():
            best, holder, second = highest.get(gram, (0, -1, 0))
            highest[gram] = (count, owner, best) if count > best else (best, holder, max(second, count))
    return highest


def _nearest_other(lengths: Sequence[int], length: int) -> int:
    """The length nearest to ``length`` among the other texts, the shorter of two equally near."""
    here = bisect.bisect_left(lengths, length)
    others = [*lengths[max(0, here - 1) : here], *lengths[here + 1 : here + 2]]
    return min(others, key=lambda other: (abs(other - length), other))
