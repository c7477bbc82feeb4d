"""Which pairs a direction is averaged over: crossing of a question's two orders, distances, instance selection.

Source: arXiv 2510.11190 (NeurIPS 2025), phase I, equations (1) and (2); crossing: ylhz/FlexAC@3188958.

Shapes: L layers, N pairs, M instances, D hidden size, K selected. No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hacl.steering.association.features import AssociationFeatures

DISTANCES = ("cosine", "euclidean", "norm_euclidean")
SELECTIONS = ("topk_per_layer", "topk_mean_layers", "topk_window", "random", "all", "bottomk")
TINY = 1e-12


@dataclass(frozen=True)
class Instances:
    """What is selected from. differences (L, M, D), fp64: associative minus grounded; distances (L, M); ids: M, of a
    pair, or of a group where both orders were crossed; groups: M; grounded_norm (L): mean length of a grounded state.
    """

    differences: np.ndarray
    distances: np.ndarray
    ids: tuple[str, ...]
    groups: tuple[str, ...]
    grounded_norm: np.ndarray
    crossed: bool


def make_instances(features: AssociationFeatures, distance: str = "cosine", cross: str = "auto") -> Instances:
    """Differences and distances of every pair, or of every group with its two orders crossed.

    cross: "on" takes (associative of one order - grounded of the other), both ways, and averages the two: the mean
    vector is the same, but the distances no longer measure which letter was answered. "off" leaves pairs as they are;
    "auto" crosses where every group has exactly the two orders.

    Raises:
        ValueError: an unknown distance, or "on" with a group that has not exactly the two orders (named).
    """
    if distance not in DISTANCES or cross not in ("auto", "on", "off"):
        raise ValueError(f"distance={distance!r}, cross={cross!r}: distances are {', '.join(DISTANCES)}; auto, on, off")
    grounded, associative = features.grounded.astype(np.float64), features.associative.astype(np.float64)
    norm = np.linalg.norm(grounded, axis=-1).mean(axis=1)
    rows, ids, groups = [[i] for i in range(len(features))], features.ids, features.groups
    partner = np.arange(len(features))
    if cross != "off" and (found := _orders(features, strict=cross == "on")) is not None:
        rows, ids = [list(members) for members in found.values()], tuple(found)
        groups = ids
        for first, second in rows:
            partner[first], partner[second] = second, first
    delta, apart = associative - grounded[:, partner], pair_distances(associative, grounded[:, partner], distance)
    return Instances(
        np.stack([delta[:, members].mean(axis=1) for members in rows], axis=1),
        np.stack([apart[:, members].mean(axis=1) for members in rows], axis=1),
        tuple(ids), tuple(groups), norm, crossed=len(rows[0]) == 2,
    )  # fmt: skip


def _orders(features: AssociationFeatures, strict: bool) -> dict[str, tuple[int, int]] | None:
    """{group: (row of order 0, row of order 1)}; None where a group has something else."""
    members: dict[str, list[int]] = {}
    for row, group in enumerate(features.groups):
        members.setdefault(group, []).append(row)
    for group, rows in members.items():
        if sorted(features.orders[row] for row in rows) != [0, 1]:
            if strict:
                found = [features.orders[row] for row in rows]
                raise ValueError(f"group {group!r} has orders {found}; crossing needs one pair of order 0 and one of 1")
            return None
    return {group: tuple(sorted(rows, key=lambda row: features.orders[row])) for group, rows in members.items()}


def pair_distances(a: np.ndarray, b: np.ndarray, kind: str) -> np.ndarray:
    """(...) between states (..., D): 1 - cosine, Euclidean, or Euclidean as a share of the length of b."""
    if kind == "cosine":
        lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
        return 1.0 - (a * b).sum(-1) / np.maximum(lengths, TINY)
    euclidean = np.linalg.norm(a - b, axis=-1)
    return euclidean if kind == "euclidean" else euclidean / np.maximum(np.linalg.norm(b, axis=-1), TINY)


def select(distances_LM: np.ndarray, how: str, k: int | None, window: Sequence[int] = (), seed: int = 0) -> np.ndarray:
    """Indices (L, K) of the chosen instances of each layer, those further apart first.

    how: "topk_per_layer" by the layer's own distance (paper, equation 2); "topk_mean_layers" one set for all, by the
    mean over layers (released code); "topk_window" by the mean over the layers at `window` (positions); "bottomk" the
    nearest by the mean over layers; "random"; "all" (k is then None).

    Raises:
        ValueError: an unknown selection, k outside 1..M, k with "all", or a window missing, or given without use.
    """
    layers, count = distances_LM.shape
    if how not in SELECTIONS:
        raise ValueError(f"select={how!r}: expected one of {', '.join(SELECTIONS)}")
    if (how == "all") != (k is None):
        raise ValueError(f"select={how!r} with k={k}: 'all' takes no k, every other selection needs one")
    if k is not None and not 1 <= k <= count:
        raise ValueError(f"k={k}: from 1 to the {count} instances there are")
    if (how == "topk_window") != bool(len(window)):
        raise ValueError("select='topk_window', and no other, needs window=[layers]")
    if how == "topk_per_layer":
        return np.argsort(-distances_LM, axis=1, kind="stable")[:, :k]
    if how == "all":
        order = np.arange(count)
    elif how == "random":
        order = np.random.default_rng(seed).permutation(count)[:k]
    else:
        mean = (distances_LM[list(window)] if how == "topk_window" else distances_LM).mean(axis=0)
        order = np.argsort(mean if how == "bottomk" else -mean, kind="stable")[:k]
    return np.tile(order, (layers, 1))
