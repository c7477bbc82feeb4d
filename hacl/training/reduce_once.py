"""Reduce the gradients of a step once under ZeRO-2 and 3, which by themselves reduce them after every backward pass.

Rajbhandari et al., arXiv 1910.02054, section 7: a step exchanges what its passes gather, and its gradients once. With
several micro-batches that holds where each rank keeps whole gradients until the last one, which
`DeepSpeedEngine.coalesce_grad_reduction` (deepspeedai/DeepSpeed, 0.19.8) does.
"""

from __future__ import annotations

import contextlib

from accelerate import Accelerator
from accelerate.utils.deepspeed import DeepSpeedEngineWrapper
from torch import Tensor

from hacl.config import ConfigError


class OneReduction(DeepSpeedEngineWrapper):
    """Accelerate's engine, whose backward passes keep whole gradients until the one that ends the step."""

    def __init__(self, engine):
        super().__init__(engine)
        self._kept = contextlib.ExitStack()
        self._is_open = False

    def backward(self, loss: Tensor, sync_gradients: bool = True, **options) -> None:
        """Back-propagate one micro-batch. loss: 0-d; sync_gradients: whether it ends the step.

        Raises ConfigError where the optimizer of the engine cannot keep gradients.
        """
        if not self._is_open:
            try:
                self._kept.enter_context(self.engine.coalesce_grad_reduction())
            except NotImplementedError as error:
                raise ConfigError(f"train.reduce_once: {error}") from error
            self._is_open = True
        self.engine.set_gradient_accumulation_boundary(is_boundary=sync_gradients)
        self.engine.backward(loss, **options)
        if sync_gradients:
            self._is_open = False
            self._kept.close()  # the reduction; afterwards the engine is between two steps again
            self.engine.set_gradient_accumulation_boundary(is_boundary=True)
            self.engine.step()


def reduce_once(accelerator: Accelerator) -> None:
    """Let the prepared DeepSpeed engine of `accelerator` reduce once a step.

    Raises ConfigError at a stage that does not divide gradients: a JSON file can hold any.
    """
    engine = accelerator.deepspeed_engine_wrapped.engine
    stage = int(engine.zero_optimization_stage())
    if stage not in (2, 3):
        raise ConfigError(f"train.reduce_once is for ZeRO-2 and 3; train.deepspeed has stage {stage}")
    accelerator.deepspeed_engine_wrapped = OneReduction(engine)
