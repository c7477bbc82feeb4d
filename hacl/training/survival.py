"""A Trainer that loses nothing it could keep: complete checkpoints or none, polite stops, no non-finite update.

It knows nothing of the loss. What it takes from Trainer is the loop; saving goes through
:mod:`~hacl.training.checkpoint_store`, requests to stop through :mod:`~hacl.training.stopping`, the check of a step
through :mod:`~hacl.training.nonfinite`, and heartbeats through :mod:`~hacl.training.watchdog`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_callback import ExportableState

from hacl.config import Config
from hacl.training import checkpoint_store, manifest, resume, runtime, storage, weights
from hacl.training.nonfinite import NonFiniteGuard, gradients_are_finite
from hacl.training.stopping import Stopped, StopRequest, end_workers
from hacl.training.watchdog import Watchdog

logger = logging.getLogger(__name__)


class SurvivingTrainer(Trainer):
    """base and data: fingerprints of base checkpoint and records, for the manifests; `stop` may be set from outside."""

    stop = StopRequest()
    guard: NonFiniteGuard | None = None
    watchdog: Watchdog | None = None
    is_finished = False  # resumed only to validate and report: no step is left

    def __init__(self, *, config: Config, base: str = "", data: str = "", **kwargs: Any):
        super().__init__(**kwargs)
        self.config, self.base, self.data = config, base, data
        train = config.train
        self.guard = NonFiniteGuard(train.on_nonfinite, train.max_nonfinite_skips, train.output_dir)
        self.watchdog = Watchdog(60 * train.timeout_minutes, rank=self.args.process_index, ranks=self.args.world_size)
        self._iterator: object = None
        self._saved_step = -1
        self._before_step: dict[str, Any] = {}
        self._loss_before = torch.zeros(())

    # What a subclass adds

    def paused(self) -> contextlib.AbstractContextManager:
        """Context whose time counts as no training."""
        return contextlib.nullcontext()

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

    # Saving

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what trains, the processor and the backbone's config. Every rank calls this."""
        folder = Path(output_dir or self.args.output_dir)
        weights.save_weights(self.model, folder, write=self.args.should_save)
        if self.args.should_save:
            self.model.adapter.model.config.save_pretrained(folder)
            if self.processor is not None:
                self.processor.save_pretrained(folder)

    def checkpoint_bytes(self) -> int:
        """About what one checkpoint of this run takes on disk."""
        return weights.checkpoint_bytes(self.model, deepspeed=self.is_deepspeed_enabled)

    def save_now(self) -> None:
        """Write a checkpoint of the current step unless this process has one of it already. Every rank calls this."""
        if self._saved_step != self.state.global_step:
            self._save_checkpoint(self.model_wrapped, None)

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        """All of a checkpoint, or nothing and StorageError on every rank; then older ones are pruned."""
        with self.paused():
            step = self.state.global_step
            self.beat("save")
            folder = checkpoint_store.temporary_folder(self.args.output_dir, step)
            try:
                self._write_parts(folder)
                self._on_all_ranks(lambda: self._flush(folder))
                self._on_all_ranks(lambda: self._publish(folder))
            except storage.StorageError:
                if self.args.should_save:
                    checkpoint_store.remove(folder)
                raise
            self._saved_step = step
            self.beat("after saving")

    def _write_parts(self, folder: Path) -> None:
        self._on_all_ranks(lambda: self._open(folder))
        self.store_flos()
        self._on_all_ranks(lambda: self.save_model(str(folder), _internal_call=True))
        self._on_all_ranks(lambda: self._save_optimizer_and_scheduler(str(folder)))
        self._on_all_ranks(lambda: self._save_rng_state(str(folder)))
        if self.args.should_save:
            self._note_state()
        self._on_all_ranks(lambda: self._save_state(folder))

    def _open(self, folder: Path) -> None:
        if self.args.should_save:
            checkpoint_store.remove(folder)
            folder.mkdir(parents=True)

    def _note_state(self) -> None:
        """Bring Trainer's state up to date: its callbacks, and the folder of the best checkpoint."""
        state = self.state
        for part in [c for c in [*self.callback_handler.callbacks, self.control] if isinstance(c, ExportableState)]:
            name = type(part).__name__
            held = state.stateful_callbacks.get(name)
            state.stateful_callbacks[name] = [*held, part.state()] if isinstance(held, list) else part.state()

    def _save_state(self, folder: Path) -> None:
        self._save_scaler(str(folder))
        state = self.state
        if state.best_global_step:
            best = checkpoint_store.checkpoint_folder(self.args.output_dir, state.best_global_step)
            if state.best_global_step == state.global_step or best.is_dir():
                state.best_model_checkpoint = str(best)
        if self.args.should_save:
            state.save_to_json(str(folder / "trainer_state.json"))

    def _flush(self, folder: Path) -> None:
        if self.args.local_process_index == 0:
            checkpoint_store.flush(folder)

    def _publish(self, folder: Path) -> None:
        if not self.args.should_save:
            return
        output, state = Path(self.args.output_dir), self.state
        ranks = self.args.world_size
        checkpoint_store.check_ranks(folder, ranks)
        manifest.write_manifest(
            folder, self.config, base=self.base, data=self.data, step=state.global_step, ranks=ranks
        )
        final = checkpoint_store.checkpoint_folder(output, state.global_step)
        checkpoint_store.publish(folder, final)
        keep = self.config.train.save_total_limit
        checkpoint_store.prune(output, keep, newest=final, best=state.best_model_checkpoint)

    def _on_all_ranks(self, action: Callable[[], None]) -> None:
        """Do a part of a save on this rank, then hear whether all ranks could. Raises StorageError on all of them."""
        folder, failure = Path(self.args.output_dir), None
        what = f"checkpoint-{self.state.global_step}"
        try:
            action()
        except Exception as error:
            if not storage.is_storage_failure(error):
                raise
            failure = storage.explain(error, folder, what, needed=self.checkpoint_bytes())
        said: list[str | None] = [None if failure is None else str(failure)]
        if self.args.world_size > 1:
            said = [None] * self.args.world_size
            torch.distributed.all_gather_object(said, None if failure is None else str(failure))
        wrong = [f"rank {rank}: {message}" for rank, message in enumerate(said) if message is not None]
        if not wrong:
            return
        last = manifest.newest_checkpoint(folder)
        kept = f"{last.name} is the last complete checkpoint" if last else "there is no complete checkpoint yet"
        text = str(failure) if self.args.world_size == 1 else "; ".join(wrong)
        raise storage.StorageError(f"{text}; {kept}") from failure

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """As Trainer; DeepSpeed leaves out frozen weights, which the base checkpoint holds."""
        if not self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        with _late_failures(self.model_wrapped) as failures:
            self.model_wrapped.save_checkpoint(output_dir, exclude_frozen_parameters=True, save_latest=False)
        if failures:
            raise failures[0]
        if self.args.should_save:
            (Path(output_dir) / "latest").write_text(f"global_step{self.model_wrapped.global_steps}", encoding="utf-8")
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any = None) -> bool:
        """As Trainer, among the steps that are saved: one without a checkpoint cannot be the best checkpoint."""
        return self.control.should_save and super()._determine_best_metric(metrics=metrics, trial=trial)

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

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As Trainer, without the rates of a process that made no step."""
        if not (self.is_finished and "train_loss" in logs):
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
            self._saved_step = self.state.global_step
        return model, train_dataloader

    def _load_deepspeed(self, folder: str) -> None:
        loaded, _ = self.model_wrapped.load_checkpoint(folder, load_module_strict=False)
        if loaded is None:
            raise manifest.CheckpointError(f"{folder}: DeepSpeed found no state in it")
        weights.load_queue(self.model, Path(folder))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        weights.load_weights(self.model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        self.save_now()  # of the last step, whose weights now go
        best = self.state.best_model_checkpoint
        logger.info("loading the best checkpoint %s (%s)", best, self.state.best_metric)
        if self.is_deepspeed_enabled:
            self._load_deepspeed(best)
        else:
            weights.load_weights(self.model, Path(best))


@contextlib.contextmanager
def _late_failures(engine: Any) -> Iterator[list[Exception]]:
    """Let a DeepSpeed engine write on after a failed write, so that ranks still meet; yields the list of failures."""
    failures: list[Exception] = []
    writer, script = engine.checkpoint_engine.save, engine._copy_recovery_script

    def noting(write: Callable[..., Any]) -> Callable[..., None]:
        def call(*arguments: Any, **options: Any) -> None:
            try:
                write(*arguments, **options)
            except (OSError, RuntimeError) as error:
                if not storage.is_storage_failure(error):
                    raise
                failures.append(error)

        return call

    engine.checkpoint_engine.save, engine._copy_recovery_script = noting(writer), noting(script)
    try:
        yield failures
    finally:
        engine.checkpoint_engine.save, engine._copy_recovery_script = writer, script
