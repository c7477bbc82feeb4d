"""What decides a steering vector: the protocol that every method implements, and its defaults.

A method is a subclass of `Steerer` with `vectors`; one that depends on the input names the states it reads in
`required_context`, one that does more than add overrides `adjust`. See docs/steering.md for an example.

Shapes: B samples, R rows, T tokens, D hidden size.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hacl.steering.layers import LayerKey
from hacl.steering.operators import NORM_MODES, Shift, add
from hacl.steering.positions import PositionPolicy

TOKENS = ("last_prompt", "mean_prompt", "mean_text", "mean_image")


@dataclass(frozen=True)
class ContextSpec:
    """A state of the unsteered prompt that a method reads.

    layer: decoder block whose output it is; token: last_prompt (the last attended prompt token), mean_prompt,
    mean_text or mean_image (means over those prompt tokens).
    """

    layer: LayerKey
    token: str = "last_prompt"

    def __post_init__(self) -> None:
        if self.token not in TOKENS:
            raise ValueError(f"context token {self.token!r}: expected one of {', '.join(TOKENS)}")


class Steerer(ABC):
    """Decides the vector of each layer and sample. Instances are not changed by a session.

    norm: how the vector is applied (see `hacl.steering.operators.add`); clip: for norm "clip", the longest step as a
    share of the state's length; norms: for "unit", {layer: typical length of a state there}; alpha and policy:
    defaults of a session; fingerprint: of the model the vectors belong to, None for any (see
    `hacl.models.identity.fingerprint`).
    """

    kind: ClassVar[str] = ""

    def __init__(
        self,
        *,
        norm: str = "none",
        clip: float = 1.0,
        norms: Mapping[LayerKey, float] | None = None,
        alpha: float = 1.0,
        policy: str = "all",
        model: str | None = None,
    ):
        if norm not in NORM_MODES:
            raise ValueError(f"norm {norm!r}: expected one of {', '.join(NORM_MODES)}")
        if norm == "unit" and not norms:
            raise ValueError("norm 'unit' needs norms={layer: typical length of a state}; see measure_norms")
        if not clip > 0:
            raise ValueError(f"clip={clip}: a positive share of the state's length")
        PositionPolicy.parse(policy)
        self.norm, self.clip, self.norms = norm, clip, dict(norms or {})
        self.alpha, self.policy, self.model = alpha, policy, model

    @property
    @abstractmethod
    def layers(self) -> tuple[LayerKey, ...]:
        """The layers that `vectors` speaks of; empty if one vector serves whatever layers the session names."""

    def required_context(self) -> list[ContextSpec]:
        """The states read before `vectors` can be called; none for a method that does not look at the input."""
        return []

    def width_of(self, layer: LayerKey | None) -> int | None:
        """The width of a layer's vector where it is known before any input; layer None if the method names none."""
        return None

    @abstractmethod
    def vectors(
        self, context: Mapping[ContextSpec, Tensor], sample_ids: Sequence[str] | None
    ) -> Mapping[LayerKey | None, Tensor]:
        """{layer: (B, D), (1, D) or (D)} before alpha; the key None stands for every layer of the session.

        context: {spec: fp32 (B, D)}. Called once per sequence, at its prompt.
        """

    def adjust(self, layer: int, h_RTD: Tensor, shift: Shift, mask: Tensor | None) -> Tensor:
        """The new states of a block, of the shape and dtype of `h_RTD`, out of place.

        layer: index of the block; shift: alpha and vector of the rows; mask: boolean (R, T, 1), true where the policy
        steers, None for everywhere. The session keeps `h_RTD` bit for bit where the mask is false.
        """
        return add(h_RTD, shift, self.norm, self.clip)

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors that make the method, for an artefact. Raises ValueError for a method that has not said."""
        raise ValueError(f"{type(self).__name__} cannot be saved: it defines no state_dict")

    def settings(self) -> dict[str, Any]:
        """What else makes it: values that JSON can hold."""
        return {}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], **common: Any) -> Steerer:
        """The inverse of `state_dict` and `settings`; common: arguments of `Steerer`. Raises ValueError likewise."""
        raise ValueError(f"{cls.__name__} cannot be loaded: it defines no from_state")

    def common(self) -> dict[str, Any]:
        """The arguments of `Steerer` itself."""
        return {
            "norm": self.norm, "clip": self.clip, "norms": self.norms,
            "alpha": self.alpha, "policy": str(self.policy), "model": self.model,
        }  # fmt: skip

    def fingerprint(self) -> str:
        """Sixteen hex digits of the method, its tensors and its settings."""
        digest = hashlib.blake2b(digest_size=8)
        common = {**self.common(), "norms": sorted((str(k), v) for k, v in self.norms.items())}
        digest.update(json.dumps([self.kind, self.settings(), common], sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def layer_table(values: Mapping[LayerKey, Tensor] | Tensor, axes: int) -> dict[LayerKey | None, Tensor]:
    """{layer: fp32 tensor of `axes` axes}; a bare tensor belongs to every layer of the session (key None).

    Raises:
        ValueError: no layer, another number of axes, or a value that is not finite, naming the layer.
    """
    if isinstance(values, Mapping) and not values:
        raise ValueError("no vector: give {layer: tensor} or one tensor")
    given = values if isinstance(values, Mapping) else {None: values}
    table: dict[LayerKey | None, Tensor] = {}
    for layer in sorted(given, key=lambda key: (isinstance(key, str), key)):
        value = given[layer]
        where = "the vector" if layer is None else f"layer {layer!r}"
        if value.ndim != axes or not value.numel():
            wanted = "(D)" if axes == 1 else "(samples, D)"
            raise ValueError(f"{where} has shape {tuple(value.shape)}; expected {wanted}")
        if not torch.isfinite(value).all():
            raise ValueError(f"{where} has values that are not finite")
        table[layer] = value.detach().to(torch.float32, copy=True)
    return table


def named(table: Mapping[LayerKey | None, Tensor]) -> tuple[LayerKey, ...]:
    """The layers of a table, without the key that stands for all."""
    return tuple(layer for layer in table if layer is not None)


def pack_layers(table: Mapping[LayerKey | None, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) for `state_dict`: the layer as JSON, so that indices and names stay apart."""
    for layer, value in table.items():
        yield f"layer={json.dumps(layer)}", value


def unpack_layers(tensors: Mapping[str, Tensor]) -> Mapping[LayerKey, Tensor] | Tensor:
    """The inverse of `pack_layers`: a table, or the bare tensor."""
    table = {json.loads(name.removeprefix("layer=")): value for name, value in tensors.items()}
    return table[None] if None in table else table
