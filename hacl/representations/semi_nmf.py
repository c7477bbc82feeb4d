"""Semi-non-negative matrix factorisation and the projection on fixed atoms.

X (N, D) is approximated by V U with activations V (N, K) >= 0 and free atoms U (K, D). Multiplicative updates of Ding,
Li and Jordan (IEEE TPAMI 2010), section 3.1: the objective never rises. The factors are not identified in general;
atoms come back where some samples carry one atom alone.

Shapes: N samples, D hidden size, K atoms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TINY = 1e-12


@dataclass(frozen=True)
class SemiNmf:
    """atoms_KD (U), activations_NK (V >= 0), objective: its value before the first and after every iteration."""

    atoms_KD: np.ndarray
    activations_NK: np.ndarray
    objective: tuple[float, ...]


def fit_semi_nmf(
    x_ND: np.ndarray,
    K: int,
    *,
    seed: int = 0,
    iterations: int = 400,
    tolerance: float = 1e-7,
    l1: float = 0.0,
    unit_norm: bool = False,
) -> SemiNmf:
    """Minimise |X - VU|^2 / 2 + l1 (sum V + |U|^2 / 2) from a k-means start.

    tolerance: stop when the objective falls by less than this share; l1: weight of the penalty. The ridge on the atoms
    goes with the L1 on the activations: without it the penalty could be escaped by long atoms and short activations.
    unit_norm: at the end, give every atom length 1 and move its length into the activations.

    Raises:
        ValueError: fewer rows than atoms, or a negative penalty.
    """
    from sklearn.cluster import KMeans

    x_ND = np.asarray(x_ND, dtype=np.float64)
    if not 1 <= K <= len(x_ND) or l1 < 0:
        raise ValueError(f"semi_nmf: {K} atoms from {len(x_ND)} rows with l1={l1}; needs 1 <= K <= rows and l1 >= 0")
    labels = KMeans(K, n_init=10, random_state=seed).fit_predict(x_ND)
    v_NK = np.full((len(x_ND), K), 0.2)
    v_NK[np.arange(len(x_ND)), labels] += 1.0
    u_KD = _atoms(x_ND, v_NK, l1)
    objective = [_objective(x_ND, v_NK, u_KD, l1)]
    for _ in range(iterations):
        v_NK = _activations(x_ND, v_NK, u_KD, l1)
        u_KD = _atoms(x_ND, v_NK, l1)
        objective.append(_objective(x_ND, v_NK, u_KD, l1))
        if objective[-2] - objective[-1] <= tolerance * max(objective[-2], TINY):
            break
    if unit_norm:
        length_K = np.linalg.norm(u_KD, axis=1)
        length_K[length_K == 0] = 1.0
        u_KD, v_NK = u_KD / length_K[:, None], v_NK * length_K
    return SemiNmf(u_KD, v_NK, tuple(objective))


def nonnegative_projection(x_ND: np.ndarray, atoms_KD: np.ndarray) -> np.ndarray:
    """Activations V (N, K) >= 0 with the least |x - v U| for fixed atoms, exactly.

    With the thin QR factors U^T = QR the distance is |Q^T x - R v| plus a constant, so each row is a K by K problem
    whatever D is.
    """
    from scipy.optimize import nnls

    q_DK, r_KK = np.linalg.qr(np.asarray(atoms_KD, dtype=np.float64).T)
    target_NK = np.asarray(x_ND, dtype=np.float64) @ q_DK
    found = [nnls(r_KK, row, maxiter=50 * len(atoms_KD))[0] for row in target_NK]
    return np.array(found).reshape(len(target_NK), len(atoms_KD))


def _atoms(x_ND: np.ndarray, v_NK: np.ndarray, l1: float) -> np.ndarray:
    gram_KK = v_NK.T @ v_NK + l1 * np.eye(v_NK.shape[1])
    return np.linalg.pinv(gram_KK, hermitian=True) @ (v_NK.T @ x_ND)


def _activations(x_ND: np.ndarray, v_NK: np.ndarray, u_KD: np.ndarray, l1: float) -> np.ndarray:
    cross_NK, gram_KK = x_ND @ u_KD.T, u_KD @ u_KD.T
    up = np.maximum(cross_NK, 0) + v_NK @ np.maximum(-gram_KK, 0)
    down = np.maximum(-cross_NK, 0) + v_NK @ np.maximum(gram_KK, 0) + l1
    return v_NK * np.sqrt(up / (down + TINY))


def _objective(x_ND: np.ndarray, v_NK: np.ndarray, u_KD: np.ndarray, l1: float) -> float:
    penalty = l1 * (v_NK.sum() + 0.5 * (u_KD**2).sum())
    return float(0.5 * ((x_ND - v_NK @ u_KD) ** 2).sum() + penalty)
