"""One training run from a Config: build, train, save. Order matters under ZeRO-3: arguments before model."""

from __future__ import annotations

import contextlib
import gc
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hacl.config import Config, save_config
from hacl.data.bad_samples import SkipNotes, TolerantDataset
from hacl.data.collate import PackedCollator
from hacl.data.dataset import TrainingDataset
from hacl.data.records import Record
from hacl.data.sources import Source
from hacl.data.stream_dataset import StreamDataset
from hacl.data.templates import SequenceEncoder
from hacl.losses.gather import Gather
from hacl.training import (
    build,
    caches,
    checkpoint_store,
    checks,
    kernels,
    manifest,
    resume,
    run_folder,
    runtime,
    storage,
    streaming,
    watchers,
)
from hacl.training.diagnostics_callback import usable_records
from hacl.training.objective import HaclModel
from hacl.training.outline import utilisation
from hacl.training.resume import RESULT
from hacl.training.skipped import SkippedSamples
from hacl.training.stopping import Stopped, StopRequest
from hacl.training.trainer import DataError, HaclTrainer
from hacl.training.work import CountingCollator


@dataclass
class RunResult:
    """checkpoint: folder of the best checkpoint (the last one without train.best_metric)."""

    checkpoint: Path
    step: int
    metrics: dict[str, Any]


@dataclass
class Inputs:
    """What a run reads besides weights. With data.stream `source` gives the training records, and `records` are the
    first of them."""

    processor: Any
    encoder: SequenceEncoder
    records: list[Record]
    eval_records: list[Record]
    image_root: Path | None
    source: Source | None = None


def read_inputs(config: Config) -> Inputs:
    """Processor, records, images and samples, checked before any weight is loaded; see `hacl.training.checks`.

    Raises ValueError and FileNotFoundError naming file, record and fix.
    """
    build.check_model_path(config.model.path)
    source = streaming.open_stream(config) if config.data.stream else None
    tolerated = config.data.max_bad_fraction
    if source is None:
        records = build.read_all(config.data.path, config.data.max_records)
    else:
        records = streaming.read_head(source, checks.STREAMED, tolerated)
    eval_records = build.read_all(config.data.eval_path)
    checks.check_records(records, config.objective, ", ".join(config.data.path) or "data.path", config.data)
    if config.data.eval_path:
        checks.check_records(eval_records, config.objective, ", ".join(config.data.eval_path), config.data)
    processor = build.load_processor(config.model)
    root = build.image_root(config.data)
    decode = not config.train.cache_vision_features  # which reads every image before training anyway
    on_disk = [] if source is not None and source.holds_images else records
    checks.check_images(on_disk, root, decode=decode, max_bad_fraction=tolerated)
    checks.check_images(eval_records, root, decode=decode)
    encoder = build.build_encoder(processor, config.data)
    inputs = Inputs(processor, encoder, records, eval_records, root, source)
    for part, where, share in ((records, "data.path", tolerated), (eval_records, "data.eval_path", 0.0)):
        if part:
            dataset = build_dataset(config, inputs, part, pixels=False)
            few = config.data.max_unlabelled_fraction
            checks.check_samples(dataset, where, max_bad_fraction=share, max_unlabelled_fraction=few)
    if config.log.diagnostic_steps:
        usable_records(eval_records or records, config.log.diagnostic_count)
    return inputs


def build_model(config: Config, inputs: Inputs, *, backbone: nn.Module | None = None) -> HaclModel:
    """Backbone with what trains, and heads. Loaded here unless given."""
    if backbone is None:
        backbone = build.load_backbone(config.model)
    stage = runtime.zero_stage(config.train)
    if stage != 3:  # sharded parameters cannot be run before DeepSpeed starts
        checks.check_image_tokens(backbone, inputs.encoder)
    torch.manual_seed(config.train.seed)
    backbone = build.select_trainable(backbone, config.model, masters=stage is None)
    adapter = build.find_adapter(backbone)
    kernels.prepare(adapter, config)
    trainable = config.model.learning_rate.heads > 0
    heads = build.build_heads(adapter, config.objective, seed=config.train.seed, trainable=trainable)
    if heads is not None and stage == 3:
        heads = heads.to(next(adapter.decoder.parameters()).dtype)  # ZeRO-3 wants one dtype; masters are fp32
    gather = Gather() if runtime.world_size() > 1 else None
    return HaclModel(backbone, config.objective, gather=gather, heads=heads)


