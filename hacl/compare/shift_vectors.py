"""Shift vectors between an original and a tuned model: of every concept, of all samples, and of low rank.

Section 3 of arXiv 2501.03012: d_m = b_m - a_m for each sample, D_k the mean over the samples of concept k.

Shapes: N samples, D hidden size, K concepts, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hacl.compare.plain import Row, interval_columns, plain
from hacl.compare.resampling import centred_interval, image_draws, numbered_groups
from hacl.compare.shift_sums import ShiftSums
from hacl.representations.array_files import check_made_for, read_arrays, write_arrays
from hacl.representations.grounding import WordRule, ground_words
from hacl.representations.readout import Readout
from hacl.representations.row_algebra import singular_vectors

FORMAT, NAME = "hacl-shift-vectors-1", "shift_vectors"
AGGREGATES = ("mean", "median", "trimmed")
TRIM = 0.1  # share cut off at either end
MIN_SIZE = 5
INTERVALS = ("magnitude", "relative_magnitude", "consistency", "explained")


@dataclass(frozen=True)
class ShiftVectors:
    """Shifts from the original to the tuned model, in the units of the hidden states; all fp64.

    Attributes:
        global_D: of all samples. concepts_KD: of each concept, zeros where it is not usable.
        residual_KD: concepts_KD minus global_D: what is specific to the concept; zeros where it is not usable.
        counts_K: samples of each concept. usable_K: it has at least `min_size` of them.
        basis_RD: orthonormal directions of the samples' shifts, the strongest first. energy_R: share of their squared
            length in the first 1, 2, ... directions.
        stats: one row per concept (see `ShiftSums.statistics`), with "status": ok, small, empty or unmoved.
        overall: the same for all samples together, and the shares that the global and the concept shifts explain.
        settings: aggregate, min_size, seed and so on. provenance: layer, selector, fingerprints of both models, ...
    """

    global_D: np.ndarray
    concepts_KD: np.ndarray
    residual_KD: np.ndarray
    counts_K: np.ndarray
    usable_K: np.ndarray
    basis_RD: np.ndarray
    energy_R: np.ndarray
    stats: list[Row]
    overall: Row
    settings: dict[str, Any]
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Everything but the vectors."""
        named = {"settings": self.settings, "provenance": self.provenance, "overall": self.overall}
        return plain({**named, "concepts": self.stats, "energy": self.energy_R})

    def tables(self) -> dict[str, list[Row]]:
        """Rows for CSV: concepts, and the energy of the basis."""
        energy = [{"rank": rank + 1, "energy": value} for rank, value in enumerate(self.energy_R.tolist())]
        return {"concepts": [{"concept": "all", **self.overall}, *self.stats], "energy": energy}

    def words(self, readout: Readout, rule: WordRule | None = None, *, norm_mode: str = "fold") -> list[Row]:
        """Words that each shift makes likelier ("more") and, by its negative, less likely ("less").

        norm_mode: "none" for shifts after the final norm, else "fold" (see `grounding.logits`).
        """
        names = ["all", *range(len(self.concepts_KD))]
        vectors = np.concatenate([self.global_D[None], self.concepts_KD])
        more = ground_words(vectors, readout, rule, norm_mode=norm_mode)
        less = ground_words(-vectors, readout, rule, norm_mode=norm_mode)
        return [{"concept": k, "more": up, "less": down} for k, up, down in zip(names, more, less, strict=True)]

    def save(self, folder: Path | str) -> Path:
        """Write `shift_vectors.safetensors` and `shift_vectors.json`."""
        arrays = {"global": self.global_D, "concepts": self.concepts_KD, "residual": self.residual_KD}
        arrays |= {"counts": self.counts_K, "usable": self.usable_K, "basis": self.basis_RD, "energy": self.energy_R}
        return write_arrays(folder, NAME, arrays, {"format": FORMAT, **self.to_json()})

    @classmethod
    def load(cls, folder: Path | str, **expected: Any) -> ShiftVectors:
        """Read saved shifts. expected: entries of the provenance that must agree, such as original="3f...", layer="12".

        Raises:
            FileNotFoundError, ValueError: none there, damaged, or made for other models or another layer.
        """
        content, arrays = read_arrays(folder, NAME, FORMAT)
        check_made_for(folder, content, expected)
        names = ("global", "concepts", "residual", "counts", "usable", "basis", "energy")
        rest = (content[name] for name in ("concepts", "overall", "settings", "provenance"))
        return cls(*(arrays[name] for name in names), *rest)


