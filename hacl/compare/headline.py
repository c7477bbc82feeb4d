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

    found: one entry per split, all with the same draws of images. Means are over the concepts that are known, then over
    splits. A draw of the images gives one mean over splits; the choice of the splits adds the spread of their mean.
    """
    usable = [one for one in found if np.isfinite(one[0]).any()]
    row: Row = {}
    for name, of_own, of_common in zip(names, (1, 0, 1), (0, 1, -1), strict=True):
        values = [float(np.nanmean(of_own * own_K + of_common * common_K)) for own_K, common_K, _, _ in usable]
        drawn = [known_mean(of_own * own_RK + of_common * common_RK) for _, _, own_RK, common_RK in usable]
        estimate = float(np.mean(values)) if values else None
        mean_R = np.mean(drawn, axis=0) + _split_noise(values, len(drawn[0])) if drawn else np.zeros(0)
        row |= interval_columns(name, centred_interval(estimate, mean_R, items=images, runs=len(values)))
    return row


def _split_noise(values: Sequence[float], draws: int) -> np.ndarray:
    """Deviations of the mean over splits when splits are drawn again (R,), with the spread of n - 1."""
    n = len(values)
    if n < 2:
        return np.zeros(draws)
    deviations = (np.asarray(values) - np.mean(values)) * np.sqrt(n / (n - 1))
    return deviations[np.random.default_rng(n).integers(n, size=(draws, n))].mean(axis=1)


def known_mean(drawn_RK: np.ndarray) -> np.ndarray:
    """Mean of the known values of each draw (R,); NaN where none is known."""
    known = np.isfinite(drawn_RK)
    count_R = known.sum(axis=1)
    total_R = np.where(known, drawn_RK, 0.0).sum(axis=1)
    return np.where(count_R > 0, total_R / np.maximum(count_R, 1), np.nan)
