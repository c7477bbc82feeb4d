"""Sums, distances and singular vectors of large matrices of hidden states, a block of rows at a time, in fp64.

Shapes: N samples, D hidden size, K concepts.
"""

from __future__ import annotations

import numpy as np

BLOCK = 4096  # rows at once
DENSE = 1500  # the shorter side up to which a singular value decomposition is dense


def distances(x_ND: np.ndarray, centres_KD: np.ndarray) -> np.ndarray:
    """Euclidean distances (N, K) in fp64, a block of rows at a time."""
    from scipy.spatial.distance import cdist

    found = np.empty((len(x_ND), len(centres_KD)))
    for start in range(0, len(x_ND), BLOCK):
        found[start : start + BLOCK] = cdist(np.asarray(x_ND[start : start + BLOCK], dtype=np.float64), centres_KD)
    return found


def concept_means(x_ND: np.ndarray, assignment_N: np.ndarray, K: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean row of each concept (K, D), zeros for an empty one, and the counts (K,)."""
    counts_K = np.bincount(assignment_N, minlength=K)
    sums_KD = group_sums(x_ND, assignment_N, K)
    return sums_KD / np.maximum(counts_K, 1)[:, None], counts_K


def group_sums(x_ND: np.ndarray, group_N: np.ndarray, groups: int) -> np.ndarray:
    """Sum of the rows of each group (groups, D) in fp64, a block of rows at a time."""
    from scipy.sparse import csr_array

    total = np.zeros((groups, x_ND.shape[1]))
    for start in range(0, len(x_ND), BLOCK):
        block_ND = np.asarray(x_ND[start : start + BLOCK], dtype=np.float64)
        of = group_N[start : start + BLOCK]
        total += csr_array((np.ones(len(of)), (of, np.arange(len(of)))), shape=(groups, len(of))) @ block_ND
    return total


def singular_vectors(x_ND: np.ndarray, rank: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest singular values (rank,) and right singular vectors (rank, D).

    Exact up to DENSE rows or columns; above, the seeded randomised method of Halko et al. (SIAM Review 2011).
    """
    if min(x_ND.shape) <= DENSE:
        from scipy.linalg import svd

        _, values, right = svd(x_ND, full_matrices=False)
        return values[:rank], right[:rank]
    from sklearn.utils.extmath import randomized_svd

    _, values, right = randomized_svd(x_ND, rank, n_iter=7, random_state=seed)
    return values, right
