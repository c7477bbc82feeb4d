"""Controls of concept-level recovery: shifts that should give nothing, or nothing concept-specific, back.

Every control yields shifts for the same concepts, matched to the same tuned concepts, so its R stands in one table.

Shapes: N samples, D hidden size, K concepts.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hacl.compare.plain import Row
from hacl.compare.recovery_split import Split
from hacl.representations.row_algebra import concept_means

LABELS = {
    "none": "no shift (alpha = 0): R = 0 by definition",
    "global": "one global shift for all concepts",
    "shuffled": "concept labels shuffled over the samples before shifts are averaged",
    "permuted": "tuned states paired with other samples",
    "random": "random directions as long as the concept's shift",
    "other": "another concept's shift (mean over all others)",
}
SHUFFLES = 20  # draws of the shuffled and permuted controls


def control_rows(a_ND: np.ndarray, b_ND: np.ndarray, split: Split, *, draws: int = 200, seed: int = 0) -> list[Row]:
    """One row per control: mean R over concepts, pooled R, the standard deviation over draws, R of each concept.

    draws: random directions. Pooled R is 1 - sum |gap - shift|^2 / sum |gap|^2 over concepts, which one concept with a
    small gap cannot spoil.
    """
    rows = []
    for name, label in LABELS.items():
        drawn = np.array([split.recovery(shift_KD) for shift_KD in _shifts(name, a_ND, b_ND, split, draws, seed)])
        rows.append({"control": name, "label": label, **summary(drawn, split)})
    return rows


def summary(drawn_RK: np.ndarray, split: Split) -> Row:
    """Mean over the concepts with a known R, and its standard deviation over draws; None where there is none."""
    ok = split.ok_K
    empty: Row = {"R": None, "pooled_R": None, "sd": None, "draws": len(drawn_RK), "R_by_concept": [None] * len(ok)}
    if not ok.any() or not len(drawn_RK):
        return empty
    ok = ok & np.isfinite(drawn_RK).all(axis=0)
    if not ok.any():
        return empty
    mean_R = drawn_RK[:, ok].mean(axis=1)
    weight_k = (split.gap_KD[ok] ** 2).sum(axis=1)
    by_concept = [float(value) if use else None for value, use in zip(drawn_RK.mean(axis=0), ok, strict=True)]
    return {
        "R": float(mean_R.mean()),
        "pooled_R": float((drawn_RK[:, ok] @ weight_k).mean() / weight_k.sum()),
        "sd": float(mean_R.std(ddof=1)) if len(mean_R) > 1 else None,
        "draws": len(drawn_RK),
        "R_by_concept": by_concept,
    }


def _shifts(name: str, a_ND, b_ND, split: Split, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Shifts (K, D) of every draw of a control."""
    rng = np.random.default_rng([seed, sorted(LABELS).index(name)])
    own_KD, (K, D) = split.shifts.concepts_KD, split.before_KD.shape
    if name == "none":
        yield np.zeros((K, D))
    elif name == "global":
        yield np.broadcast_to(split.shifts.global_D, (K, D))
    elif name == "shuffled":
        delta_ND = b_ND[split.fit].astype(np.float64) - a_ND[split.fit]
        for _ in range(SHUFFLES):
            yield concept_means(delta_ND, rng.permutation(split.concept_fit), K)[0]
    elif name == "permuted":
        for _ in range(SHUFFLES):
            other_ND = b_ND[rng.permutation(split.fit)]
            yield concept_means(other_ND, split.concept_fit, K)[0] - split.before_KD
    elif name == "random":
        for _ in range(draws):
            direction_KD = rng.normal(size=(K, D))
            direction_KD /= np.linalg.norm(direction_KD, axis=1, keepdims=True)
            yield direction_KD * np.linalg.norm(own_KD, axis=1, keepdims=True)
    else:
        usable = np.flatnonzero(split.ok_K)
        for step in range(1, len(usable)):
            shift_KD = np.zeros((K, D))
            shift_KD[usable] = own_KD[np.roll(usable, step)]
            yield shift_KD
