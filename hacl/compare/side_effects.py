"""What a steered model's texts lose: fluency, variety, length, and their sameness outside the domain. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from hacl.compare.agreement import words
from hacl.compare.recovery_fraction import per_image
from hacl.evaluation.statistics import Table, table_ratio


def ngrams(tokens: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]


def distinct(texts: Sequence[str], size: int) -> float | None:
    """Distinct n-grams over all n-grams of a corpus (Li et al., 2016); None where there is none."""
    found = [gram for text in texts for gram in ngrams(words(text), size)]
    return len(set(found)) / len(found) if found else None


def longest_repeat(text: str) -> int:
    """Words of the longest n-gram that occurs twice in a text (the two may overlap); 0 where no word does.

    "black black black" has 2, fluent text mostly 0 to 2: a long one is a loop.
    """
    tokens = words(text)
    low, high = 0, max(len(tokens) - 1, 0)
    while low < high:  # an n-gram that repeats contains shorter ones that do
        size = (low + high + 1) // 2
        grams = ngrams(tokens, size)
        low, high = (size, high) if len(set(grams)) < len(grams) else (low, size - 1)
    return low


def changed(before: Sequence[str], after: Sequence[str]) -> list[bool]:
    """Where two runs' texts differ, outer blanks aside."""
    return [x.strip() != y.strip() for x, y in zip(before, after, strict=True)]


def text_effects(image_ids: Sequence[str], texts: Sequence[str]) -> dict[str, Table]:
    """Evidence by image of length (words), longest_repeat (words), and distinct_1 and distinct_2 within texts."""
    tokens = [words(text) for text in texts]
    found = {
        "length": per_image(image_ids, [len(row) for row in tokens]),
        "longest_repeat": per_image(image_ids, [longest_repeat(text) for text in texts]),
    }
    for size in (1, 2):
        grams = [ngrams(row, size) for row in tokens]
        found[f"distinct_{size}"] = per_image(image_ids, [len(set(g)) for g in grams], [len(g) for g in grams])
    return found


def negative_log_likelihood(image_ids: Sequence[str], total: np.ndarray, tokens: np.ndarray) -> Table:
    """Evidence by image of nats per token, from log-likelihoods; see `perplexity`."""
    return per_image(image_ids, -np.asarray(total), tokens)


def perplexity(table: Table) -> float | None:
    """exp of the nats per token, None without a token."""
    value = table_ratio(table)
    return None if value is None else math.exp(min(value, 700.0))


def summarise(tables: Mapping[str, Table]) -> dict[str, float | None]:
    """The value of each measure."""
    return {name: table_ratio(table) for name, table in tables.items()}
