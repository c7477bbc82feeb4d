"""A Trainer whose checkpoints are complete or not there, on every rank, and that reads back what it wrote.

Every part of a save ends with all ranks hearing whether all could. Names, flushing and pruning are those of
:mod:`~hacl.training.checkpoint_store`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer
from transformers.trainer_callback import ExportableState

from hacl.config import Config
from hacl.training import checkpoint_store, manifest, running_sums, storage, weights

logger = logging.getLogger(__name__)


class SavingTrainer(Trainer):
    """base and data: fingerprints of base checkpoint and records, for the manifests."""

    processor: Any = None

    def __init__(self, *, config: Config, base: str = "", data: str = "", **kwargs: Any):
        super().__init__(**kwargs)
        self.config, self.base, self.data = config, base, data
        self._saved_step = -1

    # What a subclass adds

    def paused(self) -> contextlib.AbstractContextManager:
        """Context whose time counts as no training."""
        return contextlib.nullcontext()

    def beat(self, phase: str, records: Sequence[str] | None = None) -> None:
        """Say that this rank is in `phase` of the current step."""

    def running_sums(self) -> dict[str, Any]:
        """What this rank has summed up for the next log line, for JSON."""
        return {}

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
        self._on_all_ranks(lambda: running_sums.write(folder, self.args.process_index, self.running_sums()))
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

    # Loading

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        weights.load_weights(self.model, Path(resume_from_checkpoint))

    def _load_deepspeed(self, folder: str) -> None:
        loaded, _ = self.model_wrapped.load_checkpoint(folder, load_module_strict=False)
        if loaded is None:
            raise manifest.CheckpointError(f"{folder}: DeepSpeed found no state in it")
        weights.load_queue(self.model, Path(folder))

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
