"""An affine map of low rank from a state of one model to the shift towards another's: an upper reference.

delta(h) = bias + (h - mean) down up, fitted by reduced-rank ridge regression of b - a on a (Izenman, 1975: the ridge
fit, projected on the leading directions of its own fitted values). It may use what no constant or per-concept vector
can, so a gap between it and them is what the additive account leaves out.

Shapes: N pairs, D hidden size, M rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hacl.steering.layers import LayerKey
from hacl.steering.state import StateSteerer
from hacl.steering.steerer import layer_table, named, pack_layers, unpack_layers

PARTS = {"mean": 1, "bias": 1, "down": 2, "up": 2}


class LowRankSteerer(StateSteerer):
    """h + alpha * (bias + (h - mean) @ down @ up).

    mean, bias: {layer: (D)}; down: {layer: (D, M)}; up: {layer: (M, D)}. See `fit`.
    """

    kind = "lowrank"

    def __init__(self, mean, bias, down, up, **common: Any):
        super().__init__(**common)
        given = {"mean": mean, "bias": bias, "down": down, "up": up}
        self.parts = {name: layer_table(given[name], axes) for name, axes in PARTS.items()}
        layers = self.parts["mean"].keys()
        if None in layers or any(table.keys() != layers for table in self.parts.values()):
            raise ValueError(f"give mean, bias, down and up for the same layers: {[list(t) for t in given.values()]}")
        for layer in layers:
            shapes = [tuple(self.parts[name][layer].shape) for name in PARTS]
            (width,), rank = shapes[0], shapes[2][1]
            if shapes != [(width,), (width,), (width, rank), (rank, width)]:
                raise ValueError(f"layer {layer!r}: mean, bias, down, up have shapes {shapes}")

    @classmethod
    def fit(
        cls,
        pairs: Mapping[LayerKey, tuple[np.ndarray | Tensor, np.ndarray | Tensor]],
        *,
        rank: int,
        ridge: float = 0.1,
        **common: Any,
    ) -> LowRankSteerer:
        """From {layer: (a (N, D), b (N, D))}, row by row the same token. ridge: in units of the mean variance of a.

        Raises:
            ValueError: fewer than two rows, unlike shapes, a rank outside 1..D, or a ridge that is not positive.
        """
        found = {layer: fit_low_rank(np.asarray(a), np.asarray(b), rank, ridge) for layer, (a, b) in pairs.items()}
        parts = {
            name: {layer: torch.as_tensor(fit[name], dtype=torch.float32) for layer, fit in found.items()}
            for name in PARTS
        }
        return cls(**parts, **common)

    @property
    def layers(self) -> tuple[LayerKey, ...]:
        return named(self.parts["mean"])

    def width_of(self, layer: LayerKey | None) -> int | None:
        return self.parts["mean"][layer].shape[0]

    def step(self, layer: LayerKey, h_RTD: Tensor) -> Tensor:
        mean, bias, down, up = (self.parts[name][layer].to(h_RTD.device) for name in PARTS)
        return bias + (h_RTD - mean) @ down @ up

    def state_dict(self) -> dict[str, Tensor]:
        return {f"{part}.{name}": value for part, table in self.parts.items() for name, value in pack_layers(table)}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], **common: Any) -> LowRankSteerer:
        parts = {
            part: unpack_layers({n.removeprefix(f"{part}."): v for n, v in tensors.items() if n.startswith(f"{part}.")})
            for part in PARTS
        }
        return cls(**parts, **settings, **common)


def fit_low_rank(a_ND: np.ndarray, b_ND: np.ndarray, rank: int, ridge: float) -> dict[str, np.ndarray]:
    """{"mean": (D), "bias": (D), "down": (D, M), "up": (M, D)}; see `LowRankSteerer.fit`."""
    if a_ND.shape != b_ND.shape or a_ND.ndim != 2 or len(a_ND) < 2:
        raise ValueError(f"pairs of shapes {a_ND.shape} and {b_ND.shape}; expected the same (rows, width), two rows")
    count, width = a_ND.shape
    if not 1 <= rank <= width or not ridge > 0:
        raise ValueError(f"rank={rank}, ridge={ridge}: a rank from 1 to {width} and a positive ridge")
    a, delta = a_ND.astype(np.float64), b_ND.astype(np.float64) - a_ND.astype(np.float64)
    mean, bias = a.mean(0), delta.mean(0)
    centred = a - mean
    gram = centred.T @ centred
    penalty = ridge * max(np.trace(gram) / width, 1e-12)
    weights_DD = np.linalg.solve(gram + penalty * np.eye(width), centred.T @ (delta - bias))
    # Fitted values of the ridge problem written as least squares: the rows of the data and sqrt(penalty) * identity.
    moment = weights_DD.T @ (gram + penalty * np.eye(width)) @ weights_DD
    _, directions = np.linalg.eigh((moment + moment.T) / 2)
    leading_DM = directions[:, ::-1][:, :rank]
    return {"mean": mean, "bias": bias, "down": weights_DD @ leading_DM, "up": leading_DM.T.copy()}
