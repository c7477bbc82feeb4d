"""One split of concept-level recovery: concepts and shifts from some images, the tuned model's concepts from others.

Concepts are means of hidden states over their samples for every dictionary method: centres of k-means are that already,
and directions (PCA, NMF, ...) have no length that a shift could be added to.

Shapes: N samples, D hidden size, K concepts of the original, J of the tuned model, G images, R draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hacl.compare.shift_vectors import ShiftVectors, shift_vectors
from hacl.representations.dictionaries import Dictionary
from hacl.representations.matching import LOW_MARGIN, Match, cosines, match_concepts
from hacl.representations.row_algebra import concept_means, group_sums
from hacl.representations.stability import partition_agreement

UNMOVED = 1e-6  # of the mean length of a state


@dataclass(frozen=True)
class Options:
    """How concepts are learnt and matched; see `concept_recovery`."""

    method: str = "kmeans"
    aggregate: str = "mean"
    min_size: int = 5
    match: str = "assignment"
    match_centred: bool = False
    low_margin: float = LOW_MARGIN
    dictionary: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Split:
    """What recovery needs of one split.

    fit, held: rows on either side (the same rows in the in-sample variant). before_KD: concepts of the original (fit).
    shifts: measured on fit. after_KD: the matched concept of the tuned model (held), zeros where there is none.
    status_K: ok, unmoved, small, empty or unmatched. matches: by concept, None where it takes no part. concept_fit,
    carried_held: concepts of the fit and of the held rows by the original's dictionary, of their original states.
    concept_held: concepts of the held rows by the tuned model's dictionary. agreement: adjusted Rand index of the two
    partitions of the held rows. floor_K: squared length that sampling noise alone leaves after a perfect shift.
    tuned_JD: the tuned model's concepts (held) of sufficient size. similarity_KJ: cosines of the original's with all
    concepts of the tuned model.
    """

    fit: np.ndarray
    held: np.ndarray
    before_KD: np.ndarray
    shifts: ShiftVectors
    after_KD: np.ndarray
    status_K: list[str]
    matches: list[Match | None]
    concept_fit: np.ndarray
    concept_held: np.ndarray
    carried_held: np.ndarray
    agreement: float
    floor_K: np.ndarray
    tuned_JD: np.ndarray
    similarity_KJ: np.ndarray

    @property
    def ok_K(self) -> np.ndarray:
        return np.array([status == "ok" for status in self.status_K])

    @property
    def gap_KD(self) -> np.ndarray:
        """From the original's concept to the tuned model's, zeros where there is no such pair."""
        return np.where(self.ok_K[:, None], self.after_KD - self.before_KD, 0.0)

    def recovery(self, shift_KD: np.ndarray) -> np.ndarray:
        """R of each concept under these shifts (K,), NaN where it is undefined."""
        return recovery(self.gap_KD, shift_KD)


def recovery(gap: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """1 - |gap - shift|^2 / |gap|^2 over the last axis; NaN for a gap of zero."""
    square = (gap**2).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(square > 0, 1.0 - ((gap - shift) ** 2).sum(axis=-1) / square, np.nan)


def make_split(
    a_ND: np.ndarray,
    b_ND: np.ndarray,
    groups: Sequence[str] | np.ndarray,
    K: int,
    fit: np.ndarray,
    held: np.ndarray,
    options: Options,
    seed: int,
    learnt: Dictionary | None = None,
) -> Split:
    """Learn concepts and shifts on `fit`, the tuned model's concepts on `held`, and match them.

    learnt: the original's dictionary of the fit rows, where it is known already.
    """
    learn = {"method": options.method, "seed": seed, **options.dictionary}
    original = learnt or Dictionary.fit(a_ND[fit], K, **learn)
    tuned = Dictionary.fit(b_ND[held], K, **learn)
    concept_fit, concept_held = original.assign(a_ND[fit]), tuned.assign(b_ND[held])
    carried_held = original.assign(a_ND[held])
    before_KD, _ = concept_means(a_ND[fit], concept_fit, K)
    candidates_KD, sizes_K = concept_means(b_ND[held], concept_held, K)
    shifts = shift_vectors(
        a_ND[fit],
        b_ND[fit],
        concept_fit,
        K,
        aggregate=options.aggregate,
        min_size=options.min_size,
        groups=np.asarray(groups)[fit],
        bootstrap=0,
        rank=0,
    )
    offsets = (a_ND[fit].mean(axis=0), b_ND[held].mean(axis=0)) if options.match_centred else (0.0, 0.0)
    usable, offered = np.flatnonzero(shifts.usable_K), np.flatnonzero(sizes_K >= options.min_size)
    matches = _match(before_KD - offsets[0], candidates_KD - offsets[1], usable, offered, options)
    after_KD = np.array([candidates_KD[m.b] if m and m.b is not None else np.zeros_like(before_KD[0]) for m in matches])
    scale = float(np.linalg.norm(a_ND[fit], axis=1).mean())
    status_K = [_status(row, match, before, after, shift, scale) for row, match, before, after, shift in
                zip(shifts.stats, matches, before_KD, after_KD, shifts.concepts_KD, strict=True)]  # fmt: skip
    held_noise = _mean_noise(b_ND[held], concept_held, K)
    after_noise = np.array([held_noise[m.b] if m and m.b is not None else np.nan for m in matches])
    return Split(
        fit,
        held,
        before_KD,
        shifts,
        after_KD,
        status_K,
        matches,
        concept_fit,
        concept_held,
        carried_held,
        partition_agreement(carried_held, concept_held),
        _mean_noise(b_ND[fit], concept_fit, K) + after_noise,
        candidates_KD[offered],
        cosines(before_KD - offsets[0], candidates_KD - offsets[1]),
    )


def _match(before_KD, candidates_KD, usable, offered, options: Options) -> list[Match | None]:
    """Matches of the usable concepts with the offered ones, in the numbering of all."""
    matches: list[Match | None] = [None] * len(before_KD)
    if len(usable) and len(offered):
        found = match_concepts(
            before_KD[usable], candidates_KD[offered], rule=options.match, low_margin=options.low_margin
        )
        for k, match in zip(usable.tolist(), found, strict=True):
            b = None if match.b is None else int(offered[match.b])
            matches[k] = Match(k, b, match.cosine, match.runner_up, match.margin, match.low)
    return matches


def tuned_again(split: Split, fitted: Split, options: Options) -> np.ndarray:
    """R of each concept (K,) with the tuned model's own concepts of the fitted images in place of the shifted ones.

    fitted: the in-sample variant of the split. Its tuned concepts are matched with the held-out ones directly.
    """
    found = np.full(len(split.status_K), np.nan)
    ok = np.flatnonzero(split.ok_K)
    if not len(ok) or not len(fitted.tuned_JD):
        return found
    centre_D = fitted.tuned_JD.mean(axis=0) if options.match_centred else 0.0
    matches = match_concepts(split.after_KD[ok] - centre_D, fitted.tuned_JD - centre_D, rule=options.match)
    for k, match in zip(ok.tolist(), matches, strict=True):
        if match.b is not None:
            found[k] = recovery(split.gap_KD[k], fitted.tuned_JD[match.b] - split.before_KD[k])
    return found


def _status(row, match: Match | None, before_D, after_D, shift_D, scale: float) -> str:
    if row["status"] != "ok":
        return row["status"]
    if match is None or match.b is None:
        return "unmatched"
    still = min(np.linalg.norm(after_D - before_D), np.linalg.norm(shift_D)) <= UNMOVED * scale
    return "unmoved" if still else "ok"


def _mean_noise(x_ND: np.ndarray, concept_N: np.ndarray, K: int) -> np.ndarray:
    """Expected squared error of each concept's mean (K,): the variance within it over its size; NaN below two rows."""
    means_KD, counts_K = concept_means(x_ND, concept_N, K)
    inside_N = ((np.asarray(x_ND, dtype=np.float64) - means_KD[concept_N]) ** 2).sum(axis=1)
    squares_K = np.bincount(concept_N, weights=inside_N, minlength=K)
    return np.where(counts_K > 1, squares_K / np.maximum((counts_K - 1) * counts_K, 1), np.nan)


