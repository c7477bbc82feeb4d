"""The headline of recovery: concepts' own shifts against one global shift, over several splits, with intervals.

Shapes: K concepts, R draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hacl.compare.plain import Row, interval_columns
from hacl.compare.resampling import centred_interval

Pair = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # own (K,), global (K,), draws of both (R, K)


def gain_columns(found: Sequence[Pair], names: tuple[str, str, str], images: int) -> Row:
    """Columns named for the mean with own shifts, with the global one, and their difference.

    found: one entry per split. Means are over the concepts that are known, then over splits. The draws of each split
    lie around its own mean, so the interval holds the spread between splits and that over images inside one; splits
    share samples, which makes it wide rather than narrow.
    """
    usable = [one for one in found if np.isfinite(one[0]).any()]
    row: Row = {}
    for name, of_own, of_common in zip(names, (1, 0, 1), (0, 1, -1), strict=True):
        values, drawn = [], []
        for own_K, common_K, own_RK, common_RK in usable:
            values.append(float(np.nanmean(of_own * own_K + of_common * common_K)))
            mean_R = known_mean(of_own * own_RK + of_common * common_RK)
            mean_R = mean_R[np.isfinite(mean_R)]
            if len(mean_R):
                drawn.append(values[-1] + mean_R - mean_R.mean())
        pooled = np.concatenate(drawn) if drawn else np.zeros(0)
        estimate = float(np.mean(values)) if values else None
        row |= interval_columns(name, centred_interval(estimate, pooled, items=images, runs=len(values)))
    return row


def known_mean(drawn_RK: np.ndarray) -> np.ndarray:
    """Mean of the known values of each draw (R,); NaN where none is known."""
    known = np.isfinite(drawn_RK)
    count_R = known.sum(axis=1)
    total_R = np.where(known, drawn_RK, 0.0).sum(axis=1)
    return np.where(count_R > 0, total_R / np.maximum(count_R, 1), np.nan)
