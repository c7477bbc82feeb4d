"""Keep a learnt temperature within its bounds: project the parameter that the optimizer owns after every update.

The projection is no gradient's business (`hacl.models.heads.Temperature`), so a step has the same gradient however it
is cut into micro-batches and ranks. Under DeepSpeed the optimizer owns an fp32 master, and that is projected; the
working copy of the forward pass follows with the next update, and the forward pass is bounded by itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from hacl.models.heads import Temperature


@torch.no_grad()
def project(temperature: Temperature, optimizer: Any) -> None:
    """Move what `optimizer` owns of the temperature to the nearest value within its bounds.

    Under DeepSpeed `optimizer` is its own or a wrapper of that, and every rank calls this (collective under ZeRO 1-2).
    """
    parameter, bounds = temperature.log_inverse, temperature.bounds
    if hasattr(parameter, "ds_id"):  # ZeRO-3: every rank its part, which on most is nothing but padding
        from deepspeed.utils import safe_get_local_fp32_param, safe_set_local_fp32_param

        safe_set_local_fp32_param(parameter, safe_get_local_fp32_param(parameter).clamp(*bounds))
    elif hasattr(parameter, "_hp_mapping"):  # ZeRO 1 and 2
        from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param

        safe_set_full_fp32_param(parameter, safe_get_full_fp32_param(parameter).clamp(*bounds))
    else:
        _owned(parameter, optimizer).clamp_(*bounds)


def _owned(parameter: Tensor, optimizer: Any) -> Tensor:
    """The parameter itself, or its fp32 master in the optimizer that DeepSpeed has for bf16 without ZeRO."""
    while optimizer is not None:
        groups = getattr(optimizer, "fp16_groups", ()), getattr(optimizer, "fp32_groups", ())  # named so for bf16 too
        for working, masters in zip(*groups, strict=True):
            for copy, master in zip(working, masters, strict=True):
                if copy is parameter:
                    return master
        optimizer = getattr(optimizer, "optimizer", None)
    return parameter


class BoundedTemperature(TrainerCallback):
    """Projects the temperature of the heads after every optimizer step, before anything reads or saves it."""

    def __init__(self, temperature: Temperature):
        self.temperature = temperature

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        project(self.temperature, optimizer)
