"""What a session did: counts that cost nothing, and on request the positions it really steered.

Shapes: R rows, T tokens of one forward, D hidden size.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor


class SteeringWarning(UserWarning):
    """A session ended without having steered a single position."""


@dataclass
class Stats:
    """Counts of one session.

    sequences: prompts begun; forwards: decoder forwards seen; hook_calls: calls of the session's own block hooks;
    context_passes: extra forwards made to read contexts; positions: {layer index: steered tokens, over all rows and
    forwards}. Rows of a batch that have ended are still computed by `generate`, and counted, until the batch ends;
    without a KV cache a token is computed, steered and counted once per forward.
    """

    sequences: int = 0
    forwards: int = 0
    hook_calls: int = 0
    context_passes: int = 0
    positions: Counter = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return sum(self.positions.values())


class Trace:
    """The steered positions of every forward and layer, and how long the steps were."""

    def __init__(self) -> None:
        self._entries: list[tuple[int, int, Tensor, Tensor]] = []
        self._ratios: dict[int, list[Tensor]] = {}

    def add(self, forward: int, layer: int, chosen_RT: Tensor, positions_RT: Tensor) -> None:
        rows, columns = chosen_RT.nonzero(as_tuple=True)
        self._entries.append((forward, layer, rows, positions_RT[rows, columns]))

    def measure(self, layer: int, before_RTD: Tensor, after_RTD: Tensor, mask_RT1: Tensor | None) -> None:
        """Keep sum and number of |after - before| / |before| over the steered positions, on the device."""
        before = before_RTD.detach().float()
        ratio = (after_RTD.detach().float() - before).norm(dim=-1) / before.norm(dim=-1).clamp_min(1e-30)
        chosen = torch.ones_like(ratio) if mask_RT1 is None else mask_RT1[..., 0].to(ratio)
        ratio = torch.where(chosen > 0, ratio, torch.zeros_like(ratio))
        self._ratios.setdefault(layer, []).append(torch.stack([ratio.sum(), chosen.sum()]))

    def positions(self, layer: int, row: int) -> list[int]:
        """Positions (among the row's attended tokens) steered at a block, sorted, each once."""
        found = {
            int(position)
            for _, at, rows, positions in self._entries
            if at == layer
            for position in positions[rows == row].tolist()
        }
        return sorted(found)

    def calls(self) -> list[tuple[int, int, int]]:
        """(forward, layer, tokens steered) of each time a block was steered, in order."""
        return [(forward, layer, len(rows)) for forward, layer, rows, _ in self._entries]

    def ratios(self) -> dict[int, float]:
        """{layer: mean of |step| / |state| over the positions steered}."""
        sums = {layer: torch.stack(parts).sum(0).tolist() for layer, parts in self._ratios.items()}
        return {layer: total / count for layer, (total, count) in sums.items() if count}