def build_dataset(config: Config, inputs: Inputs, records: list[Record], *, pixels: bool) -> TrainingDataset:
    return TrainingDataset(
        records,
        inputs.encoder,
        image_root=inputs.image_root,
        objective=config.objective,
        seed=config.data.seed,
        load_pixels=pixels,
    )


def build_samples(
    config: Config, inputs: Inputs, records: list[Record], *, pixels: bool
) -> TrainingDataset | TolerantDataset:
    """Samples of these records; where data.max_bad_fraction allows bad ones, these are replaced."""
    dataset = build_dataset(config, inputs, records, pixels=pixels)
    return TolerantDataset(dataset) if config.data.max_bad_fraction else dataset


def build_train_set(
    config: Config, inputs: Inputs, *, pixels: bool
) -> TrainingDataset | TolerantDataset | StreamDataset:
    """The training samples, as `build_samples` or from a stream."""
    if inputs.source is None:
        return build_samples(config, inputs, inputs.records, pixels=pixels)
    return streaming.train_set(config, inputs.source, build_dataset(config, inputs, [], pixels=pixels))


def build_trainer(config: Config, stop: StopRequest | None = None) -> HaclTrainer:
    """Everything up to the first step. Raises before training for bad settings, records, images and processors, and
    Stopped where `stop` is asked on any rank: between reading, loading and building, and while caches are computed."""
    runtime.prepare_process(config.train)
    build.pin_revision(config.model)
    inputs = read_inputs(config)
    _leave_if_asked(stop)
    measured = utilisation(config, inputs.processor)
    stores = caches.Stores()
    if caches.wanted(config) and runtime.zero_stage(config.train) == 3:
        unsharded = build_model(config, inputs)  # no arguments yet, so nothing shards it
        _leave_if_asked(stop)
        stores = caches.prepare(config, inputs, unsharded, stop)
        del unsharded
        gc.collect()
    arguments = runtime.training_arguments(config, has_eval=bool(inputs.eval_records))
    model = build_model(config, inputs)
    _leave_if_asked(stop)
    if caches.wanted(config) and runtime.zero_stage(config.train) != 3:
        stores = caches.prepare(config, inputs, model, stop)
    pixels = stores.features is None
    train_set = build_train_set(config, inputs, pixels=pixels)
    eval_set = build_dataset(config, inputs, inputs.eval_records, pixels=pixels) if inputs.eval_records else None
    collator = PackedCollator(
        inputs.encoder,
        config.objective,
        text_states=stores.texts,
        image_features=stores.features,
        pad_to_multiple=config.train.length_multiple,
    )
    collator = CountingCollator(collator)
    lengths = modality = None
    if config.train.grouping != "none":
        plain = build_train_set(config, inputs, pixels=False)
        lengths = [plain[i].num_tokens for i in range(len(plain))]
        modality = [not record.images for record in inputs.records]
    skipped = SkippedSamples(
        config.data.max_bad_fraction, streaming.epoch_samples(config, train_set), config.data.max_unlabelled_fraction
    )
    trainer = HaclTrainer(
        model,
        config,
        processor=inputs.processor,
        base=manifest.fingerprint(manifest.model_folder(config.model.path, config.model.revision)),
        data=manifest.data_fingerprint(inputs.records) if inputs.source is None else inputs.source.fingerprint(),
        lengths=lengths,
        is_text_only=modality,
        args=arguments,
        data_collator=SkipNotes(collator),
        train_dataset=train_set,
        eval_dataset=eval_set,
        skipped=skipped,
        utilisation=measured,
    )
    watchers.add_watchers(trainer, config, inputs, model)
    _leave_if_asked(stop)
    return trainer


def _leave_if_asked(stop: StopRequest | None) -> None:
    """Between parts of the start, when there is nothing to save (collective). Raises Stopped on every rank."""
    if stop is not None and stop.agreed(runtime.local_device()):
        raise Stopped(stop.received, 0, saved=False)


def run(config: Config) -> RunResult:
    """Train as configured and return the checkpoint to export. Calling again resumes, or returns what is done.

    Raises Stopped after SIGTERM or SIGUSR1, once the last step is saved; StorageError where nothing can be written;
    NonFiniteError, DataError and HungRankError for what their names say. Several ranks raise together.
    """
    resume.refuse_used_folder(config)
    storage.check_writable(config.train.output_dir, runtime.rank())
    with StopRequest(at_once=runtime.world_size() == 1) as stop:
        runtime.prepare_process(config.train)
        output = Path(config.train.output_dir)
        with run_folder.held(output):
            run_folder.check_shared(output)
            return _run(config, output, stop)


