"""What kind of change tuning made: one shift, a shift per concept, a rotation, a low-rank or a full linear map.

A full fine-tune may rotate the space, which no additive shift explains. Every map is fitted on some images and measured
on others, by the share of the squared shifts |b - a|^2 that it takes away.

Shapes: N samples, D hidden size, P working dimensions, R rank, K concepts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hacl.compare.plain import Row
from hacl.compare.resampling import split_rows
from hacl.evaluation.ridge import fit_ridge
from hacl.representations.dictionaries import Dictionary
from hacl.representations.row_algebra import concept_means, singular_vectors

WORKING = 512  # dimensions in which rotations and ridge maps are sought
VALIDATION = 1 / 3  # of the fitted images, to choose the ridge penalty


@dataclass(frozen=True)
class LinearMap:
    """b = a + offset + ((a - mean) basis) weight: the change is linear in the state and affine.

    mean_D, offset_D; basis_DP: orthonormal working directions; weight_PD.
    """

    mean_D: np.ndarray
    offset_D: np.ndarray
    basis_DP: np.ndarray
    weight_PD: np.ndarray

    def predict(self, a_ND: np.ndarray) -> np.ndarray:
        """The tuned model's states as this map sees them (N, D)."""
        a_ND = np.asarray(a_ND, dtype=np.float64)
        return a_ND + self.offset_D + ((a_ND - self.mean_D) @ self.basis_DP) @ self.weight_PD


def fit_rotation(a_ND: np.ndarray, b_ND: np.ndarray, *, dimensions: int = WORKING, seed: int = 0) -> LinearMap:
    """Orthogonal Procrustes (Schönemann, Psychometrika 1966): the rotation about the means that takes a closest to b.

    dimensions: it is sought in the leading directions of both sets together; the rest stays as it is.
    """
    mean_a, mean_b, basis_DP = _working(a_ND, b_ND, dimensions, seed)
    left, _, right = np.linalg.svd(((a_ND - mean_a) @ basis_DP).T @ ((b_ND - mean_b) @ basis_DP))
    turn_PP = left @ right - np.eye(basis_DP.shape[1])
    return LinearMap(mean_a, mean_b - mean_a, basis_DP, turn_PP @ basis_DP.T)


def fit_ridge_map(
    a_ND: np.ndarray,
    b_ND: np.ndarray,
    groups: Sequence[str] | np.ndarray,
    *,
    rank: int | None = None,
    dimensions: int = WORKING,
    seed: int = 0,
) -> LinearMap:
    """Ridge regression of b - a on a, its penalty chosen on a third of the images; rank: kept directions of the output.

    The truncation keeps the leading directions of the fitted values (reduced-rank regression; Izenman, Journal of
    Multivariate Analysis 1975).
    """
    fit, validation = split_rows(groups, VALIDATION, seed)
    mean_a, _, basis_DP = _working(a_ND[fit], b_ND[fit], dimensions, seed)
    x_NP, y_ND = (a_ND - mean_a) @ basis_DP, np.asarray(b_ND, dtype=np.float64) - a_ND
    found = fit_ridge(x_NP[fit], y_ND[fit], x_NP[validation], y_ND[validation])
    weight_PD = found.weight
    if rank is not None:
        _, kept_RD = singular_vectors((x_NP[fit] - found.mean_x) @ weight_PD, rank, seed)
        weight_PD = (weight_PD @ kept_RD.T) @ kept_RD
    return LinearMap(mean_a + basis_DP @ found.mean_x, found.mean_y, basis_DP, weight_PD)


def map_rows(
    a_ND: np.ndarray,
    b_ND: np.ndarray,
    groups: Sequence[str] | np.ndarray,
    K: int,
    *,
    rank: int = 16,
    holdout: float = 0.5,
    dimensions: int = WORKING,
    seed: int = 0,
) -> list[Row]:
    """Share of the held-out squared shifts explained by each kind of map; negative is worse than no change at all.

    None everywhere if the held-out states did not move.

    Raises:
        ValueError: too few images to fit, validate and hold out.
    """
    a_ND, b_ND, groups = np.asarray(a_ND, float), np.asarray(b_ND, float), np.asarray(groups, dtype=str)
    fit, held = split_rows(groups, holdout, seed)
    a_fit, b_fit, a_held = a_ND[fit], b_ND[fit], a_ND[held]
    shift_ND = b_ND[held] - a_held
    total = float((shift_ND**2).sum())
    dictionary = Dictionary.fit(a_fit, min(K, len(fit)), seed=seed)
    concept_KD, _ = concept_means(b_fit - a_fit, dictionary.assign(a_fit), len(dictionary.concepts_KD))
    ridge = {"dimensions": dimensions, "seed": seed}
    predicted = {
        "one shift": a_held + (b_fit - a_fit).mean(axis=0),
        "a shift per concept": a_held + concept_KD[dictionary.assign(a_held)],
        "rotation and shift": fit_rotation(a_fit, b_fit, **ridge).predict(a_held),
        f"ridge map of rank {rank}": fit_ridge_map(a_fit, b_fit, groups[fit], rank=rank, **ridge).predict(a_held),
        "ridge map": fit_ridge_map(a_fit, b_fit, groups[fit], **ridge).predict(a_held),
    }
    return [
        {"map": name, "explained": 1.0 - float(((b_ND[held] - b) ** 2).sum()) / total if total > 0 else None,
         "rows_fit": len(fit), "rows_held": len(held)}
        for name, b in predicted.items()
    ]  # fmt: skip


def _working(a_ND, b_ND, dimensions: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means of both and orthonormal leading directions (D, P) of both sets about their means."""
    mean_a, mean_b = a_ND.mean(axis=0), b_ND.mean(axis=0)
    both_ND = np.concatenate([a_ND - mean_a, b_ND - mean_b])
    _, right = singular_vectors(both_ND, min(dimensions, *both_ND.shape), seed)
    return mean_a, mean_b, right.T
