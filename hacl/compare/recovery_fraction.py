"""How much of the way from one model to another a change goes, with an interval over images.

F(M) = (M(moved) - M(a)) / (M(b) - M(a)) for a measure M. It is undefined where the gap M(b) - M(a) is not larger than
its own noise, and never clipped: above 1 is an over-shoot, below 0 the wrong way. The share of a divergence that is
closed is the same number, with M(b) = 0. No torch here.

A measure is a table {image id: [numerator, denominator]}, its value the ratio of the two sums (see
`hacl.evaluation.statistics`); images are resampled, the same draw for all sides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hacl.evaluation.statistics import Interval, Table, format_interval, paired_difference, table_ratio

DRAWS = 2000


@dataclass(frozen=True)
class Fraction:
    """F(M) with its parts. share: F and its interval, without estimate where undefined; gap: M(b) - M(a); original,
    tuned, moved: the three values; note: "" or why it is undefined, "over-shoots" or "wrong way".
    """

    share: Interval
    gap: Interval
    original: float | None
    tuned: float | None
    moved: float | None
    note: str = ""

    @property
    def defined(self) -> bool:
        return self.share.estimate is not None

    def __str__(self) -> str:
        return f"{format_interval(self.share)} {self.note}".strip() if self.defined else f"undefined ({self.note})"

    def to_json(self) -> dict[str, Any]:
        parts = {"share": self.share.to_json(), "gap": self.gap.to_json(), "note": self.note}
        return parts | {"original": self.original, "tuned": self.tuned, "moved": self.moved}


def recovery_fraction(
    original: Table, tuned: Table, moved: Table, *, draws: int = DRAWS, level: float = 0.95, seed: int = 0
) -> Fraction:
    """F of one measure from its evidence by image; images that a side lacks are left out."""
    ids = sorted(set(original) & set(tuned) & set(moved))
    sides = [{i: table[i] for i in ids} for table in (original, tuned, moved)]
    values = [table_ratio(side) if ids else None for side in sides]
    gap = paired_difference([sides[1]], [sides[0]], draws=draws, level=level, seed=seed)
    empty = Interval(None, None, None, 1, len(ids), level)
    if None in values:
        return Fraction(empty, gap, *values, "a side is 0/0")
    if not gap.excludes(0.0):
        return Fraction(empty, gap, *values, "the gap lies inside its own interval")
    estimate, drawn = _shares(sides[0], sides[1], [sides[2]], ids, draws, seed)
    share = _interval(float(estimate[0]), drawn[:, 0], len(ids), level)
    note = "over-shoots" if share.estimate > 1 else "wrong way" if share.estimate < 0 else ""
    return Fraction(share, gap, *values, note)


def fraction_difference(
    original: Table, tuned: Table, moved: Table, other: Table, *, draws: int = DRAWS, level: float = 0.95, seed: int = 0
) -> Interval:
    """Interval of F(moved) - F(other), image by image: does a method recover more than its control?"""
    ids = sorted(set(original) & set(tuned) & set(moved) & set(other))
    if not ids:
        return Interval(None, None, None, 1, 0, level)
    estimate, drawn = _shares(original, tuned, [moved, other], ids, draws, seed)
    return _interval(float(estimate[0] - estimate[1]), drawn[:, 0] - drawn[:, 1], len(ids), level)


def zero_table(table: Table) -> dict[str, list[float]]:
    """The evidence of a side whose measure is 0 everywhere: the tuned model's divergence from itself."""
    return {key: [0.0, pair[1]] for key, pair in table.items()}


def closed_share(base: Table, moved: Table, **settings: Any) -> Fraction:
    """1 - D(moved) / D(base) of a divergence to the tuned model, in the same form."""
    return recovery_fraction(base, zero_table(base), moved, **settings)


def per_image(image_ids: Sequence[str], values: Sequence[float], weights: Sequence[float] | None = None) -> Table:
    """{image: [sum of values, sum of weights]}; weights are 1 where not given."""
    weights = [1.0] * len(values) if weights is None else weights
    table: dict[str, list[float]] = {}
    for key, value, weight in zip(image_ids, values, weights, strict=True):
        entry = table.setdefault(str(key), [0.0, 0.0])
        entry[0] += float(value)
        entry[1] += float(weight)
    return table


def _shares(
    original: Table, tuned: Table, moved: Sequence[Table], ids: Sequence[str], draws: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """F of each moved side as observed (sides) and in each draw (draws, sides)."""
    rng = np.random.default_rng(seed)
    weights = np.vstack([np.ones(len(ids)), rng.multinomial(len(ids), np.full(len(ids), 1 / len(ids)), size=draws)])
    with np.errstate(divide="ignore", invalid="ignore"):
        start, end, *reached = (_value(table, ids, weights) for table in (original, tuned, *moved))
        shares = np.stack([(value - start) / (end - start) for value in reached], axis=1)
    return shares[0], shares[1:]


def _value(table: Mapping[str, Sequence[float]], ids: Sequence[str], weights: np.ndarray) -> np.ndarray:
    pairs = np.array([table[i] for i in ids], dtype=float)
    return (weights @ pairs[:, 0]) / (weights @ pairs[:, 1])


def _interval(estimate: float, drawn: np.ndarray, items: int, level: float) -> Interval:
    drawn = drawn[np.isfinite(drawn)]
    if not np.isfinite(estimate):
        return Interval(None, None, None, 1, items, level)
    if items < 2 or not len(drawn):
        return Interval(estimate, None, None, 1, items, level)
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Interval(estimate, float(low), float(high), 1, items, level)
