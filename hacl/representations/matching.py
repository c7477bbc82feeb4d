"""Which concept of one model corresponds to which of another, by cosine, and how clearly.

Two rules of arXiv 2501.03012: the nearest concept (section 4.1; several may share one) and the assignment with the
largest total cosine (appendix A.1; each used once).

Shapes: K concepts of the first model, J of the second, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LOW_MARGIN = 0.05
RULES = ("nearest", "assignment")


@dataclass(frozen=True)
class Match:
    """One concept of the first model and its partner.

    Attributes:
        a, b: indices; b is None where the second model has too few concepts.
        cosine: of the two. runner_up: the largest cosine with any other concept of the second model.
        margin: cosine - runner_up, negative where the assignment had to take a second choice; None without another.
        low: the margin is under the threshold, so another run may well match differently.
    """

    a: int
    b: int | None
    cosine: float | None
    runner_up: float | None
    margin: float | None
    low: bool


def cosines(u_KD: np.ndarray, v_JD: np.ndarray) -> np.ndarray:
    """Cosine of every pair (K, J) in fp64; 0 with a vector of length zero."""
    u_KD, v_JD = np.asarray(u_KD, dtype=np.float64), np.asarray(v_JD, dtype=np.float64)
    length_K, length_J = np.linalg.norm(u_KD, axis=1), np.linalg.norm(v_JD, axis=1)
    scale_KJ = np.outer(length_K, length_J)
    return np.divide(u_KD @ v_JD.T, scale_KJ, out=np.zeros_like(scale_KJ), where=scale_KJ > 0)


def match_concepts(
    u_KD: np.ndarray, v_JD: np.ndarray, *, rule: str = "assignment", low_margin: float = LOW_MARGIN
) -> list[Match]:
    """The partner of each concept of u among those of v, in the order of u.

    rule: "assignment" (one to one; with K > J some have none) or "nearest".

    Raises:
        ValueError: an unknown rule, no concept, or widths that differ.
    """
    if rule not in RULES:
        raise ValueError(f"matching rule {rule!r}; known: {', '.join(RULES)}")
    if not len(u_KD) or not len(v_JD) or u_KD.shape[1] != v_JD.shape[1]:
        raise ValueError(f"cannot match concepts of shape {u_KD.shape} with {v_JD.shape}; needs some, of one width")
    similarity_KJ = cosines(u_KD, v_JD)
    if rule == "nearest":
        partner = dict(enumerate(similarity_KJ.argmax(axis=1).tolist()))
    else:
        from scipy.optimize import linear_sum_assignment

        rows, columns = linear_sum_assignment(-similarity_KJ)
        partner = dict(zip(rows.tolist(), columns.tolist(), strict=True))
    return [_match(k, partner.get(k), similarity_KJ[k], low_margin) for k in range(len(u_KD))]


def _match(a: int, b: int | None, similarity_J: np.ndarray, low_margin: float) -> Match:
    if b is None:
        return Match(a, None, None, None, None, False)
    best = float(similarity_J[b])
    if len(similarity_J) == 1:
        return Match(a, b, best, None, None, False)
    other = float(np.delete(similarity_J, b).max())
    return Match(a, b, best, other, best - other, best - other < low_margin)
