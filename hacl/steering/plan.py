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

    def place(self, step: Step) -> Step:
        """The step with the caller's prompt lengths and number of samples."""
        rows = step.shape[0]
        if step.copies == 1:
            sizes = [len(given) for given in (self.sample_ids, self.prompt_lengths) if given is not None]
            samples = sizes[0] if sizes else rows
            if rows % samples:
                raise ValueError(f"{samples} samples were named for a batch of {rows} rows")
            step = dataclasses.replace(step, copies=rows // samples)
        if self.prompt_lengths is None:
            return step
        if len(self.prompt_lengths) * step.copies != rows:
            raise ValueError(f"{len(self.prompt_lengths)} prompt lengths for {rows // step.copies} samples")
        return dataclasses.replace(step, prompt_R=self.prompt_lengths.repeat_interleave(step.copies))


def per_row(value: float | Sequence[float] | Tensor, name: str) -> Tensor:
    """fp32 (1) or (B) on the CPU. Raises ValueError for another shape or values that are not finite."""
    tensor = torch.as_tensor(value, dtype=torch.float32).detach().cpu()
    tensor = tensor.reshape(1) if tensor.ndim == 0 else tensor
    if tensor.ndim != 1 or not len(tensor) or not torch.isfinite(tensor).all():
        raise ValueError(f"{name}: expected one finite number, or one per sample, not {value!r}")
    return tensor


def make_shifts(
    steerer: Steerer, values: Mapping[int, tuple[Layer, Tensor]], alpha: Tensor, rows: int, width: int
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
        if rows % len(value):
            raise ValueError(f"layer {layer}: {len(value)} vectors for {rows} rows; give one, or one per sample")
        value = value.float()
        if steerer.norm == "unit":
            value = value / value.norm(dim=-1, keepdim=True).clamp_min(1e-12) * _typical(steerer, layer)
        if len(value) > 1:
            value = value.repeat_interleave(rows // len(value), dim=0)
        shifts[index] = Shift(value[:, None], alpha.to(value.device)[:, None, None])
    return shifts


def _typical(steerer: Steerer, layer: Layer) -> float:
    """The length of a state at a layer, that norm "unit" measures alpha in."""
    for key, length in steerer.norms.items():
        if key in (layer.index, layer.name) or str(key) == str(layer.index):
            return float(length)
    raise ValueError(f"norm 'unit': norms= has no length for layer {layer}; it has {sorted(map(str, steerer.norms))}")
