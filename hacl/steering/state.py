"""Steerers whose vector is a function of the state it is added to, token by token.

Shapes: R rows, T tokens, D hidden size.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hacl.steering.layers import LayerKey
from hacl.steering.operators import Shift, add
from hacl.steering.steerer import ContextSpec, Steerer


class StateSteerer(Steerer):
    """h + alpha * step(h) at every steered position, under the norm mode.

    A state whose step is zero is kept bit for bit, also under norm "preserve". Norm "unit" has no meaning here (the
    step has its own length at every token) and is refused.
    """

    def __init__(self, **common: Any):
        super().__init__(**common)
        if self.norm == "unit":
            raise ValueError(f"a {self.kind!r} steerer that reads the current state cannot have norm 'unit'")

    @abstractmethod
    def step(self, layer: LayerKey, h_RTD: Tensor) -> Tensor:
        """The vectors (R, T, D), fp32, before alpha, for fp32 states; layer as `layers` spells it."""

    def vectors(
        self, context: Mapping[ContextSpec, Tensor], sample_ids: Sequence[str] | None
    ) -> Mapping[LayerKey | None, Tensor]:
        """Nothing is decided at the prompt: zeros, which `adjust` does not look at."""
        return {layer: torch.zeros(self.width_of(layer)) for layer in self.layers}

    def adjust(self, layer: int, h_RTD: Tensor, shift: Shift, mask: Tensor | None) -> Tensor:
        return self.move(h_RTD, shift)

    def move(self, h_RTD: Tensor, shift: Shift) -> Tensor:
        """The moved states; shift: alpha, and the layer's key."""
        step_RTD = self.step(shift.key, h_RTD.float())
        moved = add(h_RTD, Shift(step_RTD, shift.alpha.to(h_RTD.device)), self.norm, self.clip)
        return torch.where((step_RTD != 0).any(-1, keepdim=True), moved, h_RTD)
