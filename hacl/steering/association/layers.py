"""Where association shows: how far grounded and associative states are apart at each layer, and against which null.

Distance grows with depth by itself, so every curve has one that says what no association looks like. Source of the
distances: arXiv 2510.11190 (NeurIPS 2025), section on analysis; nulls, intervals and held-out measures are ours.

Shapes: L layers, N pairs, D hidden size, B bootstrap draws. No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hacl.steering.association.construct import coherence
from hacl.steering.association.features import AssociationFeatures
from hacl.steering.association.select import DISTANCES, TINY, pair_distances

FOLDS = 5


@dataclass(frozen=True)
class LayerAnalysis:
    """rows: one per layer, in the order of the features; suggested: the layers of the best window, None where nothing
    stands out of the null; settings: what was asked for, and what the null is.

    A row holds, each with `_low` and `_high` where it has an interval: cosine, euclidean, norm_euclidean (mean distance
    of a pair); null_* (mean distance of two grounded answers, None without any) and excess_* (their difference);
    mismatched_cosine (an associative state and the grounded one of another group); coherence and coherence_null (95 %
    point under random labels); auc (held-out, of the projection on the mean difference); effective_rank of the
    differences; next_cosine (with the vector of the next layer); score (coherence * excess * (2 auc - 1), 0 where one
    of the three does not stand out of its null); depth.
    """

    rows: list[dict]
    suggested: tuple[int | str, ...] | None
    settings: dict


def analyse_layers(
    features: AssociationFeatures,
    *,
    second_grounded: np.ndarray | None = None,
    window: int = 3,
    draws: int = 1000,
    seed: int = 0,
) -> LayerAnalysis:
    """Measure every layer.

    second_grounded: (L, N, D), another independent grounded answer to the same prompts, the null of the distances; by
    default two grounded states of one group are taken where groups have several pairs. window: adjacent layers to
    suggest. Intervals are 95 % percentiles over groups.

    Raises:
        ValueError: fewer than two groups, a null of another shape, or a window wider than the layers there are.
    """
    groups = Groups(features.groups, draws, seed)
    if second_grounded is not None and second_grounded.shape != features.grounded.shape:
        raise ValueError(f"second_grounded has shape {second_grounded.shape}, the features {features.grounded.shape}")
    if not 1 <= window <= len(features.layers):
        raise ValueError(f"window={window}: from 1 to the {len(features.layers)} layers there are")
    partner, kind = _null_partner(features, second_grounded)
    rng = np.random.default_rng(seed)
    mismatch = groups.elsewhere(rng)
    rows, means = [], []
    for at, layer in enumerate(features.layers):  # one layer in fp64 at a time
        grounded_ND, associative_ND = (
            side[at].astype(np.float64) for side in (features.grounded, features.associative)
        )
        delta_ND = associative_ND - grounded_ND
        row = {"layer": layer, "depth": (at + 1) / len(features.layers)}
        other_ND = None
        if partner is not None:
            other_ND = (features.grounded if second_grounded is None else second_grounded)[at][partner]
        row |= _distances(groups, associative_ND, grounded_ND, other_ND)
        row["mismatched_cosine"] = float(pair_distances(associative_ND, grounded_ND[mismatch], "cosine").mean())
        row |= {"coherence": coherence(delta_ND), "coherence_null": _coherence_null(delta_ND, groups, rng)}
        row |= held_out_auc(associative_ND, grounded_ND, features.groups, draws=draws, seed=seed)
        row |= {"effective_rank": effective_rank(delta_ND), "next_cosine": None}
        row["score"] = _score(row)
        rows.append(row)
        means.append(delta_ND.mean(axis=0))
    for row, a_D, b_D in zip(rows, means, means[1:], strict=False):
        row["next_cosine"] = float(a_D @ b_D / max(np.linalg.norm(a_D) * np.linalg.norm(b_D), TINY))
    settings = {"window": window, "draws": draws, "seed": seed, "pairs": len(features), "groups": len(groups.names)}
    settings |= {"null": kind, "provenance": dict(features.provenance)}
    return LayerAnalysis(rows, suggest_window([row["score"] for row in rows], features.layers, window), settings)


def _distances(
    groups: Groups, associative_ND: np.ndarray, grounded_ND: np.ndarray, other_ND: np.ndarray | None
) -> dict[str, float | None]:
    """Mean distances of the pairs, of two grounded states, and the excess, each with its interval."""
    found: dict[str, float | None] = {}
    for kind in DISTANCES:
        pair_N = pair_distances(associative_ND, grounded_ND, kind)
        null_N = None if other_ND is None else pair_distances(other_ND.astype(np.float64), grounded_ND, kind)
        excess_N = None if null_N is None else pair_N - null_N
        for name, values_N in ((kind, pair_N), (f"null_{kind}", null_N), (f"excess_{kind}", excess_N)):
            found |= groups.interval(name, values_N)
    return found


def _score(row: dict) -> float:
    """coherence * excess * (2 auc - 1) of a layer; 0 where one of them does not stand out of its null."""
    excess, excess_low = row["excess_cosine"], row["excess_cosine_low"]
    if excess is None:
        excess = excess_low = row["cosine"]
    auc, auc_low = row["auc"], row["auc_low"]
    if row["coherence"] <= row["coherence_null"] or excess_low <= 0 or auc is None or auc_low <= 0.5:
        return 0.0
    return row["coherence"] * excess * (2 * auc - 1)


def suggest_window(scores: Sequence[float], layers: Sequence[int | str], width: int) -> tuple[int | str, ...] | None:
    """The `width` adjacent layers of the largest mean score; None where all scores are zero."""
    means = np.convolve(scores, np.ones(width) / width, mode="valid")
    best = int(means.argmax())
    return tuple(layers[best : best + width]) if means[best] > 0 else None


def effective_rank(delta_ND: np.ndarray) -> float:
    """exp of the entropy of the normalised singular values (Roy and Vetterli, 2007): 1 for one direction."""
    share = np.linalg.svd(delta_ND, compute_uv=False)
    share = share[share > 0] / max(share.sum(), TINY)
    return float(np.exp(-(share * np.log(share)).sum()))


def held_out_auc(
    associative_ND: np.ndarray,
    grounded_ND: np.ndarray,
    groups: Sequence[str],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, float | None]:
    """{"auc", "auc_low", "auc_high"}: states told apart by their projection on the mean difference of other groups.

    The mean over folds of the share of (associative, grounded) states of two different groups that the projection
    orders rightly; a pair shares its prompt and image, so it does not judge itself. The interval resamples the held-out
    groups. All None with fewer than four groups.
    """
    from sklearn.model_selection import GroupKFold

    names, owner = np.unique(np.asarray(groups), return_inverse=True)
    folds = min(FOLDS, len(names) // 2)
    if folds < 2:
        return {"auc": None, "auc_low": None, "auc_high": None}
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    weights = np.vstack([np.ones(len(owner)), drawn[:, owner]])
    found = []
    for train, test in GroupKFold(folds, shuffle=True, random_state=seed).split(owner, groups=owner):
        direction_D = (associative_ND[train].astype(np.float64) - grounded_ND[train]).mean(axis=0)
        above, below = associative_ND[test] @ direction_D, grounded_ND[test] @ direction_D
        others = (owner[test][:, None] != owner[test]).astype(float)
        wins = ((above[:, None] > below) + 0.5 * (above[:, None] == below)) * others
        won, total = (np.einsum("bi,bi->b", weights[:, test] @ table, weights[:, test]) for table in (wins, others))
        found.append(np.divide(won, total, out=np.full(len(total), np.nan), where=total > 0))
    point, *resampled = _mean_of_known(np.array(found)).tolist()
    low, high = np.nanpercentile(resampled, [2.5, 97.5]).tolist()
    return {"auc": point, "auc_low": low, "auc_high": high}


class Groups:
    """Resampling of whole groups: one draw for all measures, so that their curves can be compared.

    Raises:
        ValueError: fewer than two groups.
    """

    def __init__(self, groups: Sequence[str], draws: int, seed: int):
        self.names, self.owner = np.unique(np.asarray(groups), return_inverse=True)
        count = len(self.names)
        if count < 2:
            raise ValueError(f"{count} group: an analysis needs two at least, to resample and to hold out")
        self.weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)

    def interval(self, name: str, values_N: np.ndarray | None) -> dict[str, float | None]:
        """{name, name_low, name_high} of a mean over pairs; all None for None."""
        keys = (name, f"{name}_low", f"{name}_high")
        if values_N is None:
            return dict.fromkeys(keys)
        sums = np.bincount(self.owner, weights=values_N)
        sizes = np.bincount(self.owner)
        drawn = (self.weights @ sums) / (self.weights @ sizes)
        return dict(zip(keys, (float(values_N.mean()), *np.percentile(drawn, [2.5, 97.5]).tolist()), strict=True))

    def elsewhere(self, rng: np.random.Generator) -> np.ndarray:
        """For every pair the row of one of another group."""
        order = rng.permutation(len(self.names))
        following = np.empty_like(order)
        following[order] = np.roll(order, 1)
        first = np.unique(self.owner, return_index=True)[1]
        return first[following[self.owner]]


def _null_partner(features: AssociationFeatures, second: np.ndarray | None) -> tuple[np.ndarray | None, str]:
    """For every pair the row of its second grounded state, and what that is."""
    if second is not None:
        return np.arange(len(features)), "second grounded answer"
    members: dict[str, list[int]] = {}
    for row, group in enumerate(features.groups):
        members.setdefault(group, []).append(row)
    states_ND = features.grounded[-1]  # pairs of one caption have one and the same grounded state: no second answer
    partner = np.empty(len(features), dtype=np.int64)
    for rows in members.values():
        for place, row in enumerate(rows):
            after = (*rows[place + 1 :], *rows[:place])
            found = next((other for other in after if not np.array_equal(states_ND[other], states_ND[row])), None)
            if found is None:
                return None, "none: give second_grounded, or several grounded answers per group"
            partner[row] = found
    return partner, "another grounded state of the group"


def _coherence_null(delta_ND: np.ndarray, groups: Groups, rng: np.random.Generator, permutations: int = 200) -> float:
    """95 % point of the coherence when the two sides are swapped at random, all pairs of a group together."""
    unit = delta_ND / np.maximum(np.linalg.norm(delta_ND, axis=-1, keepdims=True), TINY)
    signs = (rng.integers(0, 2, (permutations, len(groups.names))) * 2.0 - 1.0)[:, groups.owner]
    return float(np.percentile(np.linalg.norm(signs @ unit / len(unit), axis=-1), 95))


def _mean_of_known(table: np.ndarray) -> np.ndarray:
    known = np.isfinite(table)
    counts = known.sum(axis=0)
    sums = np.where(known, table, 0.0).sum(axis=0)
    return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
