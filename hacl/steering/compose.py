"""The weighted sum of several methods as one method, the same in whatever order they are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from hacl.steering.layers import LayerKey
from hacl.steering.steerer import ContextSpec, Steerer


class ComposeSteerer(Steerer):
    """sum_i weight_i * vectors_i(context_i), layer by layer; the norm mode is the sum's own.

    Parts that do more than add (their own `adjust`, or a norm mode) have no sum: nest sessions, whose order is then
    explicit. A layer must be spelt alike in all parts.

    Raises:
        ValueError: no parts, a number of weights that does not fit, a part without a sum, or parts of several models.
    """

    kind = "compose"

    def __init__(self, parts: Sequence[Steerer], weights: Sequence[float] | None = None, **common: Any):
        weights = [1.0] * len(parts) if weights is None else [float(weight) for weight in weights]
        if not parts or len(weights) != len(parts):
            raise ValueError(f"{len(parts)} steerers and {len(weights)} weights: one weight for each, at least one")
        for part in parts:
            if type(part).adjust is not Steerer.adjust or part.norm != "none":
                raise ValueError(
                    f"a {part.kind!r} steerer (norm {part.norm!r}) does more than add a vector; nest sessions instead"
                )
        models = {part.model for part in parts if part.model is not None}
        if len(models) > 1:
            raise ValueError(f"vectors of different models cannot be added: {', '.join(sorted(models))}")
        super().__init__(**{"model": next(iter(models), None), **common})
        order = sorted(range(len(parts)), key=lambda i: (parts[i].kind, parts[i].fingerprint(), weights[i]))
        self.parts = [parts[i] for i in order]
        self.weights = [weights[i] for i in order]

    @property
    def layers(self) -> tuple[LayerKey, ...]:
        return tuple(dict.fromkeys(layer for part in self.parts for layer in part.layers))

    def width_of(self, layer: LayerKey | None) -> int | None:
        widths = [part.width_of(layer if layer in part.layers else None) for part in self._with(layer)]
        return next((width for width in widths if width is not None), None)

    def _with(self, layer: LayerKey | None) -> list[Steerer]:
        """The parts that have a vector for a layer."""
        return [part for part in self.parts if layer in part.layers or not part.layers]

    def required_context(self) -> list[ContextSpec]:
        return list(dict.fromkeys(spec for part in self.parts for spec in part.required_context()))

    def vectors(self, context: Mapping[ContextSpec, Tensor], sample_ids: Sequence[str] | None):
        tables = [part.vectors(context, sample_ids) for part in self.parts]
        total: dict[LayerKey | None, Tensor] = {}
        for layer in dict.fromkeys(layer for table in tables for layer in (*table, *self.layers)):
            terms = [
                weight * _rows(table.get(layer, table.get(None)))
                for table, weight in zip(tables, self.weights, strict=True)
                if layer in table or None in table
            ]
            if terms:
                total[layer] = sum(terms[1:], start=terms[0])
        return total

    def state_dict(self) -> dict[str, Tensor]:
        return {
            f"{index}.{name}": tensor
            for index, part in enumerate(self.parts)
            for name, tensor in part.state_dict().items()
        }

    def settings(self) -> dict[str, Any]:
        parts = [
            {"kind": part.kind, "settings": part.settings(), "common": _plain(part.common())} for part in self.parts
        ]
        return {"weights": self.weights, "parts": parts}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], **common: Any) -> ComposeSteerer:
        from hacl.steering.vectors import kinds

        parts = []
        for index, entry in enumerate(settings["parts"]):
            own = {
                name.removeprefix(f"{index}."): value for name, value in tensors.items() if name.startswith(f"{index}.")
            }
            parts.append(kinds()[entry["kind"]].from_state(own, entry["settings"], **entry["common"]))
        return cls(parts, settings["weights"], **common)


def _rows(value: Tensor) -> Tensor:
    return value[None] if value.ndim == 1 else value


def _plain(common: dict[str, Any]) -> dict[str, Any]:
    """Parts have norm "none", so their table of norms says nothing."""
    return {**common, "norms": {}}
