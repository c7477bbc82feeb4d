"""How far two sets of states are apart, beyond their means: probes, nearest neighbours, energy distance.

Every measure keeps rows of one image together: in a fold, out of each other's neighbourhoods, in a permutation.

Shapes: N rows, P width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hacl.training.state_measures import unit

NEIGHBOURS = 10
MOST_PAIRS = 600  # of a distance matrix


def probe_folds(
    x: np.ndarray, labels: np.ndarray, groups: np.ndarray, *, folds: int = 5, seed: int = 0
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(rows, scores) of each held-out fold of a logistic probe; rows of one group are never split.

    x may be sparse. Folds without both labels on either side are left out; with too few groups there are none.
    """
    from scipy.sparse import issparse
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = min(folds, len(set(groups.tolist())))
    if folds < 2 or len(set(labels.tolist())) < 2:
        return []
    found = []
    for train, test in GroupKFold(folds, shuffle=True, random_state=seed).split(x, labels, groups):
        if len(set(labels[train].tolist())) == len(set(labels[test].tolist())) == 2:
            probe = make_pipeline(StandardScaler(with_mean=not issparse(x)), LogisticRegression(C=0.1, max_iter=500))
            probe.fit(x[train], labels[train])
            found.append((test, probe.decision_function(x[test])))
    return found


def folds_auc(folds: Sequence[tuple[np.ndarray, np.ndarray]], labels: np.ndarray) -> float | None:
    """Mean AUC over held-out folds; one AUC of all held-out scores would compare folds of different scale."""
    return float(_weighted_auc(folds, labels, np.ones((1, len(labels))))[0]) if folds else None


def probe_auc(x: np.ndarray, labels: np.ndarray, groups: np.ndarray, *, folds: int = 5, seed: int = 0) -> float | None:
    """AUC of a logistic probe on held-out folds; rows of one group are never split. None with too few groups.

    0.5 is chance; below it, few groups made the folds contradict each other (a word false of one image is true of the
    next), which is no better than chance.
    """
    return folds_auc(probe_folds(x, labels, groups, folds=folds, seed=seed), labels)


def probe_interval(
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    draws: int = 200,
    seed: int = 0,
) -> tuple[float, float] | None:
    """95% interval of the probe's AUC over groups (images) of the held-out folds; fitted probes stay as they are."""
    if not folds:
        return None
    rng = np.random.default_rng(seed)
    names, owner = np.unique(groups, return_inverse=True)
    weights = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)[:, owner]
    found = _weighted_auc(folds, labels, weights)
    found = found[np.isfinite(found)]
    return tuple(np.percentile(found, [2.5, 97.5]).tolist()) if len(found) else None


def _weighted_auc(folds, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over folds of the AUC with row weights, for each draw. weights: [draws, N] -> [draws], NaN where undefined.

    A draw without both labels in a fold leaves that fold out.
    """
    found = []
    for rows, scores in folds:
        order = np.argsort(scores, kind="stable")
        _, starts = np.unique(scores[order], return_index=True)  # ties count half
        drawn, positive = weights[:, rows[order]].astype(float), labels[rows[order]] > 0
        above = np.add.reduceat(drawn * positive, starts, axis=1)
        below = np.add.reduceat(drawn * ~positive, starts, axis=1)
        wins = (above * (np.cumsum(below, axis=1) - below / 2)).sum(axis=1)
        pairs = above.sum(axis=1) * below.sum(axis=1)
        found.append(np.divide(wins, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0))
    table = np.array(found)
    usable = np.isfinite(table)
    counts = usable.sum(axis=0)
    return np.where(counts > 0, np.where(usable, table, 0).sum(axis=0) / np.maximum(counts, 1), np.nan)


def other_label_share(
    x: np.ndarray, labels: np.ndarray, groups: np.ndarray, *, neighbours: int = NEIGHBOURS
) -> np.ndarray:
    """Share of each row's nearest neighbours by cosine with another label, (N); rows of its own group do not count.

    Give as many rows of one label as of the other in every group: then 0.5 is a full mixture and 0 two separate sets.
    NaN where a row has no candidate.
    """
    rows = unit(x)
    similarity = rows @ rows.T
    similarity[groups[:, None] == groups[None, :]] = -np.inf
    k = min(neighbours, len(rows) - 1)
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    usable = np.isfinite(np.take_along_axis(similarity, nearest, axis=1))
    other = (labels[nearest] != labels[:, None]) & usable
    counts = usable.sum(axis=1)
    return np.where(counts > 0, other.sum(axis=1) / np.maximum(counts, 1), np.nan)


def energy_distance(
    a: np.ndarray, b: np.ndarray, groups: np.ndarray | None = None, *, permutations: int = 999, seed: int = 0
) -> tuple[float, float]:
    """Energy coefficient of two paired samples and its permutation p.

    a, b: (N, P), row i of both belongs together; groups (N): pairs that share an image, swapped together. The
    coefficient is (2 E|a-b| - E|a-a'| - E|b-b'|) / 2 E|a-b| (Székely and Rizzo, 2013): 0 for equal distributions, 1 for
    two different points. The p value asks how often swapping a and b inside pairs, which leaves each image's content on
    both sides, gives as much; at most 600 pairs, drawn by seed.
    """
    rng = np.random.default_rng(seed)
    groups = np.arange(len(a)) if groups is None else np.asarray(groups)
    if len(a) > MOST_PAIRS:
        kept = np.sort(rng.permutation(len(a))[:MOST_PAIRS])
        a, b, groups = a[kept], b[kept], groups[kept]
    aa, bb, ab = _distances(a, a), _distances(b, b), _distances(a, b)
    between = 2 * float(ab.mean())
    if between <= 1e-12:
        return 0.0, 1.0
    # With labels s = +-1 for "swapped or not", the distance is a quadratic form in s.
    form = -(aa + bb - ab - ab.T) / len(a) ** 2
    observed = float(form.sum())
    _, owner = np.unique(groups, return_inverse=True)
    sign = (rng.integers(0, 2, (permutations, owner.max() + 1)) * 2.0 - 1.0)[:, owner]
    swapped = np.einsum("pi,pi->p", sign @ form, sign)
    p = (1 + int((swapped >= observed - 1e-12).sum())) / (1 + permutations)
    return max(0.0, observed / between), p


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0.0))
