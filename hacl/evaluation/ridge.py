"""Closed-form ridge regression from vision features to text embeddings: what contrastive tuning must beat.

If a linear map fitted in a second finds the right caption more often than a tuned model, the tuning has not used what
the features carry.

Shapes: N samples, Dv input width, P output width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

ALPHAS = tuple(10.0**e for e in range(-3, 7))


@dataclass(frozen=True)
class Ridge:
    """Centred linear map. scores: regularisation -> validation score it was picked by."""

    mean_x: np.ndarray
    mean_y: np.ndarray
    weight: np.ndarray
    alpha: float
    scores: dict[float, float]

    def predict(self, x: np.ndarray) -> np.ndarray:
        """(N, Dv) -> (N, P)."""
        return (np.asarray(x, dtype=np.float64) - self.mean_x) @ self.weight + self.mean_y


def fit_ridge(
    x: np.ndarray,
    y: np.ndarray,
    validation_x: np.ndarray,
    validation_y: np.ndarray,
    *,
    alphas: Sequence[float] = ALPHAS,
    score: Callable[[np.ndarray, np.ndarray], float] | None = None,
) -> Ridge:
    """Fit for every regularisation by one SVD and keep the one with the best validation score.

    x (N, Dv), y (N, P): one row per sample (repeat an image's features for each of its captions, or average them);
    alphas multiply the mean squared singular value of x, so they do not depend on its scale;
    score(predicted, wanted): higher is better, default minus the mean squared error.

    Raises:
        ValueError: fewer than two rows, or rows that do not match.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(x) != len(y) or len(x) < 2:
        raise ValueError(f"ridge: {len(x)} inputs and {len(y)} outputs; needs the same number, at least two")
    score = score or (lambda predicted, wanted: -float(((predicted - wanted) ** 2).mean()))
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    left, singular, right = np.linalg.svd(x - mean_x, full_matrices=False)
    target = left.T @ (y - mean_y)
    scale = float((singular**2).mean())
    best, scores = None, {}
    for alpha in alphas:
        weight = right.T @ ((singular / (singular**2 + alpha * scale + 1e-12))[:, None] * target)
        candidate = Ridge(mean_x, mean_y, weight, alpha, scores)
        scores[alpha] = float(score(candidate.predict(validation_x), np.asarray(validation_y, dtype=np.float64)))
        if best is None or scores[alpha] > scores[best.alpha]:
            best = candidate
    return best
