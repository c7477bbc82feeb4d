"""What a run tells while it trains: its first lines, and the callbacks that write logs, samples and diagnostics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hacl.config import Config
from hacl.training import callbacks, runtime
from hacl.training.diagnostics_callback import StateDiagnostics
from hacl.training.objective import HaclModel
from hacl.training.trainer import HaclTrainer

if TYPE_CHECKING:
    from hacl.training.run import Inputs


def add_watchers(trainer: HaclTrainer, config: Config, inputs: Inputs, model: HaclModel) -> None:
    """Add what writes logs, samples and diagnostics."""
    folder = config.train.output_dir
    watchers: list = [callbacks.JsonLines(folder), callbacks.Board(folder)]
    if config.log.sample_steps:
        pool = [r for r in inputs.eval_records or inputs.records if len(r.images) == 1]
        watchers.append(
            callbacks.SampleCaptions(
                model,
                inputs.processor,
                pool[: config.log.sample_count],
                inputs.image_root,
                inputs.encoder,
                paused=trainer.paused,
                every=config.log.sample_steps,
                new_tokens=config.log.sample_max_new_tokens,
                folder=folder,
                poll=trainer.poll,
            )
        )
    if config.log.diagnostic_steps:
        watchers.append(
            StateDiagnostics(
                model,
                inputs.encoder,
                inputs.eval_records or inputs.records,
                inputs.image_root,
                paused=trainer.paused,
                every=config.log.diagnostic_steps,
                count=config.log.diagnostic_count,
                batch_size=config.train.per_device_eval_batch_size,
                folder=folder,
                poll=trainer.poll,
            )
        )
    for watcher in watchers:
        trainer.add_callback(watcher)


def announce(config: Config, trainer: HaclTrainer, start: str | None) -> None:
    """What a reader of the log must know about batches and what trains."""
    if not trainer.is_world_process_zero():
        return
    train = config.train
    ranks = trainer.args.world_size
    trained = sum(getattr(p, "ds_numel", p.numel()) for p in trainer.model.parameters() if p.requires_grad)
    total = sum(getattr(p, "ds_numel", p.numel()) for p in trainer.model.parameters())
    print(
        f"training {trained:,} of {total:,} parameters on {ranks} rank(s), "
        + ("no DeepSpeed" if train.deepspeed is None else f"DeepSpeed ZeRO-{runtime.zero_stage(train)}")
        + (f", resuming {start}" if start else "")
    )
    print(
        f"contrastive batch: {train.contrastive_batch_size * ranks} samples "
        f"({'the whole step' if train.grad_cache else 'one micro-batch'} over all ranks"
        + (f", {train.chunk_size} per rank at a time); " if train.grad_cache else "); ")
        + f"generation batch: {train.per_device_batch_size * ranks * train.gradient_accumulation_steps} samples a step"
        + (
            f"; accumulation averages {train.gradient_accumulation_steps} contrastive batches, it does not enlarge them"
            if train.gradient_accumulation_steps > 1 and not train.grad_cache
            else ""
        ),
        flush=True,
    )
