"""The per-concept table of recovery, the curve over alpha, and overlaps of words and images.

Shapes: N samples, D hidden size, K concepts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hacl.compare.plain import Row, interval_columns
from hacl.compare.recovery_split import Split, recovery
from hacl.compare.resampling import centred_interval
from hacl.representations.grounding import WordRule, ground_words, most_activating, overlap
from hacl.representations.readout import Readout
from hacl.representations.row_algebra import distances

NOISY = 0.5  # a noise ceiling under this flags a row
GEOMETRY = (
    "R_held",
    "R_held_low",
    "R_held_high",
    "R_global",
    "noise_ceiling",
    "cosine_before",
    "cosine_after",
    "gain",
    "headroom_gain",
    "alpha_best",
)
FROM_SHIFT = (
    "n",
    "magnitude",
    "magnitude_unbiased",
    "relative_magnitude",
    "consistency",
    "pairwise_cosine",
    "explained",
)


def concept_rows(split: Split, own_draws: np.ndarray, images: int, *, parity: bool = False) -> list[Row]:
    """One row per concept: sizes, match, recovery with its interval, cosines, best alpha, statistics, flags.

    own_draws: (draws, K) from `recovery_draws`. parity: add upstream's normalised improvements of cosine and distance,
    which are unstable where the cosine or the distance before is near zero.

    noise_ceiling: R that a perfect shift is expected to reach at these sample sizes. alpha_best: the alpha of the least
    distance, <D, gap> / |D|^2. headroom_gain: gain over 1 - cosine before.
    """
    own_K, common_K = split.recovery(split.shifts.concepts_KD), split.recovery(split.shifts.global_D[None])
    rows = []
    for k, (status, match) in enumerate(zip(split.status_K, split.matches, strict=True)):
        row: Row = {"concept": k, "status": status, **{key: split.shifts.stats[k][key] for key in FROM_SHIFT}}
        row |= {"matched": None, "n_matched": None, "match_cosine": None, "margin": None, "flags": []}
        if match is not None and match.b is not None:
            size = int((split.concept_held == match.b).sum())
            row |= {"matched": match.b, "n_matched": size, "match_cosine": match.cosine, "margin": match.margin}
            row["flags"] = ["low margin"] if match.low else []
        row |= dict.fromkeys(GEOMETRY)
        if status == "ok":
            row |= interval_columns("R_held", centred_interval(own_K[k], own_draws[:, k], items=images))
            row |= _geometry(split, k, parity)
            row["R_global"] = float(common_K[k])
            row["flags"] += ["noisy gap"] if row["noise_ceiling"] is not None and row["noise_ceiling"] < NOISY else []
        elif status != "ok":
            row["flags"] += [status]
        rows.append(row)
    return rows


def _geometry(split: Split, k: int, parity: bool) -> Row:
    before_D, after_D, shift_D = split.before_KD[k], split.after_KD[k], split.shifts.concepts_KD[k]
    gap_D = after_D - before_D
    gap = float(np.linalg.norm(gap_D))
    before, after = _cosine(after_D, before_D), _cosine(after_D, before_D + shift_D)
    ceiling = 1.0 - float(split.floor_K[k]) / gap**2
    found: Row = {
        "noise_ceiling": ceiling if np.isfinite(ceiling) else None,
        "cosine_before": before,
        "cosine_after": after,
        "gain": None if before is None or after is None else after - before,
        "alpha_best": float(shift_D @ gap_D / (shift_D @ shift_D)),
    }
    known = found["gain"] is not None
    found["headroom_gain"] = found["gain"] / (1.0 - before) if known and before < 1.0 - 1e-12 else None
    if parity:
        closer = gap - float(np.linalg.norm(gap_D - shift_D))
        found["normalized_improved_distance"] = closer / gap
        found["normalized_improved_cosine"] = found["gain"] / before if known and before else None
    return found


def _cosine(a_D: np.ndarray, b_D: np.ndarray) -> float | None:
    length = float(np.linalg.norm(a_D) * np.linalg.norm(b_D))
    return float(a_D @ b_D) / length if length else None


def alpha_rows(split: Split, alphas: Sequence[float]) -> list[Row]:
    """Mean R and mean cosine over concepts for each alpha, with concept shifts and with the global shift."""
    ok, rows = split.ok_K, []
    gap_kD, after_kD, before_kD = split.gap_KD[ok], split.after_KD[ok], split.before_KD[ok]
    for alpha in alphas:
        row: Row = {"alpha": float(alpha)}
        for name, shift_KD in (("concept", split.shifts.concepts_KD[ok]), ("global", split.shifts.global_D[None])):
            moved_kD = before_kD + alpha * shift_KD
            lengths = np.linalg.norm(after_kD, axis=1) * np.linalg.norm(moved_kD, axis=1)
            cosine_k = np.einsum("kd,kd->k", after_kD, moved_kD)[lengths > 0] / lengths[lengths > 0]
            row[f"R_{name}"] = float(recovery(gap_kD, alpha * shift_KD).mean()) if ok.any() else None
            row[f"cosine_{name}"] = float(cosine_k.mean()) if len(cosine_k) else None
        rows.append(row)
    return rows


def word_columns(split: Split, readout: Readout, rule: WordRule | None, norm_mode: str) -> list[Row]:
    """Words of each concept before and after the shift and of the tuned concept, and their T-Overlap with the latter.

    All are read through one LM head, the one given. The denominator is the number of words of the tuned concept.
    """
    vectors = (split.before_KD, split.before_KD + split.shifts.concepts_KD, split.after_KD)
    before, shifted, after = (ground_words(vector_KD, readout, rule, norm_mode=norm_mode) for vector_KD in vectors)
    rows = []
    for k, status in enumerate(split.status_K):
        row: Row = {"words_original": before[k], "words_shifted": shifted[k], "words_tuned": after[k]}
        row |= dict.fromkeys(("t_overlap_before", "t_overlap_after", "t_overlap_of"))
        if status == "ok":
            row |= _overlaps("t_overlap", after[k], before[k], shifted[k])
        rows.append(row)
    return rows


def image_columns(split: Split, b_ND: np.ndarray, groups: Sequence[str] | np.ndarray, count: int) -> list[Row]:
    """Most activating images before and after the shift against those of the tuned concept.

    All three are the images of the *same* held-out tuned states nearest to the concept (arXiv 2501.03012 compares
    different feature sources on the two sides, which cannot be compared).
    """
    held_nD, names = b_ND[split.held], np.asarray(groups, dtype=str)[split.held].tolist()
    vectors = (split.before_KD, split.before_KD + split.shifts.concepts_KD, split.after_KD)
    found = []
    for vector_KD in vectors:
        top = most_activating(-distances(held_nD, vector_KD), count, names)
        found.append([[names[row] for row in rows] for rows in top])
    rows = []
    for k, status in enumerate(split.status_K):
        row: Row = dict.fromkeys(("mas_overlap_before", "mas_overlap_after", "mas_overlap_of", "top_images"))
        if status == "ok":
            row |= _overlaps("mas_overlap", found[2][k], found[0][k], found[1][k])
            row["top_images"] = found[2][k][:5]
        rows.append(row)
    return rows


def _overlaps(name: str, reference: Sequence[str], before: Sequence[str], after: Sequence[str]) -> Row:
    first, second = overlap(reference, before), overlap(reference, after)
    return {f"{name}_before": first.percent, f"{name}_after": second.percent, f"{name}_of": first.of}