def shift_vectors(
    a_ND: np.ndarray,
    b_ND: np.ndarray,
    assignment_N: np.ndarray,
    K: int,
    *,
    aggregate: str = "mean",
    min_size: int = MIN_SIZE,
    groups: Sequence[str] | np.ndarray | None = None,
    bootstrap: int = 1000,
    rank: int = 32,
    seed: int = 0,
    provenance: Mapping[str, Any] | None = None,
) -> ShiftVectors:
    """Measure the shifts of paired hidden states.

    Args:
        a_ND, b_ND: states of the same samples in the original and the tuned model, row by row.
        assignment_N: concept of each row, 0 to K - 1 (of the original's states: `Dictionary.assign`).
        aggregate: how a concept's shifts become one: "mean", or per coordinate "median" or "trimmed" (10% at either
            end) of the differences.
        min_size: concepts with fewer rows are reported but get no vector.
        groups: image of each row (None: every row its own). The bootstrap draws whole images.
        bootstrap: draws (0 for none); intervals are given for the mean only.
        rank: directions of the low-rank basis.

    Raises:
        ValueError: rows that do not pair, values that are not finite, concepts outside 0 to K - 1, unknown aggregate.
    """
    a_ND, b_ND, assignment_N = _checked(a_ND, b_ND, assignment_N, K, aggregate)
    groups = np.arange(len(a_ND)) if groups is None else groups
    image_N, images = numbered_groups(groups)
    if len(image_N) != len(a_ND):
        raise ValueError(f"{len(image_N)} image ids for {len(a_ND)} rows; give one each")
    sums, everything = _sums(a_ND, b_ND, assignment_N, K)
    usable_K = sums.count_K >= min_size
    shift_KD = _aggregated(a_ND, b_ND, assignment_N, sums.means(), usable_K, aggregate)
    global_1D = _aggregated(a_ND, b_ND, np.zeros_like(assignment_N), everything.means(), np.array([True]), aggregate)
    stats = sums.statistics(shift_KD)
    draws = bootstrap if aggregate == "mean" else 0
    rows = []
    for k in range(K):
        mine = np.flatnonzero(assignment_N == k)
        row = _row(stats, k, usable_K[k], sums)
        if draws and usable_K[k]:
            row |= _intervals(a_ND[mine], b_ND[mine], image_N[mine], stats, k, draws, seed)
        rows.append({"concept": k, **row, "images": len(np.unique(image_N[mine]))})
    overall_stats = everything.statistics(global_1D)
    overall = _row(overall_stats, 0, True, everything)
    if draws:
        overall |= _intervals(a_ND, b_ND, image_N, overall_stats, 0, draws, seed)
    overall |= {"images": images, "explained_by_concepts": _explained_by_concepts(sums, shift_KD, usable_K)}
    basis_RD, energy_R = _basis(a_ND, b_ND, rank, seed, float(everything.square_K[0]))
    residual_KD = np.where(usable_K[:, None], shift_KD - global_1D, 0.0)
    settings = {"aggregate": aggregate, "min_size": min_size, "bootstrap": draws, "rank": rank, "seed": seed, "K": K}
    return ShiftVectors(
        global_1D[0],
        shift_KD,
        residual_KD,
        sums.count_K.astype(np.int64),
        usable_K,
        basis_RD,
        energy_R,
        plain(rows),
        plain(overall),
        settings,
        dict(provenance or {}),
    )


