"""Forwards that keep chosen positions of chosen layers: one teacher-forced pass, or the passes of a generation.

Hooks take what a layer computes while it is on the device; only the chosen rows are copied to the host, once a batch.
A teacher-forced pass ends after the last layer that is wanted: the LM head never runs.

Shapes: R rows, T tokens of one forward, S columns of all of them, M chosen states, D hidden size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hacl.representations.parts import EMBED, FINAL_NORM, Parts


class _Enough(Exception):
    """The last layer that is wanted has been read."""


@dataclass
class Stats:
    """What a capture did. forwards: of the decoder; rows: states kept; bytes_copied: of features, from device to host;
    halved: batches cut because memory ran out.
    """

    forwards: int = 0
    rows: int = 0
    bytes_copied: int = 0
    halved: int = 0

    def merge(self, other: Stats) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(frozen=True)
class Choice:
    """Which states to keep: for each, its row of the batch and the columns to take (several: their mean)."""

    rows: Sequence[int]
    columns: Sequence[Sequence[int]]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, h_RTD: Tensor) -> Tensor:
        """(M, D): single states as they are, means computed in fp32."""
        first = torch.tensor([columns[0] for columns in self.columns], device=h_RTD.device, dtype=torch.long)
        rows = torch.tensor(self.rows, device=h_RTD.device, dtype=torch.long)
        chosen_MD = h_RTD[rows, first]
        for number, columns in enumerate(self.columns):
            if len(columns) > 1:
                where = torch.tensor(columns, device=h_RTD.device)
                chosen_MD[number] = h_RTD[self.rows[number], where].float().mean(0).to(chosen_MD.dtype)
        return chosen_MD


@contextlib.contextmanager
def watching(parts: Parts, layers: Sequence[str], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Calls see(layer, h (R, T, D)) whenever one of `layers` has been computed; hooks are gone on any exit."""
    handles = []
    for layer in layers:
        if layer == EMBED:
            hook = _before(layer, see)
            handles.append(parts.blocks[0].register_forward_pre_hook(hook, with_kwargs=True))
        else:
            module = parts.final_norm if layer == FINAL_NORM else parts.blocks[int(layer)]
            handles.append(module.register_forward_hook(_after(layer, see)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _before(layer: str, see: Callable[[str, Tensor], None]):
    def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
        see(layer, args[0] if args else kwargs["hidden_states"])

    return hook


def _after(layer: str, see: Callable[[str, Tensor], None]):
    def hook(module: nn.Module, args: tuple, output: Tensor | tuple) -> None:
        see(layer, output[0] if isinstance(output, tuple) else output)

    return hook


def read_states(
    model: nn.Module, parts: Parts, inputs: dict[str, Tensor], layers: Sequence[str], choice: Choice, dtype: torch.dtype
) -> dict[str, Tensor]:
    """{layer: (M, D) on the host} from one forward, which stops after the last of `layers` (in forward order)."""
    found: dict[str, Tensor] = {}

    def see(layer: str, h_RTD: Tensor) -> None:
        found[layer] = choice.take(h_RTD).to(dtype)
        if layer == layers[-1]:
            raise _Enough

    with watching(parts, layers, see), contextlib.suppress(_Enough):
        model(**inputs, use_cache=False)
    return {layer: found[layer].cpu() for layer in layers}
