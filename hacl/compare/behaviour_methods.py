"""The interventions of a recovery, built from paired states: global, concept-wise, gated, norm-preserving, low-rank.

Shapes: N pairs, K concepts, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hacl.compare.behaviour_controls import permuted_rows
from hacl.compare.shift_vectors import MIN_SIZE, shift_vectors
from hacl.steering import ConceptSteerer, LowRankSteerer, MeanSteerer, Steerer, typical_temperature, typical_threshold
from hacl.steering.layers import LayerKey

Arrays = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Methods:
    """steerers: by name; permuted: for those that learn from pairs, the same fitted on permuted pairs (a control)."""

    steerers: dict[str, Steerer]
    permuted: dict[str, Steerer]


def make_methods(
    pairs: Mapping[LayerKey, Arrays],
    centres: Mapping[LayerKey, np.ndarray],
    *,
    groups: Sequence[str] | None = None,
    assign: str = "state",
    rank: int = 16,
    ridge: float = 0.1,
    min_size: int = MIN_SIZE,
    gate_share: float = 0.5,
    seed: int = 0,
    **common: Any,
) -> Methods:
    """global, global_normed, concept_hard, concept_soft, concept_gated, concept_normed and lowrank.

    pairs: {layer: (a (N, D), b (N, D))}, row by row the same token; centres: {layer: (K, D)} concepts of the original's
    states (`Dictionary.concepts_KD` of K-means); groups: image of each row; assign: whose concept decides, see
    `ConceptSteerer` (with "last_prompt" give centres of last prompt states); rank: of the low-rank map, at most D; a
    concept with fewer than min_size rows takes the global shift; gate_share: share of states that pass the gate;
    common: arguments of `Steerer` (model, policy, alpha).
    """
    return Methods(
        _fit(pairs, centres, groups, assign, rank, ridge, min_size, gate_share, common),
        {
            name: steerer
            for name, steerer in _fit(
                {layer: (a, permuted_rows(b, seed)) for layer, (a, b) in pairs.items()},
                centres, groups, assign, rank, ridge, min_size, gate_share, common,
            ).items()
            if not name.startswith("global")
        },
    )  # fmt: skip


def mean_shifts(pairs: Mapping[LayerKey, Arrays], **common: Any) -> MeanSteerer:
    """The global shift of each layer: mean of b - a."""
    values = {layer: (b.astype(np.float64) - a).mean(0) for layer, (a, b) in pairs.items()}
    return MeanSteerer({layer: torch.as_tensor(v, dtype=torch.float32) for layer, v in values.items()}, **common)


def concept_shifts(
    pairs: Mapping[LayerKey, Arrays],
    centres: Mapping[LayerKey, np.ndarray],
    *,
    groups: Sequence[str] | None = None,
    min_size: int = MIN_SIZE,
) -> tuple[dict[LayerKey, torch.Tensor], dict[LayerKey, torch.Tensor]]:
    """({layer: centres (K, D)}, {layer: shifts (K, D)}), the two tables of a `ConceptSteerer`; rows go to the nearest
    centre, and a concept with fewer than min_size of them takes the global shift."""
    tables: tuple[dict, dict] = ({}, {})
    for layer, (a, b) in pairs.items():
        nearest = _nearest(a, centres[layer])
        found = shift_vectors(a, b, nearest, len(centres[layer]), groups=groups, min_size=min_size, bootstrap=0)
        shifts = np.where(found.usable_K[:, None], found.concepts_KD, found.global_D)
        tables[0][layer] = torch.as_tensor(np.asarray(centres[layer]), dtype=torch.float32)
        tables[1][layer] = torch.as_tensor(shifts, dtype=torch.float32)
    return tables


def _fit(pairs, centres, groups, assign, rank, ridge, min_size, gate_share, common) -> dict[str, Steerer]:
    tables = concept_shifts(pairs, centres, groups=groups, min_size=min_size)
    states = {layer: torch.as_tensor(a, dtype=torch.float32) for layer, (a, _) in pairs.items()}
    warm = {layer: typical_temperature(states[layer], tables[0][layer]) for layer in pairs}
    gate = {layer: typical_threshold(states[layer], tables[0][layer], gate_share) for layer in pairs}
    normed = {**common, "norm": "preserve"}
    width = min(a.shape[1] for a, _ in pairs.values())
    return {
        "global": mean_shifts(pairs, **common),
        "global_normed": mean_shifts(pairs, **normed),
        "concept_hard": ConceptSteerer(*tables, assign=assign, **common),
        "concept_soft": ConceptSteerer(*tables, mode="soft", temperature=warm, assign=assign, **common),
        "concept_gated": ConceptSteerer(*tables, mode="gated", threshold=gate, assign=assign, **common),
        "concept_normed": ConceptSteerer(*tables, assign=assign, **normed),
        "lowrank": LowRankSteerer.fit(pairs, rank=min(rank, width), ridge=ridge, **common),
    }


def _nearest(states_ND: np.ndarray, centres_KD: np.ndarray) -> np.ndarray:
    """The nearest centre of each row, by the rule of `ConceptSteerer`."""
    from hacl.steering.concept import squared_distances

    states = torch.as_tensor(np.asarray(states_ND), dtype=torch.float32)
    return squared_distances(states, torch.as_tensor(np.asarray(centres_KD), dtype=torch.float32)).argmin(-1).numpy()