def _checked(a_ND, b_ND, assignment_N, K: int, aggregate: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a_ND, b_ND, assignment_N = np.asarray(a_ND), np.asarray(b_ND), np.asarray(assignment_N)
    if aggregate not in AGGREGATES:
        raise ValueError(f"aggregate {aggregate!r}; known: {', '.join(AGGREGATES)}")
    if a_ND.ndim != 2 or a_ND.shape != b_ND.shape or len(assignment_N) != len(a_ND) or not len(a_ND):
        raise ValueError(
            f"original {a_ND.shape}, tuned {b_ND.shape}, {len(assignment_N)} concepts; needs the same rows of one width"
        )
    if assignment_N.min() < 0 or assignment_N.max() >= K:
        raise ValueError(f"concepts {assignment_N.min()} to {assignment_N.max()}; K={K} allows 0 to {K - 1}")
    for name, states in (("original", a_ND), ("tuned", b_ND)):
        if not np.isfinite(states).all():
            row = int(np.flatnonzero(~np.isfinite(states).all(axis=1))[0])
            raise ValueError(f"{name} model, row {row}: not finite; capture it again, in another dtype")
    return a_ND, b_ND, assignment_N


def _sums(a_ND, b_ND, assignment_N, K: int) -> tuple[ShiftSums, ShiftSums]:
    sums = ShiftSums.of(a_ND, b_ND, assignment_N, K)
    return sums, sums.weighted(np.ones((1, K)))


def _aggregated(a_ND, b_ND, assignment_N, mean_KD, usable_K, aggregate: str) -> np.ndarray:
    """The vector of each set (K, D), zeros where it is not usable."""
    shift_KD = np.where(usable_K[:, None], mean_KD, 0.0)
    if aggregate == "mean":
        return shift_KD
    from scipy.stats import trim_mean

    for k in np.flatnonzero(usable_K):
        rows = assignment_N == k
        delta_nD = b_ND[rows].astype(np.float64) - a_ND[rows]
        shift_KD[k] = np.median(delta_nD, axis=0) if aggregate == "median" else trim_mean(delta_nD, TRIM, axis=0)
    return shift_KD


def _row(stats: Mapping[str, np.ndarray], k: int, usable: bool, sums: ShiftSums) -> Row:
    n = int(sums.count_K[k])
    if not n or not usable:
        return {"n": n, "status": "small" if n else "empty", **dict.fromkeys([*stats, "mean_length"])}
    status = "ok" if sums.moved_K[k] else "unmoved"
    found = {name: float(values[k]) for name, values in stats.items()}
    return {"n": n, "status": status, **found, "mean_length": float(sums.length_K[k]) / n}


def _intervals(a_ND, b_ND, image_N, stats, k: int, draws: int, seed: int) -> Row:
    image_n, images = numbered_groups(image_N)
    by_image = ShiftSums.of(a_ND, b_ND, image_n, images)
    drawn = by_image.weighted(image_draws(images, draws, seed)).statistics()
    found: Row = {}
    for name in INTERVALS:
        found |= interval_columns(name, centred_interval(float(stats[name][k]), drawn[name], items=images))
    return found


def _explained_by_concepts(sums: ShiftSums, shift_KD: np.ndarray, usable_K: np.ndarray) -> float | None:
    """Share of all squared shifts that the concepts' vectors take away; unusable concepts take none."""
    total = float(sums.square_K.sum())
    taken_K = 2 * np.einsum("kd,kd->k", sums.delta_KD, shift_KD) - sums.count_K * (shift_KD**2).sum(axis=1)
    return float(taken_K[usable_K].sum()) / total if total > 0 else None


def _basis(a_ND, b_ND, rank: int, seed: int, total: float) -> tuple[np.ndarray, np.ndarray]:
    if total == 0 or rank == 0:
        return np.zeros((0, a_ND.shape[1])), np.zeros(0)
    values, basis_RD = singular_vectors(b_ND.astype(np.float64) - a_ND, min(rank, *a_ND.shape), seed)
    kept = values > values[0] * 1e-12
    return basis_RD[kept], np.minimum(np.cumsum(values[kept] ** 2) / total, 1.0)
