"""Steerers whose vectors do not depend on the input: a constant, a random direction, a table by sample id.

Shapes: S samples of a table, B samples of a batch, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hacl.steering.layers import LayerKey
from hacl.steering.steerer import ContextSpec, Steerer, layer_table, named, pack_layers, unpack_layers


class MeanSteerer(Steerer):
    """One constant vector per layer: a mean of differences (CAA, shift of means), or any other.

    values: {layer: (D)}, or one (D) for whatever layers the session names.
    """

    kind = "mean"

    def __init__(self, values: Mapping[LayerKey, Tensor] | Tensor, **common: Any):
        super().__init__(**common)
        self.values = layer_table(values, 1)

    @property
    def layers(self) -> tuple[LayerKey, ...]:
        return named(self.values)

    def width_of(self, layer: LayerKey | None) -> int | None:
        return self.values[layer].shape[-1]

    def vectors(self, context: Mapping[ContextSpec, Tensor], sample_ids: Sequence[str] | None):
        return self.values

    def state_dict(self) -> dict[str, Tensor]:
        return dict(pack_layers(self.values))

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], **common: Any) -> MeanSteerer:
        return cls(unpack_layers(tensors), **common)


class RandomSteerer(Steerer):
    """The control: a random direction as long as a reference vector, from a seed and the layer's name alone.

    norms_by_layer: {layer: length}. With `per_sample` each sample id has its own direction, the same wherever it
    stands in a batch.
    """

    kind = "random"

    def __init__(
        self, lengths: Mapping[LayerKey, float], width: int, *, seed: int, per_sample: bool = False, **common: Any
    ):
        super().__init__(**common)
        if not lengths:
            raise ValueError("no layer: give lengths={layer: length of the vector}")
        wrong = {layer: length for layer, length in lengths.items() if not (math.isfinite(length) and length >= 0)}
        if wrong:
            raise ValueError(f"lengths that are negative or not finite: {wrong}")
        self.lengths, self.width, self.seed, self.per_sample = dict(lengths), width, seed, per_sample
        self._constant = {layer: self._draw(layer, "") for layer in self.lengths}

    @classmethod
    def like(cls, reference: MeanSteerer | TableSteerer, *, seed: int, per_sample: bool = False) -> RandomSteerer:
        """Norm-matched to another method, layer by layer: to its vector, or to the mean length of its table's rows.

        Takes over its norm mode, alpha and policy.
        """
        if None in reference.values:
            raise ValueError("the reference has one vector for any layer; give it {layer: vector} first")
        lengths = {
            layer: float(v.reshape(-1, v.shape[-1]).norm(dim=-1).mean()) for layer, v in reference.values.items()
        }
        width = next(iter(reference.values.values())).shape[-1]
        return cls(lengths, width, seed=seed, per_sample=per_sample, **reference.common())

    def _draw(self, layer: LayerKey, sample: str) -> Tensor:
        import hashlib

        name = hashlib.blake2b(f"{self.seed}/{layer!r}/{sample}".encode(), digest_size=7).digest()
        noise = torch.randn(self.width, generator=torch.Generator().manual_seed(int.from_bytes(name, "big")))
        return noise * (self.lengths[layer] / noise.norm())

    @property
    def layers(self) -> tuple[LayerKey, ...]:
        return tuple(self.lengths)

    def width_of(self, layer: LayerKey | None) -> int | None:
        return self.width

    def vectors(self, context: Mapping[ContextSpec, Tensor], sample_ids: Sequence[str] | None):
        if not self.per_sample:
            return self._constant
        ids = _required(sample_ids, self.kind)
        return {layer: torch.stack([self._draw(layer, str(name)) for name in ids]) for layer in self.lengths}

    def state_dict(self) -> dict[str, Tensor]:
        return dict(pack_layers(self._constant))

    def settings(self) -> dict[str, Any]:
        lengths = [[layer, length] for layer, length in self.lengths.items()]
        return {"lengths": lengths, "width": self.width, "seed": self.seed, "per_sample": self.per_sample}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], **common: Any) -> RandomSteerer:
        return cls(
            dict(settings["lengths"]), settings["width"], seed=settings["seed"], per_sample=settings["per_sample"],
            **common,
        )  # fmt: skip


class TableSteerer(Steerer):
    """One vector per sample, looked up by id, never by order of arrival (P2S: the oracle of Learn-to-Steer).

    values: {layer: (S, D)}, or one (S, D) for whatever layers the session names; ids: S sample ids, in that order.
    """

    kind = "table"

    def __init__(self, values: Mapping[LayerKey, Tensor] | Tensor, ids: Sequence[str], **common: Any):
        super().__init__(**common)
        self.values = layer_table(values, 2)
        self.ids = [str(name) for name in ids]
        self._row = {name: row for row, name in enumerate(self.ids)}
        if len(self._row) != len(self.ids):
            twice = next(name for row, name in enumerate(self.ids) if self._row[name] != row)
            raise ValueError(f"sample id {twice!r} occurs twice in the table")
        for layer, value in self.values.items():
            if len(value) != len(self.ids):
                raise ValueError(f"layer {layer!r} has {len(value)} rows for {len(self.ids)} sample ids")

    @property
    def layers(self) -> tuple[LayerKey, ...]:
        return named(self.values)

    def width_of(self, layer: LayerKey | None) -> int | None:
        return self.values[layer].shape[-1]

    def vectors(self, context: Mapping[ContextSpec, Tensor], sample_ids: Sequence[str] | None):
        ids = [str(name) for name in _required(sample_ids, self.kind)]
        unknown = [name for name in ids if name not in self._row]
        if unknown:
            raise ValueError(
                f"no vector for sample id {unknown[0]!r} ({len(unknown)} unknown, the table has {len(self.ids)})"
            )
        rows = torch.tensor([self._row[name] for name in ids])
        return {layer: value[rows.to(value.device)] for layer, value in self.values.items()}

    def state_dict(self) -> dict[str, Tensor]:
        return dict(pack_layers(self.values))

    def settings(self) -> dict[str, Any]:
        return {"ids": self.ids}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], **common: Any) -> TableSteerer:
        return cls(unpack_layers(tensors), settings["ids"], **common)


def _required(sample_ids: Sequence[str] | None, kind: str) -> Sequence[str]:
    if sample_ids is None:
        raise ValueError(
            f"a {kind!r} steerer looks vectors up by sample id: wrap the call in `with s.rows(sample_ids=[...]):`"
        )
    return sample_ids
