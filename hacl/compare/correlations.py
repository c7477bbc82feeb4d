"""Correlation of two columns of a table, with its size, interval and p, and the names of both axes beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hacl.compare.plain import Row


def correlate(x: Sequence[float | None], y: Sequence[float | None], x_label: str, y_label: str) -> list[Row]:
    """Pearson's and Spearman's coefficient of the pairs in which both are known, one row each.

    Intervals (95%) by Fisher's z, for Spearman with the standard error of Bonett and Wright (Psychometrika 2000); p of
    no correlation. A coefficient is None with fewer than three pairs or a column without variation, an interval with
    fewer than four.

    Raises:
        ValueError: columns of different length.
    """
    if len(x) != len(y):
        raise ValueError(f"correlate {x_label} with {y_label}: {len(x)} and {len(y)} values; give pairs")
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if _known(a) and _known(b)]
    return [
        _row(kind, np.array(pairs, dtype=float).reshape(-1, 2), x_label, y_label) for kind in ("pearson", "spearman")
    ]


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _row(kind: str, pairs: np.ndarray, x_label: str, y_label: str) -> Row:
    row: Row = {"x": x_label, "y": y_label, "coefficient": kind, "n": len(pairs)}
    row |= dict.fromkeys(("r", "low", "high", "p"))
    if len(pairs) < 3 or (np.ptp(pairs, axis=0) <= 1e-12 * np.abs(pairs).max(axis=0)).any():
        return row
    from scipy.stats import norm, pearsonr, spearmanr

    found = (pearsonr if kind == "pearson" else spearmanr)(pairs[:, 0], pairs[:, 1])
    r = float(np.clip(found.statistic, -1, 1))
    row |= {"r": r, "p": float(found.pvalue)}
    if len(pairs) > 3 and abs(r) < 1:
        widening = 1.0 if kind == "pearson" else 1.0 + r * r / 2
        half = float(norm.ppf(0.975)) * math.sqrt(widening / (len(pairs) - 3))
        row |= {"low": math.tanh(math.atanh(r) - half), "high": math.tanh(math.atanh(r) + half)}
    return row
