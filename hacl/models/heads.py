"""Projection heads between LLM states and the contrastive space, and the temperature.

Shapes: D hidden size, P contrastive size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

HEAD_KINDS = ("none", "linear", "mlp")


class ContrastiveHeads(nn.Module):
    """Image and text heads and a bounded temperature.

    kind: "none" leaves states as they are (HACL paper, section 3.2: the similarity acts on the states themselves),
    "linear" is one biased linear map per modality (the released code, with P = D // 4), "mlp" has one hidden layer of
    size D and a GELU. `shared` uses one map for both modalities; true and hallucinated captions always share theirs.
    Initial weights depend on `seed` only and leave the global random state alone.

    Raises ValueError for an unknown kind, a projection size or sharing without a head, and a temperature out of bounds.
    """

    def __init__(
        self,
        hidden_size: int,
        kind: str = "linear",
        projection_size: int | None = None,
        *,
        shared: bool = False,
        temperature: float = 0.07,
        learn_temperature: bool = False,
        temperature_min: float = 0.01,
        temperature_max: float = 0.5,
        seed: int = 0,
    ):
        super().__init__()
        if kind not in HEAD_KINDS:
            raise ValueError(f"head is {kind!r}; use one of {', '.join(HEAD_KINDS)}")
        if kind == "none" and projection_size not in (None, hidden_size):
            raise ValueError(f"projection_size {projection_size} needs a head: states of size {hidden_size} are used")
        if kind == "none" and shared:
            raise ValueError("shared_head needs a head; use head=linear or head=mlp")
        self.projection_size = hidden_size if kind == "none" else projection_size or max(1, hidden_size // 4)
        generator = torch.Generator().manual_seed(seed)
        self.image_projection = _projection(kind, hidden_size, self.projection_size, generator)
        self.text_projection = None if shared else _projection(kind, hidden_size, self.projection_size, generator)
        self.temperature = Temperature(temperature, temperature_min, temperature_max, learn=learn_temperature)

    def project_image(self, states: Tensor) -> Tensor:
        """(..., D) -> (..., P), not normalised, in the dtype of the head."""
        return _project(self.image_projection, states)

    def project_text(self, states: Tensor) -> Tensor:
        """(..., D) -> (..., P), not normalised, in the dtype of the head."""
        return _project(self.image_projection if self.text_projection is None else self.text_projection, states)

    def log_inverse_temperature(self) -> Tensor:
        """log(1 / tau), shape (1,), fp32, within the bounds."""
        return self.temperature()


class Temperature(nn.Module):
    """s = log(1 / tau) as a (1,) parameter, bounded in the forward pass.

    A module of its own so that ZeRO-3 gathers it by its forward. The gradient passes the bound unchanged: it is that of
    the bounded value, and so a sum over micro-batches and ranks of what each of them gives. A parameter beyond a bound
    therefore comes back; that an update does not carry it there is the projection's work, `hacl.training.temperature`,
    which writes to what the optimizer owns and never, under DeepSpeed, to a working copy.
    """

    def __init__(self, initial: float, lowest: float, highest: float, *, learn: bool):
        super().__init__()
        if not 0 < lowest <= initial <= highest:
            raise ValueError(
                f"temperature {initial} must lie within temperature_min {lowest} and temperature_max {highest}, above 0"
            )
        self.bounds = -math.log(highest), -math.log(lowest)
        initial_log_inverse = torch.tensor([-math.log(initial)], dtype=torch.float32)
        self.log_inverse = nn.Parameter(initial_log_inverse, requires_grad=learn)

    def forward(self) -> Tensor:
        log_inverse = self.log_inverse.to(torch.promote_types(self.log_inverse.dtype, torch.float32))
        return _Bound.apply(log_inverse, *self.bounds)


class _Bound(torch.autograd.Function):
    """Clamp whose gradient passes unchanged.

    A plain clamp has none beyond its bound, so a parameter there would stay for good. A mask by the sign of the
    gradient would look at one backward pass on one rank, and is not linear: +1 and -3 are not what -2 is.
    """

    @staticmethod
    def forward(ctx, value, lowest, highest):
        return value.clamp(lowest, highest)

    @staticmethod
    def backward(ctx, grad):
        return grad, None, None


def _projection(kind: str, hidden_size: int, projection_size: int, generator: torch.Generator) -> nn.Module:
    if kind == "none":
        return nn.Identity()
    if kind == "linear":
        return _linear(hidden_size, projection_size, generator)
    hidden = _linear(hidden_size, hidden_size, generator)
    return nn.Sequential(hidden, nn.GELU(), _linear(hidden_size, projection_size, generator))


def _linear(size_in: int, size_out: int, generator: torch.Generator) -> nn.Linear:
    linear = nn.utils.skip_init(nn.Linear, size_in, size_out)
    bound = size_in**-0.5
    with torch.no_grad():
        linear.weight.uniform_(-bound, bound, generator=generator)
        linear.bias.uniform_(-bound, bound, generator=generator)
    return linear


def _project(projection: nn.Module, states: Tensor) -> Tensor:
    parameter = next(projection.parameters(), None)
    return projection(states if parameter is None else states.to(parameter.dtype))
