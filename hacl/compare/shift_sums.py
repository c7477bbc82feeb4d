"""Sums from which every statistic of a set of shifts follows, and those statistics.

One pass over the rows, a block at a time, accumulated in fp64: mean pairwise cosine needs no table of pairs.

Shapes: N rows, D hidden size, K sets (concepts, images), R draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hacl.representations.row_algebra import BLOCK, group_sums

STATISTICS = ("magnitude", "magnitude_unbiased", "relative_magnitude", "consistency", "pairwise_cosine", "explained")


@dataclass
class ShiftSums:
    """Sums over the rows m of each set, with the shift d_m = b_m - a_m.

    count_K: rows; moved_K: rows whose shift is not zero; delta_KD: d_m; unit_KD: d_m / |d_m|; length_K: |d_m|;
    square_K: |d_m|^2; original_K: |a_m|.
    """

    count_K: np.ndarray
    moved_K: np.ndarray
    delta_KD: np.ndarray
    unit_KD: np.ndarray
    length_K: np.ndarray
    square_K: np.ndarray
    original_K: np.ndarray

    @classmethod
    def zeros(cls, K: int, D: int) -> ShiftSums:
        one, two = np.zeros(K), np.zeros((K, D))
        return cls(one, one.copy(), two, two.copy(), one.copy(), one.copy(), one.copy())

    @classmethod
    def of(cls, a_ND: np.ndarray, b_ND: np.ndarray, set_N: np.ndarray, K: int) -> ShiftSums:
        """Sums of rows that lie in memory or are mapped from a file, a block at a time."""
        sums = cls.zeros(K, a_ND.shape[1])
        for start in range(0, len(a_ND), BLOCK):
            rows = slice(start, start + BLOCK)
            sums.add(a_ND[rows], b_ND[rows], set_N[rows])
        return sums

    def add(self, a_ND: np.ndarray, b_ND: np.ndarray, set_N: np.ndarray) -> None:
        """Count one block of rows; set_N: the set of each."""
        K = len(self.count_K)
        a_ND = np.asarray(a_ND, dtype=np.float64)
        delta_ND = np.asarray(b_ND, dtype=np.float64) - a_ND
        length_N = np.linalg.norm(delta_ND, axis=1)
        moved_N = length_N > 0
        unit_ND = delta_ND / np.where(moved_N, length_N, 1.0)[:, None]
        self.count_K += np.bincount(set_N, minlength=K)
        self.moved_K += np.bincount(set_N, weights=moved_N, minlength=K)
        self.delta_KD += group_sums(delta_ND, set_N, K)
        self.unit_KD += group_sums(unit_ND, set_N, K)
        self.length_K += np.bincount(set_N, weights=length_N, minlength=K)
        self.square_K += np.bincount(set_N, weights=length_N**2, minlength=K)
        self.original_K += np.bincount(set_N, weights=np.linalg.norm(a_ND, axis=1), minlength=K)

    def weighted(self, weight_RK: np.ndarray) -> ShiftSums:
        """Sums of R unions of the sets, each set counted as often as its weight says."""
        names = ("count_K", "moved_K", "delta_KD", "unit_KD", "length_K", "square_K", "original_K")
        return ShiftSums(*(weight_RK @ getattr(self, name) for name in names))

    def means(self) -> np.ndarray:
        """Mean shift of each set (K, D), zeros for an empty one."""
        return self.delta_KD / np.maximum(self.count_K, 1)[:, None]

    def statistics(self, shift_KD: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Statistics of each set (K,), NaN where undefined.

        shift_KD: the vector that stands for the set; its mean shift by default.

        magnitude: |D|. magnitude_unbiased: the length that |D| would have without sampling noise, the root of the mean
        dot product of two different rows (mean shifts only; 0 if that is negative). relative_magnitude: |D| over the
        mean |a|. consistency: mean cosine of the rows' shifts with D (arXiv 2501.03012, appendix A.5). pairwise_cosine:
        mean cosine of two different rows, (|sum of unit shifts|^2 - n) / (n (n - 1)). explained: share of the rows'
        squared shifts that D takes away, 1 - sum |d - D|^2 / sum |d|^2; n |D|^2 / sum |d|^2 for the mean. Rows that did
        not move have no cosine and are left out of the two means of cosines.
        """
        shift_KD = self.means() if shift_KD is None else shift_KD
        n, moved, square = self.count_K, self.moved_K, self.square_K
        along_K = np.einsum("kd,kd->k", self.delta_KD, shift_KD)
        magnitude_K = np.where(n > 0, np.linalg.norm(shift_KD, axis=1), np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            dot_K = (np.einsum("kd,kd->k", self.delta_KD, self.delta_KD) - square) / (n * (n - 1))
            found = {
                "magnitude": magnitude_K,
                "magnitude_unbiased": np.sqrt(np.maximum(dot_K, 0.0)),
                "relative_magnitude": magnitude_K / (self.original_K / n),
                "consistency": np.einsum("kd,kd->k", self.unit_KD, shift_KD) / (moved * magnitude_K),
                "pairwise_cosine": (np.einsum("kd,kd->k", self.unit_KD, self.unit_KD) - moved) / (moved * (moved - 1)),
                "explained": (2 * along_K - n * magnitude_K**2) / square,
            }
        return {name: np.where(np.isfinite(values), values, np.nan) for name, values in found.items()}
