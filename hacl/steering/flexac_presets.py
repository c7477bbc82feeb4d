"""Three named settings of FlexAC: as the paper writes it, as its code does it, and the one recommended here.

Sources: arXiv 2510.11190 (NeurIPS 2025); ylhz/FlexAC@3188958. No torch here, but in `Preset.steerer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hacl.steering.association.construct import VectorSet, build_vector, make_steerer
from hacl.steering.association.features import AssociationFeatures


@dataclass(frozen=True)
class Preset:
    """select_by, k, distance, cross, scale: of `build_vector`; gate, gain, norm, policy, max_angle: of the steerer."""

    select_by: str
    k: int | None
    distance: str
    cross: str
    scale: str
    gate: str
    gain: float | None
    norm: str
    policy: str
    max_angle: float | None

    def with_k(self, k: int) -> Preset:
        """The same for fewer or more instances (the papers keep 50 of 2,000)."""
        return replace(self, k=k)

    def build(
        self, features: AssociationFeatures, *, name: str = "general", leave_out: Sequence[str] = ()
    ) -> VectorSet:
        """The direction of every layer. Raises ValueError where there are fewer than k instances."""
        return build_vector(
            features, select_by=self.select_by, k=self.k, distance=self.distance, cross=self.cross, scale=self.scale,
            name=name, leave_out=leave_out,
        )  # fmt: skip

    def steerer(
        self,
        sets: Sequence[VectorSet],
        *,
        layers: Sequence[int | str],
        weights: Sequence[float] | None = None,
        **other: Any,
    ):
        """A `FlexACSteerer` with this operator; other: its further arguments, such as alpha."""
        own = {name: getattr(self, name) for name in ("gate", "gain", "norm", "policy", "max_angle")}
        return make_steerer(sets, layers=layers, weights=weights, **{**own, **other})


PRESETS = {
    "paper": Preset("topk_per_layer", 50, "cosine", "off", "raw", "paper", None, "preserve", "last-2", None),
    "released": Preset("topk_mean_layers", 50, "cosine", "on", "raw", "released", None, "preserve", "last-2", None),
    "safe": Preset("topk_per_layer", 50, "cosine", "auto", "rms", "soft", 10.0, "preserve", "last-2", 30.0),
}


def preset(name: str) -> Preset:
    """One of `PRESETS` by name. Raises ValueError naming them."""
    if name not in PRESETS:
        raise ValueError(f"FlexAC preset {name!r}: expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


def middle_layers(blocks: int, width: int = 3) -> tuple[int, ...]:
    """Where to steer before any analysis: `width` blocks around depth 0.45 (published: 0.37 to 0.5 of the depth)."""
    if not 1 <= width <= blocks:
        raise ValueError(f"width={width}: from 1 to the {blocks} blocks there are")
    first = min(max(round(0.45 * (blocks - 1)) - width // 2, 0), blocks - width)
    return tuple(range(first, first + width))
