"""What a session lays out for the rows of a batch: coefficients, prompt lengths and vectors, one per row.

Shapes: B samples, R rows (B times beams or return sequences), D hidden size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hacl.steering.layers import Layer
from hacl.steering.operators import Shift
from hacl.steering.positions import Step
from hacl.steering.steerer import ContextSpec, Steerer


@dataclass(frozen=True)
class Rows:
    """What the caller said of the samples of a batch; None where nothing was said."""

    sample_ids: list[str] | None = None
    alpha: Tensor | None = None
    prompt_lengths: Tensor | None = None
    context: dict[ContextSpec, Tensor] | None = None

    def place(self, step: Step, samples: int | None) -> Step:
        """The step with the caller's prompt lengths and number of samples; samples: how many there are if known."""
        rows = step.shape[0]
        sizes = [len(given) for given in (self.sample_ids, self.prompt_lengths) if given is not None]
        samples = samples or (sizes[0] if sizes else rows)
        if rows % samples or any(size != samples for size in sizes):
            raise ValueError(
                f"s.rows(...) names {sizes} samples or prompt lengths; the batch has {samples} samples in {rows} rows"
            )
        step = dataclasses.replace(step, copies=rows // samples)
        if self.prompt_lengths is None:
            return step
        lengths = self.prompt_lengths.repeat_interleave(step.copies)
        if (lengths < 1).any() or (lengths > step.prompt_R).any():
            raise ValueError(
                f"prompt_lengths={self.prompt_lengths.tolist()}: lengths count attended tokens, pads not, from 1 to "
                f"the {step.prompt_R[:: step.copies].tolist()} there are"
            )
        return dataclasses.replace(step, prompt_R=lengths)


def per_row(value: float | Sequence[float] | Tensor, name: str) -> Tensor:
    """fp32 (1) or (B) on the CPU. Raises ValueError for another shape or values that are not finite."""
    tensor = torch.as_tensor(value, dtype=torch.float32).detach().cpu()
    tensor = tensor.reshape(1) if tensor.ndim == 0 else tensor
    if tensor.ndim != 1 or not len(tensor) or not torch.isfinite(tensor).all():
        raise ValueError(f"{name}: expected one finite number, or one per sample, not {value!r}")
    return tensor


def spread(value: Tensor, rows: int, samples: int | None, what: str) -> Tensor:
    """One entry per row from one, or one per sample, along the first axis; a single one stays alone.

    samples: how many there are; None where the caller did not say, and any divisor of `rows` will do.
    """
    count = len(value)
    if count == 1:
        return value
    if rows % count or samples not in (None, count):
        there = f"{rows} rows" if samples is None else f"{samples} samples in {rows} rows"
        raise ValueError(f"{count} {what} for {there}; give one, or one per sample")
    return value.repeat_interleave(rows // count, dim=0)


def make_shifts(
    steerer: Steerer,
    values: Mapping[int, tuple[Layer, Tensor]],
    alpha: Tensor,
    rows: int,
    samples: int | None,
    width: int,
) -> dict[int, Shift]:
    """{layer index: Shift for `rows` rows}. values: {index: (layer, (B, D), (1, D) or (D))}; alpha: (1) or (R).

    Raises:
        ValueError: a vector of another width, or rows that are no multiple of the vectors' number.
    """
    shifts = {}
    for index, (layer, value) in values.items():
        value = value[None] if value.ndim == 1 else value
        if value.ndim != 2 or value.shape[1] != width:
            raise ValueError(
                f"layer {layer}: vectors have shape {tuple(value.shape)}, the model needs (samples, {width}); they "
                "belong to another model"
            )
        value = value.float()
        if steerer.norm == "unit":
            value = value / value.norm(dim=-1, keepdim=True).clamp_min(1e-12) * _typical(steerer, layer)
        value = spread(value, rows, samples, f"vectors at layer {layer}")
        shifts[index] = Shift(value[:, None], alpha.to(value.device)[:, None, None])
    return shifts


def _typical(steerer: Steerer, layer: Layer) -> float:
    """The length of a state at a layer, that norm "unit" measures alpha in."""
    for key, length in steerer.norms.items():
        if key in (layer.index, layer.name) or str(key) == str(layer.index):
            return float(length)
    raise ValueError(f"norm 'unit': norms= has no length for layer {layer}; it has {sorted(map(str, steerer.norms))}")
