"""From pairs to directions: general and task vectors, their scale, how stable they are, and the steerer made of them.

Source: arXiv 2510.11190 (NeurIPS 2025), equation (3) and directional integration; ylhz/FlexAC@3188958.

Shapes: L layers, N pairs, M instances, K selected, D hidden size. No torch here, but in `make_steerer`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hacl.steering.association.features import AssociationFeatures
from hacl.steering.association.select import TINY, make_instances, select

CENTRES = ("mean", "geometric_median")
SCALES = ("raw", "unit", "rms")


@dataclass(frozen=True)
class VectorSet:
    """One direction per layer. vectors (L, D), fp64; name: "general" or "task:NAME"; selected: {layer: ids}; stats:
    {layer: {"norm", "coherence", "activation_norm"}}; settings: what made it; provenance: of the features.
    """

    vectors: np.ndarray
    layers: tuple[int | str, ...]
    name: str
    selected: dict[int | str, tuple[str, ...]]
    stats: dict[int | str, dict[str, float]]
    settings: dict[str, Any]
    provenance: dict[str, Any] = field(default_factory=dict)

    def vector(self, layer: int | str) -> np.ndarray:
        """(D). Raises ValueError for a layer that the set does not have."""
        if layer not in self.layers:
            raise ValueError(f"the vector set {self.name!r} has no layer {layer!r}; it has {list(self.layers)}")
        return self.vectors[self.layers.index(layer)]


def build_vector(
    features: AssociationFeatures,
    *,
    select_by: str = "topk_per_layer",
    k: int | None = None,
    distance: str = "cosine",
    cross: str = "auto",
    window: Sequence[int | str] = (),
    trim: float = 0.0,
    center: str = "mean",
    scale: str = "raw",
    name: str = "general",
    leave_out: Sequence[str] = (),
    seed: int = 0,
) -> VectorSet:
    """The mean difference of the selected instances at every layer.

    select_by, k, window, seed: see `select`; distance, cross: see `make_instances`; trim: share cut off at either end
    of every coordinate before the mean, 0 to 0.2; center: "mean" or "geometric_median"; scale: "raw", "unit", or "rms"
    (the mean length of a grounded state at the layer, so that a dial of 1 means the same at every layer); leave_out:
    ids or groups that the vectors will be judged on.

    Raises:
        ValueError: settings out of range, or a k that is not between 1 and the number of instances.
    """
    if center not in CENTRES or scale not in SCALES or not 0 <= trim <= 0.2:
        raise ValueError(f"center={center!r}, scale={scale!r}, trim={trim}: {CENTRES}, {SCALES}, 0 to 0.2")
    if trim and center != "mean":
        raise ValueError("trim belongs to center='mean'; a geometric median needs none")
    strange = [layer for layer in window if layer not in features.layers]
    if strange:
        raise ValueError(f"window: no layer {strange[0]!r}; the features have {list(features.layers)}")
    features = features.without(leave_out) if len(leave_out) else features
    instances = make_instances(features, distance, cross)
    places = [features.layers.index(layer) for layer in window]
    chosen_LK = select(instances.distances, select_by, k, places, seed)
    vectors_LD, stats = [], {}
    for at, layer in enumerate(features.layers):
        delta_KD = instances.differences[at, chosen_LK[at]]
        raw_D = _centre(delta_KD, center, trim)
        stats[layer] = {
            "norm": float(np.linalg.norm(raw_D)),
            "coherence": coherence(delta_KD),
            "activation_norm": float(instances.grounded_norm[at]),
        }
        vectors_LD.append(_scaled(raw_D, scale, stats[layer]["activation_norm"]))
    settings = {
        "select_by": select_by, "k": k, "distance": distance, "cross": instances.crossed, "window": list(window),
        "trim": trim, "center": center, "scale": scale, "seed": seed, "instances": len(instances.ids),
        "left_out": sorted(leave_out),
    }  # fmt: skip
    selected = {
        layer: tuple(instances.ids[i] for i in row) for layer, row in zip(features.layers, chosen_LK, strict=True)
    }
    return VectorSet(np.stack(vectors_LD), features.layers, name, selected, stats, settings, dict(features.provenance))


def coherence(delta_KD: np.ndarray) -> float:
    """Length of the mean of differences of unit length: 1 if all point one way, about 1 / sqrt(K) if none agree."""
    lengths = np.maximum(np.linalg.norm(delta_KD, axis=-1, keepdims=True), TINY)
    return float(np.linalg.norm((delta_KD / lengths).mean(axis=0)))


def orthogonalise(task: VectorSet, general: VectorSet) -> tuple[VectorSet, dict[int | str, float]]:
    """The task vectors without their share along the general ones, and {layer: cosine of the two before}."""
    if task.layers != general.layers:
        raise ValueError(f"layers {list(task.layers)} and {list(general.layers)} differ")
    cosine, rest = {}, []
    for layer, a_D, b_D in zip(task.layers, task.vectors, general.vectors, strict=True):
        unit_D = b_D / max(np.linalg.norm(b_D), TINY)
        cosine[layer] = float(a_D @ unit_D / max(np.linalg.norm(a_D), TINY))
        rest.append(a_D - (a_D @ unit_D) * unit_D)
    return replace(task, vectors=np.stack(rest), settings={**task.settings, "orthogonal_to": general.name}), cosine


def split_half(
    features: AssociationFeatures, *, splits: int = 50, seed: int = 0, **settings: Any
) -> dict[int | str, dict[str, float]]:
    """{layer: {"mean", "low", "high"}}: cosine of the vectors of two random halves of the groups, with the 2.5 and 97.5
    percentiles over splits. settings: of `build_vector`; a k is halved, so that each half selects as sharply.
    """
    names = sorted(set(features.groups))
    if len(names) < 4:
        raise ValueError(f"{len(names)} groups: too few to halve; four at least")
    if settings.get("k") is not None:
        settings["k"] = max(1, settings["k"] // 2)
    rng, found = np.random.default_rng(seed), []
    for _ in range(splits):
        first = set(rng.permutation(names)[: len(names) // 2].tolist())
        inside = np.array([group in first for group in features.groups])
        halves = [build_vector(features.only(np.flatnonzero(part)), **settings) for part in (inside, ~inside)]
        found.append(_cosines(halves[0].vectors, halves[1].vectors))
    table = np.array(found)
    low, high = np.percentile(table, [2.5, 97.5], axis=0)
    return {
        layer: {"mean": float(table[:, at].mean()), "low": float(low[at]), "high": float(high[at])}
        for at, layer in enumerate(features.layers)
    }


def cosine_by_k(
    features: AssociationFeatures, ks: Sequence[int], *, seed: int = 0, **settings: Any
) -> list[dict[str, Any]]:
    """For every k and layer: cosine of the selected vector, and of one of k random instances, with that of all."""
    settings = {name: value for name, value in settings.items() if name not in ("k", "select_by", "window")}
    everything = build_vector(features, select_by="all", **settings).vectors
    rows = []
    for k in ks:
        top = build_vector(features, select_by="topk_per_layer", k=k, **settings).vectors
        drawn = build_vector(features, select_by="random", k=k, seed=seed, **settings).vectors
        for layer, a, b in zip(features.layers, _cosines(top, everything), _cosines(drawn, everything), strict=True):
            rows.append({"k": k, "layer": layer, "selected": float(a), "random": float(b)})
    return rows


def make_steerer(
    sets: Sequence[VectorSet], *, layers: Sequence[int | str], weights: Sequence[float] | None = None, **settings: Any
):
    """A `FlexACSteerer` of one or several vector sets at these layers. settings: its own (gate, alpha, policy, ...).

    Raises:
        ValueError: sets of different models, or a layer that a set does not have.
    """
    import torch

    from hacl.steering.flexac import FlexACSteerer

    models = {made.provenance.get("model") for made in sets} - {None}
    if len(models) > 1:
        raise ValueError(f"vector sets of different models: {', '.join(sorted(models))}")
    directions = {
        layer: torch.tensor(np.stack([made.vector(layer) for made in sets]), dtype=torch.float32) for layer in layers
    }
    model = next(iter(models), None)
    return FlexACSteerer(directions, names=[made.name for made in sets], weights=weights, model=model, **settings)


def provenance_notes(sets: Sequence[VectorSet]) -> Mapping[str, Any]:
    """What an artefact should say of the sets it was made of: for `Provenance.of(..., **notes)`."""
    return {
        "vector_sets": [
            {"name": made.name, "settings": made.settings, "features": made.provenance,
             "stats": [[layer, stats] for layer, stats in made.stats.items()],
             "selected": [[layer, list(ids)] for layer, ids in made.selected.items()]}
            for made in sets
        ]
    }  # fmt: skip


def _centre(delta_KD: np.ndarray, center: str, trim: float) -> np.ndarray:
    if center == "geometric_median":
        return geometric_median(delta_KD)
    if trim:
        from scipy.stats import trim_mean

        return trim_mean(delta_KD, trim, axis=0)
    return delta_KD.mean(axis=0)


def geometric_median(points_KD: np.ndarray, iterations: int = 200) -> np.ndarray:
    """The point with the least sum of distances (Weiszfeld's iteration, smoothed at the data points)."""
    found_D = points_KD.mean(axis=0)
    floor = 1e-9 * max(float(np.linalg.norm(points_KD - found_D, axis=1).mean()), TINY)
    for _ in range(iterations):
        weights_K = 1.0 / np.maximum(np.linalg.norm(points_KD - found_D, axis=1), floor)
        moved_D = weights_K @ points_KD / weights_K.sum()
        if np.linalg.norm(moved_D - found_D) <= floor:
            return moved_D
        found_D = moved_D
    return found_D


def _scaled(vector_D: np.ndarray, scale: str, activation_norm: float) -> np.ndarray:
    if scale == "raw":
        return vector_D
    unit_D = vector_D / max(np.linalg.norm(vector_D), TINY)
    return unit_D if scale == "unit" else unit_D * activation_norm


def _cosines(a_LD: np.ndarray, b_LD: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(a_LD, axis=-1) * np.linalg.norm(b_LD, axis=-1)
    return (a_LD * b_LD).sum(-1) / np.maximum(lengths, TINY)