def recovery_draws(
    a_ND: np.ndarray, b_ND: np.ndarray, image_N: np.ndarray, split: Split, weight_RG: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """R of each concept with its own and with the global shift when images are drawn again, each (R, K).

    image_N: number of each row's image; weight_RG: how often each image is drawn, the same draws in every split, since
    all splits see the same images. Which sample belongs to which concept, and which concepts match, stays. NaN where a
    concept lost all its samples or takes no part.
    """
    fit_n, held_n = image_N[split.fit], image_N[split.held]
    a_nD, b_nD = a_ND[split.fit], b_ND[split.fit]
    own, common = (np.full((len(weight_RG), len(split.status_K)), np.nan) for _ in range(2))
    if not len(weight_RG):
        return own, common
    everything_RD = drawn_means(b_nD, fit_n, weight_RG) - drawn_means(a_nD, fit_n, weight_RG)
    for k in np.flatnonzero(split.ok_K):
        mine = split.concept_fit == k
        theirs = split.concept_held == split.matches[k].b
        before_RD = drawn_means(a_nD[mine], fit_n[mine], weight_RG)
        shifted_RD = drawn_means(b_nD[mine], fit_n[mine], weight_RG)
        gap_RD = drawn_means(b_ND[split.held][theirs], held_n[theirs], weight_RG) - before_RD
        own[:, k] = recovery(gap_RD, shifted_RD - before_RD)
        common[:, k] = recovery(gap_RD, everything_RD)
    return own, common


def drawn_means(x_nD: np.ndarray, image_n: np.ndarray, weight_RG: np.ndarray) -> np.ndarray:
    """Mean of the rows when their images count as the weights say (R, D); NaN where none is left."""
    present, local_n = np.unique(image_n, return_inverse=True)
    weight_Rg = weight_RG[:, present]
    count_R = weight_Rg @ np.bincount(local_n)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (weight_Rg @ group_sums(x_nD, local_n, len(present))) / count_R[:, None]
