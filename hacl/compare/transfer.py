"""Whether a concept's shift carries over to held-out samples of the same concept: recovery without a second dictionary.

The target of recovery proper is a concept that another dictionary found among the tuned states, so it also measures how
stable dictionaries are. Here held-out samples get the original's concept they lie in, and the target is their mean
shift: T_k = 1 - |E_k - D_k|^2 / |E_k|^2 with E_k the mean shift of the held-out samples of concept k.

Shapes: N samples, D hidden size, K concepts, R draws.
"""

from __future__ import annotations

import numpy as np

from hacl.compare.recovery_split import Split, drawn_means, recovery
from hacl.representations.row_algebra import concept_means


def transfer(
    a_ND: np.ndarray, b_ND: np.ndarray, image_N: np.ndarray, split: Split, weight_RG: np.ndarray, *, min_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """T with own shifts and with the global one (K,), and both when images are drawn again (R, K); NaN if undefined.

    image_N, weight_RG: as in `recovery_draws`. Undefined where the concept moved in no fitted sample, or fewer than
    `min_size` held-out samples lie in it.
    """
    K, carried_n = len(split.status_K), split.carried_held
    shift_nD = b_ND[split.held].astype(np.float64) - a_ND[split.held]
    target_KD, size_K = concept_means(shift_nD, carried_n, K)
    moved_K = np.array([row["status"] == "ok" for row in split.shifts.stats])
    known_K = moved_K & (size_K >= min_size)
    own_K = np.where(known_K, recovery(target_KD, split.shifts.concepts_KD), np.nan)
    common_K = np.where(known_K, recovery(target_KD, split.shifts.global_D[None]), np.nan)
    own_RK, common_RK = (np.full((len(weight_RG), K), np.nan) for _ in range(2))
    if not len(weight_RG):
        return own_K, common_K, own_RK, common_RK
    fit_n, held_n = image_N[split.fit], image_N[split.held]
    fitted_nD = b_ND[split.fit].astype(np.float64) - a_ND[split.fit]
    everything_RD = drawn_means(fitted_nD, fit_n, weight_RG)
    for k in np.flatnonzero(known_K):
        mine, theirs = split.concept_fit == k, carried_n == k
        target_RD = drawn_means(shift_nD[theirs], held_n[theirs], weight_RG)
        own_RK[:, k] = recovery(target_RD, drawn_means(fitted_nD[mine], fit_n[mine], weight_RG))
        common_RK[:, k] = recovery(target_RD, everything_RD)
    return own_K, common_K, own_RK, common_RK
