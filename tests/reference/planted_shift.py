"""Hidden states of two models with concepts and shifts that are known: the ground truth of every shift measure.

Centres c_k = scale * q_k and shifts S_k = s_k * q_(K + k) on orthonormal directions q; a = c_k + noise,
b = a + S_k + noise. With `uniform` every concept has the same shift.

Shapes: N samples, D hidden size, K concepts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Planted:
    """a_ND, b_ND: states of the original and the tuned model; label_N: true concept; shift_KD: true shifts; groups: the
    image of each row.
    """

    a_ND: np.ndarray
    b_ND: np.ndarray
    label_N: np.ndarray
    centre_KD: np.ndarray
    shift_KD: np.ndarray
    groups: np.ndarray
    noise_b: float


def planted_shift(
    seed: int = 0,
    *,
    K: int = 6,
    D: int = 64,
    per_concept: int = 200,
    noise_a: float = 0.3,
    noise_b: float = 0.2,
    scale: float = 5.0,
    shortest: float = 1.5,
    longest: float = 4.5,
    uniform: bool = False,
    rows_per_image: int = 1,
) -> Planted:
    """Rows in random order; neighbouring rows of one concept share an image where there are several per image."""
    rng = np.random.default_rng(seed)
    basis_DD, _ = np.linalg.qr(rng.normal(size=(D, D)))
    centre_KD = scale * basis_DD[:, :K].T
    length_K = np.linspace(shortest, longest, K)
    shift_KD = length_K[:, None] * basis_DD[:, K : 2 * K].T
    if uniform:
        shift_KD = np.repeat(shift_KD[K // 2][None], K, axis=0)
    label_N = np.repeat(np.arange(K), per_concept)
    groups = np.array([f"image-{row // rows_per_image}" for row in range(len(label_N))])
    order = rng.permutation(len(label_N))
    label_N, groups = label_N[order], groups[order]
    a_ND = centre_KD[label_N] + noise_a * rng.normal(size=(len(label_N), D))
    b_ND = a_ND + shift_KD[label_N] + noise_b * rng.normal(size=(len(label_N), D))
    return Planted(a_ND, b_ND, label_N, centre_KD, shift_KD, groups, noise_b)