def _run(config: Config, output: Path, stop: StopRequest) -> RunResult:
    trainer = build_trainer(config, stop)
    trainer.stop = stop
    start = resume.find_resume(config, trainer.base, trainer.data)
    trainer.is_finished = start is not None and _is_finished(trainer, start)
    if trainer.is_finished and (found := _earlier(output, start)) is not None:
        return found
    if not trainer.is_finished:
        resume.begin_branch(config, start)
        storage.check_space(output, trainer.checkpoint_bytes())
        runtime.on_first_rank(lambda: _note_start(config, output), otherwise=storage.StorageError)
        watchers.announce(config, trainer, start)
    stop.at_once = False
    with _saving_what_is_done(trainer):
        return _train(trainer, start)


def _note_start(config: Config, output: Path) -> None:
    """Settings and versions of the run; a result that is there is about what was finished before."""
    with storage.storage_errors(output, "config.yaml and versions.json"):
        (output / RESULT).unlink(missing_ok=True)
        save_config(config, output / "config.yaml")
        (output / "versions.json").write_text(json.dumps(manifest.versions(), indent=1), encoding="utf-8")


@contextlib.contextmanager
def _saving_what_is_done(trainer: HaclTrainer) -> Iterator[None]:
    """Where a run stops between steps, on all ranks, its last step is saved before the error goes on."""
    try:
        yield
    except DataError as error:
        if trainer.state.global_step == 0:
            raise
        trainer.save_now()
        where = f"step {trainer.state.global_step} is saved in {trainer.args.output_dir}"
        raise DataError(f"{error} ({where})") from error
    except Stopped as stopped:
        if stopped.step > 0:
            trainer.save_now()
        trainer.control = trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
        raise Stopped(stopped.reason, stopped.step, saved=stopped.step > 0) from None


def _train(trainer: HaclTrainer, start: str | None) -> RunResult:
    """The loop, the last checkpoint, the last validation, and `result.json`."""
    output = Path(trainer.args.output_dir)
    outcome = trainer.train(resume_from_checkpoint=start)
    metrics = dict(outcome.metrics)
    if trainer.is_finished:  # without a step there are no rates
        metrics = {} if (mean := trainer.mean_loss()) is None else {"train_loss": mean}
    metrics.update(trainer.skipped.metrics())
    state = trainer.state
    best = state.best_model_checkpoint if trainer.config.train.best_metric is not None else None
    last = checkpoint_store.checkpoint_folder(output, state.global_step)
    trainer.save_now()
    evaluated = [entry for entry in state.log_history if "eval_loss" in entry and entry["step"] == state.global_step]
    if trainer.eval_dataset is not None and (best is not None or not evaluated):
        metrics.update(trainer.evaluate())
    elif evaluated:
        metrics.update({name: value for name, value in evaluated[-1].items() if name.startswith("eval_")})
    result = RunResult(Path(best) if best else last, state.global_step, metrics)
    runtime.on_first_rank(lambda: _write_result(output, result), otherwise=storage.StorageError)
    return result


def _write_result(output: Path, result: RunResult) -> None:
    summary = {"checkpoint": result.checkpoint.name, "step": result.step, "metrics": result.metrics}
    temporary = output / f".{RESULT}.tmp"
    with storage.storage_errors(output, RESULT):
        temporary.write_text(json.dumps(summary, indent=1), encoding="utf-8")
        os.replace(temporary, output / RESULT)


def _is_finished(trainer: HaclTrainer, checkpoint: str) -> bool:
    """Whether a checkpoint is of the last step; Trainer would add another one."""
    *_, max_steps = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    return manifest.load_manifest(checkpoint)["step"] >= max_steps


def _earlier(output: Path, last: str) -> RunResult | None:
    """What an earlier call of `run` returned (collective); None where it was ended before it could write that down."""
    step = manifest.load_manifest(last)["step"]
    found = runtime.on_first_rank(lambda: resume.earlier_result(output, step), otherwise=storage.StorageError)
    if runtime.rank() == 0:
        rest = f"validating and writing {RESULT}, which is missing" if found is None else "nothing left to do"
        print(f"{rest}: {output} is finished at step {step}", flush=True)
    return found and RunResult(output / found["checkpoint"], step, found.get("metrics", {}))
