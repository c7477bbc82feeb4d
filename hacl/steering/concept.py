"""Concept shifts: the vector of the concept that a state belongs to (hard), or a blend of them all (soft).

h + alpha * Delta_k with k the nearest centre, or h + alpha * sum_k w_k Delta_k with w = softmax(-d^2 / T). The concept
is that of the state itself, token by token, or that of the last prompt state, kept for the whole answer.
Source of the shifts: arXiv 2501.03012, section 4 (there they move concepts, not states).

Shapes: K concepts, N states, B samples, R rows, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hacl.steering.layers import LayerKey
from hacl.steering.operators import Shift, add
from hacl.steering.state import StateSteerer
from hacl.steering.steerer import ContextSpec, layer_table, named, pack_layers, unpack_layers

MODES = ("hard", "soft", "gated")
ASSIGN = ("state", "last_prompt")


class ConceptSteerer(StateSteerer):
    """A shift per concept, chosen by the distance of a state to the concepts' centres.

    centres, shifts: {layer: (K, D)}, the same layers and shapes. mode: "hard" (nearest centre), "soft" (weights
    softmax(-d^2 / temperature)), or "gated" (hard, and nothing where the activation 1 / (1 + d) of the nearest centre
    is not above `threshold`). threshold may also be given to "soft", which then gates it by the same rule.
    temperature: in squared units of the states, one number or {layer: number}; see `typical_temperature`. assign:
    whose concept: "state" (each steered state's own) or "last_prompt" (the unsteered last prompt state of the same
    layer, frozen for the answer).

    Raises:
        ValueError: unlike layers or shapes, a soft mode without temperature, a gated one without threshold.
    """

    kind = "concept"

    def __init__(
        self,
        centres: Mapping[LayerKey, Tensor],
        shifts: Mapping[LayerKey, Tensor],
        *,
        mode: str = "hard",
        assign: str = "state",
        temperature: float | Mapping[LayerKey, float] | None = None,
        threshold: float | Mapping[LayerKey, float] | None = None,
        **common: Any,
    ):
        super().__init__(**common)
        self.centres, self.shifts = layer_table(centres, 2), layer_table(shifts, 2)
        if mode not in MODES or assign not in ASSIGN:
            raise ValueError(
                f"mode={mode!r}, assign={assign!r}: modes are {', '.join(MODES)}; assign by {' or '.join(ASSIGN)}"
            )
        if None in self.centres or self.centres.keys() != self.shifts.keys():
            raise ValueError(
                f"centres of layers {list(self.centres)}, shifts of layers {list(self.shifts)}: give both for each"
            )
        for layer, value in self.centres.items():
            if value.shape != self.shifts[layer].shape:
                raise ValueError(
                    f"layer {layer!r}: centres {tuple(value.shape)}, shifts {tuple(self.shifts[layer].shape)}; "
                    "one shift per centre"
                )
        if (mode == "soft") != (temperature is not None):
            raise ValueError("mode 'soft', and no other, needs temperature=; see typical_temperature")
        if mode == "gated" and threshold is None or mode == "hard" and threshold is not None:
            raise ValueError("threshold= belongs to mode 'gated', which needs it, or to a gated 'soft'")
        self.mode, self.assign = mode, assign
        self.temperature = _per_layer(temperature, self.centres, "temperature")
        self.threshold = _per_layer(threshold, self.centres, "threshold")
        self._placed: dict[tuple[LayerKey, torch.device], tuple[Tensor, Tensor]] = {}

    @property
    def layers(self) -> tuple[LayerKey, ...]:
        return named(self.centres)

    def width_of(self, layer: LayerKey | None) -> int | None:
        return self.centres[layer].shape[-1]

    def required_context(self) -> list[ContextSpec]:
        return [ContextSpec(layer) for layer in self.layers] if self.assign == "last_prompt" else []

    def vectors(self, context: Mapping[ContextSpec, Tensor], sample_ids: Sequence[str] | None):
        if self.assign == "state":
            return super().vectors(context, sample_ids)
        return {layer: self.step(layer, context[ContextSpec(layer)]) for layer in self.layers}

    def step(self, layer: LayerKey, h_RTD: Tensor) -> Tensor:
        """The shift (..., D) of each fp32 state (..., D)."""
        centres_KD, shifts_KD = self._on(layer, h_RTD.device)
        squared = squared_distances(h_RTD, centres_KD)
        if self.mode == "soft":
            moved = torch.softmax(-squared / self.temperature[layer], dim=-1) @ shifts_KD
        else:
            moved = shifts_KD[squared.argmin(-1)]
        if not self.threshold:
            return moved
        active = 1 / (1 + squared.amin(-1, keepdim=True).sqrt()) > self.threshold[layer]
        return torch.where(active, moved, 0.0)

    def adjust(self, layer: int, h_RTD: Tensor, shift: Shift, mask: Tensor | None) -> Tensor:
        if self.assign == "state":
            return self.move(h_RTD, shift)
        moved = add(h_RTD, shift, self.norm, self.clip)
        idle = (shift.vector == 0).all(-1, keepdim=True).to(h_RTD.device)
        return torch.where(idle, h_RTD, moved)

    def _on(self, layer: LayerKey, device: torch.device) -> tuple[Tensor, Tensor]:
        if (layer, device) not in self._placed:
            self._placed[layer, device] = self.centres[layer].to(device), self.shifts[layer].to(device)
        return self._placed[layer, device]

    def with_shifts(self, shifts: Mapping[LayerKey, Tensor]) -> ConceptSteerer:
        """The same rule with other shifts: a control, or one source concept alone."""
        return ConceptSteerer(self.centres, shifts, **self._rule(), **self.common())

    def _rule(self) -> dict[str, Any]:
        return {
            "mode": self.mode, "assign": self.assign, "temperature": self.temperature or None,
            "threshold": self.threshold or None,
        }  # fmt: skip

    def state_dict(self) -> dict[str, Tensor]:
        parts = {"centres": self.centres, "shifts": self.shifts}
        return {f"{part}.{name}": value for part, table in parts.items() for name, value in pack_layers(table)}

    def settings(self) -> dict[str, Any]:
        rule = self._rule()
        for name in ("temperature", "threshold"):
            rule[name] = None if rule[name] is None else [[layer, value] for layer, value in rule[name].items()]
        return rule

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], **common: Any) -> ConceptSteerer:
        parts = {
            part: unpack_layers({n.removeprefix(f"{part}."): v for n, v in tensors.items() if n.startswith(f"{part}.")})
            for part in ("centres", "shifts")
        }
        rule = dict(settings)
        for name in ("temperature", "threshold"):
            rule[name] = None if rule[name] is None else dict(rule[name])
        return cls(parts["centres"], parts["shifts"], **rule, **common)


def squared_distances(h_XD: Tensor, centres_KD: Tensor) -> Tensor:
    """Squared Euclidean distances (..., K) of states (..., D), fp32, from the differences themselves.

    The expansion by inner products loses the digits that decide between near centres where states are long.
    """
    return torch.stack([(h_XD - centre).square().sum(-1) for centre in centres_KD], dim=-1)


def typical_temperature(states_ND: Tensor, centres_KD: Tensor) -> float:
    """The mean squared distance of states to their nearest centre, the unit of a soft mode's temperature."""
    return max(float(squared_distances(states_ND.float(), centres_KD.float()).amin(-1).mean()), 1e-12)


def typical_threshold(states_ND: Tensor, centres_KD: Tensor, share: float = 0.5) -> float:
    """The activation 1 / (1 + d) that `share` of the states exceed."""
    nearest = squared_distances(states_ND.float(), centres_KD.float()).amin(-1).sqrt()
    return float(torch.quantile(1 / (1 + nearest), 1 - share))


def _per_layer(value, layers: Mapping[LayerKey, Tensor], name: str) -> dict[LayerKey, float]:
    """{layer: positive number}; empty for None."""
    if value is None:
        return {}
    table = dict(value) if isinstance(value, Mapping) else dict.fromkeys(layers, value)
    missing = [layer for layer in layers if layer not in table]
    if missing or not all(float(table[layer]) > 0 for layer in layers):
        raise ValueError(f"{name}={value!r}: a positive number, or one for each of the layers {list(layers)}")
    return {layer: float(table[layer]) for layer in layers}
