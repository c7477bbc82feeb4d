"""A Trainer that loses nothing it could keep: complete checkpoints or none, polite stops, no non-finite update.

It knows nothing of the loss. What it takes from Trainer is the loop; saving is that of :mod:`~hacl.training.saving`,
requests to stop go through :mod:`~hacl.training.stopping`, the check of a step through
:mod:`~hacl.training.nonfinite`, and heartbeats through :mod:`~hacl.training.watchdog`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from hacl.config import Config
from hacl.training import resume, running_sums, runtime
from hacl.training.nonfinite import NonFiniteGuard, gradients_are_finite
from hacl.training.saving import SavingTrainer
from hacl.training.stopping import Stopped, StopRequest, end_workers
from hacl.training.watchdog import Watchdog


class SurvivingTrainer(SavingTrainer):
    """base and data: fingerprints of base checkpoint and records, for the manifests; `stop` may be set from outside."""

    stop = StopRequest()
    guard: NonFiniteGuard | None = None
    watchdog: Watchdog | None = None
    is_finished = False  # resumed only to validate and report: no step is left

    def __init__(self, *, config: Config, base: str = "", data: str = "", **kwargs: Any):
        super().__init__(config=config, base=base, data=data, **kwargs)
        train = self.config.train
        self.guard = NonFiniteGuard(train.on_nonfinite, train.max_nonfinite_skips, train.output_dir)
        self.watchdog = Watchdog(60 * train.timeout_minutes, rank=self.args.process_index, ranks=self.args.world_size)
        self._iterator: object = None
        self._before_step: dict[str, Any] = {}
        self._loss_before = torch.zeros(())
        self._sums: dict[str, Any] = {}  # of the checkpoint that is resumed
        self._logged: float | None = None  # Trainer's sum as of the last log line, once it has added the rest
        self.add_callback(_BringBackSums(self))

    # What a subclass adds

    def keep_state(self) -> dict[str, Any]:
        """What a skipped step must not have changed, beyond weights and optimizer; see `bring_back`."""
        return {}

    def bring_back(self, state: dict[str, Any]) -> None:
        """Restore what `keep_state` kept."""

    # Stopping

    def beat(self, phase: str, records: Sequence[str] | None = None) -> None:
        """Say that this rank is in `phase` of the current step."""
        if self.watchdog is not None:
            self.watchdog.beat(phase, step=self.state.global_step, records=records)

    def poll(self, phase: str) -> None:
        """Between parts of a long phase (collective): say where this rank is, and raise Stopped if any was asked to."""
        self.beat(phase)
        if self.stop.agreed(self.args.device):
            self.raise_stopped()

    def raise_stopped(self) -> None:
        """Leave the loop; the caller of `train` saves."""
        raise Stopped(self.stop.received or "a signal to another rank", self.state.global_step, saved=False)

    def train(self, *arguments: Any, **options: Any) -> Any:
        """As Trainer, watched; loader workers are ended however it ends. Raises HungRankError for a lost rank."""
        self.watchdog.start()
        try:
            return super().train(*arguments, **options)
        except RuntimeError as error:
            blamed = self.watchdog.blame(error)
            if blamed is None:
                raise
            raise blamed from error
        finally:
            self.watchdog.stop()
            end_workers(self._iterator)
            self._iterator = None

    # The check of a step

    def begin_step(self, records: Sequence[Sequence[str]]) -> None:
        """A window of micro-batches was read. records: ids of each, on this rank."""
        if self.guard is None:
            return
        step = self.state.global_step + 1
        self.watchdog.beat("forward and backward", step=step, records=[name for ids in records for name in ids])
        self.guard.begin(records, step=step)
        if self.config.train.on_nonfinite == "skip":
            self._before_step, self._loss_before = self.keep_state(), self._tr_loss.clone()

    def note_loss(self, loss: Tensor) -> None:
        """The loss of a micro-batch, before its backward. DeepSpeed updates within the backward of the last one, so
        the losses are looked at here (collective)."""
        if self.guard is None:
            return
        self.guard.note(loss)
        if not (self.is_deepspeed_enabled and self.accelerator.gradient_state.sync_gradients):
            return
        if not self.guard.losses_are_finite():
            self.guard.refuse("the loss is not finite")  # a skip goes on: ZeRO leaves out non-finite gradients itself

    def training_step(self, model: nn.Module, inputs: dict, num_items_in_batch: Tensor | None = None) -> Tensor:
        """As Trainer. The loss of a micro-batch that is not finite enters no running mean."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        return torch.nan_to_num(loss, 0.0, 0.0, 0.0)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | float | None = None) -> Tensor | float:
        """As Trainer, which calls it last before the update: that is made only if losses and norm are finite."""
        norm = super()._get_grad_norm(model, grad_norm)
        if self.is_deepspeed_enabled:
            self._check_engine(norm)
        elif not self.guard.losses_are_finite(norm):
            self.guard.refuse("the loss or the gradient norm is not finite")
            model.zero_grad(set_to_none=True)  # and an optimizer without gradients changes nothing
        if not self.guard.is_skipping:
            return norm
        self.bring_back(self._before_step)
        self._tr_loss = self._loss_before
        self._globalstep_last_logged += 1  # Trainer divides the sum of losses by the steps since then
        return 0.0

    def _check_engine(self, norm: Tensor | float | None) -> None:
        """After DeepSpeed's step: it left the update out if the norm was not finite. Keeps the schedule in step."""
        engine = self.model_wrapped
        if engine.was_step_applied() and not self.guard.is_skipping:
            return
        if not self.guard.is_skipping:
            self.guard.refuse(f"the gradient norm is not finite (DeepSpeed reports {norm})")
        elif engine.was_step_applied():
            raise RuntimeError("DeepSpeed updated the weights although the loss was not finite; resume from the last "
                               "checkpoint with train.on_nonfinite=raise")  # fmt: skip
        self.lr_scheduler.step()  # Trainer leaves it out where an update was; elsewhere a skipped step counts

    def _guard_stage_0(self) -> None:
        """Without ZeRO the engine looks at no gradient before its update; the optimizer's own hook does."""

        def check(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            if not gradients_are_finite(optimizer):
                self.guard.refuse("the gradient is not finite")

        plain = self.optimizer
        while hasattr(plain, "optimizer"):
            plain = plain.optimizer
        plain.register_step_pre_hook(check)

    # Resuming

    def set_initial_training_values(self, args: Any, dataloader: Any) -> tuple:
        """As Trainer; of a run that is finished no epoch is left, so that `train` only loads what was saved."""
        epochs, *others = super().set_initial_training_values(args, dataloader)
        return (0 if self.is_finished else epochs, *others)

    def _init_training_state(self, *arguments: Any) -> tuple[int, int]:
        """As Trainer; what the resumed state says of the best checkpoint stays only where it still holds."""
        begun = super()._init_training_state(*arguments)
        *_, start, _ = arguments
        if start is not None:
            resume.settle_best(self.state, start, self.config)
        return begun

    def running_sums(self) -> dict[str, Any]:
        """Trainer's sums of losses, of this rank since the last log line and of the run before it."""
        logged = self._total_loss_scalar if self._logged is None else self._logged
        return {"loss": float(self._tr_loss), "logged": logged, "last": self._globalstep_last_logged}

    def bring_back_sums(self, sums: dict[str, Any]) -> None:
        """Go on with what `running_sums` returned when the checkpoint was written."""
        self._tr_loss += sums["loss"]
        self._total_loss_scalar, self._globalstep_last_logged = sums["logged"], sums["last"]

    def _finalize_training(self, *arguments: Any) -> Any:
        """As Trainer, which adds the one sum to the other; a checkpoint that comes after keeps them apart."""
        self._logged = self._total_loss_scalar
        return super()._finalize_training(*arguments)

    def mean_loss(self) -> float | None:
        """Mean over all steps of the run, after `train`; None where it went on from a checkpoint without sums."""
        is_known = self._sums or self._initial_global_step == 0
        return self._total_loss_scalar / max(self.state.global_step, 1) if is_known else None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As Trainer, without the rates of a process that made no step; `train_loss` is the mean of the whole run."""
        if "train_loss" in logs and self.is_finished:
            return
        if "train_loss" in logs and (mean := self.mean_loss()) is not None:
            logs["train_loss"] = mean
        super().log(logs, start_time)

    def _prepare_for_training(self, max_steps: int, train_dataloader, resume_from_checkpoint):
        """As Trainer, but a DeepSpeed checkpoint is read without its (left out) frozen weights."""
        model, train_dataloader = super()._prepare_for_training(max_steps, train_dataloader, None)
        if self.is_deepspeed_enabled and runtime.zero_stage(self.config.train) == 0:
            self._guard_stage_0()
        if resume_from_checkpoint is not None:
            if self.is_deepspeed_enabled:
                self._load_deepspeed(resume_from_checkpoint)
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
            self._load_scaler(resume_from_checkpoint)
            self._sums = running_sums.read(resume_from_checkpoint, self.args.process_index)
            self._saved_step = self.state.global_step
        return model, train_dataloader


class _BringBackSums(TrainerCallback):
    """Trainer begins its sums anew just before it calls this."""

    def __init__(self, trainer: SurvivingTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer._sums:
            self.trainer.bring_back_sums(self.trainer._sums)
