"""Tests of a paired difference between two runs, and the correction for asking many questions at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hacl.evaluation.statistics import Table, base_differences, table_ratio

CHUNK = 100  # draws at once


@dataclass(frozen=True)
class McNemar:
    """Discordant yes/no items of two runs and the two-sided p values of McNemar's test.

    ``exact`` is the binomial test of the discordant items (McNemar, 1947); ``mid`` takes half the probability of the
    observed table out, which keeps the level and loses less power (Fagerland, Lydersen and Laake, 2013).
    """

    only_a: int
    only_b: int
    exact: float
    mid: float


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> McNemar:
    """Compare two runs on the same yes/no items, in the same order. Without a discordant item both p are 1.

    Raises:
        ValueError: lengths differ.
    """
    if len(a) != len(b):
        raise ValueError(f"mcnemar: {len(a)} items against {len(b)}; give the same items in the same order")
    from scipy.stats import binom

    only_a = sum(bool(x) and not y for x, y in zip(a, b, strict=True))
    only_b = sum(bool(y) and not x for x, y in zip(a, b, strict=True))
    n, few = only_a + only_b, min(only_a, only_b)
    if n == 0:
        return McNemar(0, 0, 1.0, 1.0)
    exact = min(1.0, 2 * float(binom.cdf(few, n, 0.5)))
    mid = 2 * float(binom.cdf(few, n, 0.5)) - float(binom.pmf(few, n, 0.5))
    return McNemar(only_a, only_b, exact, min(1.0, mid))


def swap_test(a: Sequence[Table], b: Sequence[Table], *, draws: int = 2000, seed: int = 0) -> float | None:
    """Two-sided p of the mean difference of ratios when the two sides of every image may be swapped.

    a, b: one table per run, run by run. If neither side is better, all answers about an image may as well have come
    from the other side; each draw swaps a random half of the images, in all runs at once, and asks how often the
    difference is at least as large as the observed one (that one counted, so p is never zero). An image carries all its
    questions with it, so their dependence does no harm. None where a ratio is 0/0.

    Raises:
        ValueError: numbers of runs differ.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"swap_test: {len(a)} runs against {len(b)}; give as many of both, at least one")
    ids = sorted(set().union(*(set(x) & set(y) for x, y in zip(a, b, strict=True))))
    rng = np.random.default_rng(seed)
    halves = []  # per run: totals of both sides together over two, and each image's signed half difference
    for x, y in zip(a, b, strict=True):
        both = [(x[i], y[i]) if i in x and i in y else ((0.0, 0.0), (0.0, 0.0)) for i in ids]
        pairs = np.array(both, dtype=float).reshape(len(ids), 2, 2)
        halves.append((pairs.sum(axis=(0, 1)) / 2, (pairs[:, 0] - pairs[:, 1]) / 2))
    observed = abs(_swapped_difference(np.ones((1, len(ids))), halves)[0])
    if not np.isfinite(observed):
        return None
    extreme = count = 1
    for start in range(0, draws, CHUNK):
        sign = rng.integers(0, 2, (min(CHUNK, draws - start), len(ids))) * 2.0 - 1.0
        found = np.abs(_swapped_difference(sign, halves))
        found = found[np.isfinite(found)]
        extreme += int((found >= observed - 1e-12).sum())
        count += len(found)
    return extreme / count


def _swapped_difference(sign: np.ndarray, halves: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Sum over runs of ratio a - ratio b after swapping images whose sign is -1. sign: [draws, images] -> [draws]."""
    difference = np.zeros(len(sign))
    for total, half in halves:
        moved = sign @ half
        with np.errstate(divide="ignore", invalid="ignore"):
            difference += (total[0] + moved[:, 0]) / (total[1] + moved[:, 1])
            difference -= (total[0] - moved[:, 0]) / (total[1] - moved[:, 1])
    return difference


def run_test(a: Sequence[Table], b: Sequence[Table], bases: Sequence[object] | None = None) -> float | None:
    """Two-sided p of Student's paired t over bases (over runs where there is one base); None with one unit.

    Raises:
        ValueError: numbers of runs or bases differ.
    """
    from scipy.stats import t

    values = [(table_ratio(x), table_ratio(y)) for x, y in zip(a, b, strict=True)]
    if any(x is None or y is None for x, y in values):
        return None
    units = [x - y for x, y in values]
    if bases is not None and len(set(bases)) > 1:
        units = base_differences([x for x, _ in values], [y for _, y in values], bases)
    if len(units) < 2:
        return None
    deviation = float(np.std(units, ddof=1))
    if deviation == 0:
        return 1.0 if units[0] == 0 else 0.0
    return float(2 * t.sf(abs(np.mean(units)) / deviation * math.sqrt(len(units)), len(units) - 1))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p values by Holm's step-down method (1979), in the order given; None stays None and counts nothing.

    Below 0.05, an adjusted p keeps the chance of even one false finding among all questions below 0.05, whatever the
    dependence between them.
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    running = 0.0
    for rank, (p, i) in enumerate(known):
        running = max(running, min(1.0, p * (len(known) - rank)))
        adjusted[i] = running
    return adjusted
