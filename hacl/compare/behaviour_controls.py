"""Controls of a steering method: the same size in another direction, the right shifts at the wrong concepts.

Each could be mistaken for the method if only the size of the step, or the number of vectors, mattered.

Shapes: K concepts, D hidden size, M vectors, N pairs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from hacl.steering import ConceptSteerer, LowRankSteerer, MeanSteerer, Steerer


def rotated(vectors_MD: Tensor, seed: int) -> Tensor:
    """The vectors in a random subspace: lengths and angles among them are kept, their directions are not.

    Vectors are written in an orthonormal basis of their span, and the basis is exchanged for a random one.
    """
    basis_DM, coordinates_MM = torch.linalg.qr(vectors_MD.double().T)
    noise = torch.randn(basis_DM.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    random_DM, _ = torch.linalg.qr(noise)
    return (random_DM @ coordinates_MM).T.to(vectors_MD.dtype)


def random_steerer(steerer: Steerer, seed: int) -> Steerer:
    """The method with norm-matched random directions, layer by layer: the same rule, the same lengths.

    Raises:
        ValueError: a kind of steerer whose vectors cannot be exchanged.
    """
    if isinstance(steerer, MeanSteerer):
        values = {layer: rotated(v[None], _seed(seed, i))[0] for i, (layer, v) in enumerate(steerer.values.items())}
        return MeanSteerer(values.get(None, values), **steerer.common())
    if isinstance(steerer, ConceptSteerer):
        return steerer.with_shifts({layer: rotated(v, _seed(seed, i)) for i, (layer, v) in _numbered(steerer.shifts)})
    if isinstance(steerer, LowRankSteerer):
        parts = {name: dict(table) for name, table in steerer.parts.items()}
        for i, (layer, up) in _numbered(steerer.parts["up"]):
            both = rotated(torch.cat([steerer.parts["bias"][layer][None], up]), _seed(seed, i))
            parts["bias"][layer], parts["up"][layer] = both[0], both[1:]
        return LowRankSteerer(**parts, **steerer.common())
    raise ValueError(f"no random control for a {steerer.kind!r} steerer; give one of kind mean, concept or lowrank")


def shuffled_concepts(steerer: ConceptSteerer, seed: int) -> ConceptSteerer:
    """Every concept with the shift of another one, by one seeded cycle."""
    cycle = np.random.default_rng(seed).permutation(next(iter(steerer.shifts.values())).shape[0])
    other = torch.empty(len(cycle), dtype=torch.long)
    other[torch.as_tensor(cycle)] = torch.as_tensor(np.roll(cycle, 1))
    return steerer.with_shifts({layer: value[other] for layer, value in steerer.shifts.items()})


def control_steerers(steerer: Steerer, *, random_draws: int = 3, seed: int = 0) -> dict[str, Steerer]:
    """{name: control}: random_0, random_1, ..., and shuffled_concepts for a concept method."""
    found: dict[str, Steerer] = {f"random_{n}": random_steerer(steerer, seed + n) for n in range(random_draws)}
    if isinstance(steerer, ConceptSteerer) and min(len(value) for value in steerer.shifts.values()) > 1:
        found["shuffled_concepts"] = shuffled_concepts(steerer, seed)
    return found


def permuted_rows(tuned_ND: np.ndarray, seed: int) -> np.ndarray:
    """The tuned model's rows against other rows of the original, by one seeded cycle: fit on these for the control.

    A global shift does not change (a difference of means knows no pairs); what a concept's shift or a map learns from
    which row belongs to which does.
    """
    cycle = np.random.default_rng(seed).permutation(len(tuned_ND))
    permuted = np.empty_like(tuned_ND)
    permuted[cycle] = tuned_ND[np.roll(cycle, 1)]
    return permuted


def _numbered(table: Mapping):
    return enumerate(table.items())


def _seed(seed: int, layer: int) -> int:
    return 1_000_003 * seed + layer
