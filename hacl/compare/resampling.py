"""Splits and bootstrap draws that keep the rows of an image together.

Shapes: N rows, G images, R draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hacl.evaluation.statistics import Interval


def numbered_groups(groups: Sequence[str] | np.ndarray) -> tuple[np.ndarray, int]:
    """(number of each row's image (N,), number of images); numbers follow the sorted names."""
    names, number_N = np.unique(np.asarray(groups), return_inverse=True)
    return number_N, len(names)


def split_rows(groups: Sequence[str] | np.ndarray, holdout: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows to fit on, rows held out), split by image.

    Raises:
        ValueError: a share that is not between 0 and 1, or fewer than two images.
    """
    number_N, count = numbered_groups(groups)
    if not 0 < holdout < 1 or count < 2:
        raise ValueError(f"holdout={holdout} of {count} images; needs a share between 0 and 1 and at least two images")
    held = np.random.default_rng(seed).permutation(count)[: min(count - 1, max(1, round(holdout * count)))]
    is_held_N = np.isin(number_N, held)
    return np.flatnonzero(~is_held_N), np.flatnonzero(is_held_N)


def image_draws(images: int, draws: int, seed: int) -> np.ndarray:
    """How often each image is drawn, (R, G) fp64."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=draws).astype(float)


def centred_interval(
    estimate: float | None, drawn: np.ndarray, *, items: int, runs: int = 1, level: float = 0.95
) -> Interval:
    """The estimate with the spread of the draws around their own mean.

    Resampling adds noise to every mean of states, and noise lengthens a difference of means: lengths of draws lie above
    the estimate, recoveries below it, by what a plain percentile interval would take for information. The spread of
    the draws is right, their place is not; so the interval is put where the estimate is. It speaks of the expected
    value of the statistic at this number of images.
    """
    drawn = np.asarray(drawn, dtype=float)
    drawn = drawn[np.isfinite(drawn)]
    if estimate is None or not np.isfinite(estimate):
        return Interval(None, None, None, runs, items, level)
    if len(drawn) < 2 or items < 2:
        return Interval(float(estimate), None, None, runs, items, level)
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(drawn - drawn.mean(), [tail, 100 - tail]) + estimate
    return Interval(float(estimate), float(low), float(high), runs, items, level)
