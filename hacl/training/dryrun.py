"""`train.py --dry-run`: what a run would train, how much memory, arithmetic and time it needs, and, if small, one step.

Counts come from the model on the meta device and from lengths of the data, so no weight is loaded for the prediction.
A model below `SMALL` parameters is then built for real and takes one forward and backward pass. What is predicted is
held against measurement by `scripts/check_dry_run.py`.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hacl.config import Config
from hacl.data.collate import PackedCollator
from hacl.models.families import FAMILIES
from hacl.training import caches, kernels, memory, outline, run, runtime
from hacl.training.hardware import peak_tflops
from hacl.training.memory import GIB
from hacl.training.objective import constant_text, is_frozen
from hacl.training.work import Work, count_work

SMALL = 300_000_000
RANKS = (1, 2, 4, 8, 16)
STAGES = (None, 0, 1, 2, 3)
LENGTHS = 256  # samples whose lengths stand for all
ASSUMED_DEVICE, ASSUMED_PEAK = "H100 SXM in bf16", 989.0  # where there is no GPU and log.peak_tflops is not given
ASSUMED_MFU = 0.4
NO_IMAGES = (
    "without what images cost in the vision tower and projector, which depends on their shapes here: add it to "
    "TFLOP, activations and hours"
)


@dataclass
class Prediction:
    """parameters: module -> (all, trained). batch: what the first micro-batch of a rank holds. tflops: executed by a
    micro-batch of a rank, forward and backward, minimal_tflops: the least it needs; both are means over lengths of the
    data. memory: (ZeRO stage or None, ranks) -> GiB per rank for weights, gradients and optimizer. queue: GiB of its
    features, on every rank; feature_size: numbers of a feature, 0 without a contrastive loss; counts_images: whether
    tflops and activations hold what images cost."""

    parameters: dict[str, tuple[int, int]]
    batch: dict[str, int]
    tflops: float
    minimal_tflops: float
    memory: dict[tuple[int | None, int], float]
    queue: float
    feature_size: int
    counts_images: bool = True

    @property
    def total(self) -> int:
        return sum(total for total, _ in self.parameters.values())

    @property
    def trained(self) -> int:
        return sum(trained for _, trained in self.parameters.values())


class _ConstantTexts:
    """Stands in for the cache of text states, whose lookup costs nothing."""

    def __init__(self, width: int):
        self.width, self.dtype = width, torch.float32

    def lookup(self, roots) -> Tensor:
        return torch.zeros(len(roots), self.width)


def predict(config: Config, inputs: run.Inputs | None = None) -> Prediction:
    """Arithmetic of a micro-batch and memory of what trains, without loading weights."""
    inputs = inputs or run.read_inputs(config)
    model = outline.outline(config)
    adapter, heads = model.adapter, model.heads
    kernels.check(adapter, config)
    frozen_bytes = 0.5 if config.model.load_in_4bit else {"float32": 4, "bfloat16": 2}[config.model.dtype]
    parameters = _parameters(model)
    total, trained = (sum(counts[i] for counts in parameters.values()) for i in (0, 1))
    states = {
        (stage, ranks): memory.state_bytes(
            total,
            trained,
            stage=stage,
            ranks=ranks,
            bf16=config.train.bf16,
            frozen_bytes=frozen_bytes,
            whole_gradients=config.train.reduce_once,
        )
        / GIB
        for stage in STAGES
        for ranks in RANKS
    }
    works = [_work(config, batch) for batch in micro_batches(config, inputs, model)]
    cost = outline.cost_of(config, model, inputs.processor)
    how = outline.execution(config, model)
    text_size = 0 if heads is None else adapter.hidden_size if is_frozen(adapter.decoder) else heads.projection_size
    return Prediction(
        parameters,
        {
            "samples": works[0].samples,
            "tokens": works[0].tokens,
            "slots": works[0].slots,
            "label_tokens": works[0].labels,
            "images": works[0].images_run,
        },
        tflops=sum(cost.executed(work, how) for work in works) / len(works) / 1e12,
        minimal_tflops=sum(map(cost.minimal, works)) / len(works) / 1e12,
        memory=states,
        queue=0.0 if heads is None else queue_bytes(config.objective, heads.projection_size, text_size) / GIB,
        feature_size=0 if heads is None else heads.projection_size,
        counts_images=adapter.is_split,
    )


def _parameters(model: outline.Outline) -> dict[str, tuple[int, int]]:
    modules = {name: list(parts) for name, parts in model.adapter.groups().items()}
    if model.heads is not None:
        modules["heads"] = [model.heads]
    parameters, seen = {}, set()
    for name, parts in modules.items():
        own = {id(p): p for part in parts for p in part.parameters() if id(p) not in seen}
        seen |= set(own)
        counted = own.values()
        parameters[name] = (sum(p.numel() for p in counted), sum(p.numel() for p in counted if p.requires_grad))
    return parameters


def queue_bytes(objective, image_size: int, text_size: int) -> int:
    """Bytes of the features that a full queue holds: an image and its texts for each sample."""
    texts = objective.num_captions + (objective.num_hallucinated if objective.queue_hallucinated else 0)
    width = {"float32": 4, "bfloat16": 2}[objective.queue_dtype]
    return objective.queue_size * (image_size + texts * text_size) * width


def micro_batches(config: Config, inputs: run.Inputs, model: outline.Outline) -> Iterator[dict[str, Tensor]]:
    """Micro-batches of the first records, in their order and without pixels: their lengths are those of training."""
    cached = config.train.cache_text_states or config.train.text_cache is not None
    cached = cached and model.heads is not None and constant_text(model.backbone)
    texts = _ConstantTexts(model.adapter.hidden_size) if cached else None
    multiple = config.train.length_multiple
    collator = PackedCollator(inputs.encoder, config.objective, text_states=texts, pad_to_multiple=multiple)
    dataset = run.build_samples(config, inputs, inputs.records[:LENGTHS], pixels=False)
    size = min(config.train.chunk_size, len(dataset))
    for start in range(0, len(dataset) - size + 1, size):
        yield collator([dataset[i] for i in range(start, start + size)])


def _work(config: Config, batch: dict[str, Tensor]) -> Work:
    """Counts of a micro-batch as training runs it, with its images."""
    work = count_work(batch)
    images = max(1, work.images)
    towers = (0, 0) if config.train.cache_vision_features else (work.images, images)
    return replace(work, images_run=images, towers=towers[0], towers_run=towers[1])


def optimizer_steps(config: Config, records: int, ranks: int) -> int:
    """Steps of a run over so many records; of a fractional epoch the last one begun counts, as in training."""
    if config.train.max_steps is not None:
        return config.train.max_steps
    batches = records // (config.train.per_device_batch_size * ranks)
    per_epoch = max(1, batches // config.train.gradient_accumulation_steps)
    return max(1, math.ceil(config.train.epochs * per_epoch))


def samples_per_step(config: Config, records: int | None, ranks: int) -> int:
    """Samples of a step on the rank that has most of them. records: None where they are known to fill a step."""
    train = config.train
    batches = train.gradient_accumulation_steps
    if records is not None:  # too few for a step: the batches that they fill, or one of them all
        batches = min(batches, records // (train.per_device_batch_size * ranks))
    return batches * train.per_device_batch_size or -(-(records or 0) // ranks)


def hours(
    config: Config, prediction: Prediction, *, records: int | None, ranks: int, tflops: float, mfu: float
) -> float:
    """Time of a run without loading, validation and saving. records: of an epoch, None where a stream does not say;
    tflops: peak of a rank's device; mfu: share of it."""
    samples = optimizer_steps(config, records or 0, ranks) * samples_per_step(config, records, ranks)
    return samples / prediction.batch["samples"] * prediction.minimal_tflops / (tflops * mfu) / 3600


def first_step(config: Config, inputs: run.Inputs) -> memory.StepMemory:
    """Memory of the first micro-batch of the data."""
    first = next(micro_batches(config, inputs, outline.outline(config)))
    return memory.step_memory(config, first, outline.image_shape(inputs.processor))


def peak_bytes(
    config: Config, prediction: Prediction, step: memory.StepMemory, *, stage: int | None, ranks: int
) -> float:
    """Peak of a rank under a ZeRO stage, beside the queue: states, activations and the contrastive loss."""
    contrast = memory.contrast_bytes(config, prediction.feature_size, ranks)
    states = prediction.memory[stage, ranks] * GIB
    return memory.total_bytes(config, states, prediction.trained, step, stage=stage, ranks=ranks, contrast=contrast)


def describe(config: Config, prediction: Prediction, step: memory.StepMemory, records: int | None) -> str:
    """The prediction as text. records: of an epoch, None where a stream does not say."""
    lines = ["module        parameters        trained"]
    for name, (total, trained) in prediction.parameters.items():
        lines.append(f"{name:<10} {total:>13,} {trained:>14,}")
    batch, ranks = prediction.batch, runtime.world_size()
    samples = samples_per_step(config, records, ranks)
    lines += [
        f"micro-batch of one rank: {batch['samples']} samples, {batch['tokens']} tokens in {batch['slots']} places, "
        f"{batch['images']} images, {batch['label_tokens']} label tokens",
        f"{prediction.tflops:.4g} TFLOP per micro-batch and rank, {prediction.minimal_tflops:.4g} of them without "
        f"padding, masked scores and repeated passes; {prediction.tflops * samples / batch['samples']:.4g} per "
        f"optimizer step of {samples} samples of a rank",
        f"activations {step.activations / GIB:.2f} GiB per rank",
        *([f"queue {prediction.queue:.2f} GiB on every rank"] if config.objective.queue_size else []),
        *([] if prediction.counts_images else [NO_IMAGES]),
        "weights, gradients and optimizer, GiB per rank:",
        _row("ranks", (f"{ranks:>9}" for ranks in RANKS)),
    ]
    chosen = runtime.zero_stage(config.train)
    for stage in STAGES:
        row = _row(_name(stage), (f"{prediction.memory[stage, r]:>9.2f}" for r in RANKS))
        lines.append(row + (" <- configured" if stage == chosen else ""))
    contrast = [memory.contrast_bytes(config, prediction.feature_size, r) for r in RANKS]
    totals = (peak_bytes(config, prediction, step, stage=chosen, ranks=r) / GIB + prediction.queue for r in RANKS)
    if prediction.feature_size:
        lines.append(_row("loss", (f"{each / GIB:>9.2f}" for each in contrast)) + " contrastive, at most")
    lines.append(_row("in all", (f"{total:>9.2f}" for total in totals)) + f" with {_name(chosen)}")
    return "\n".join([*lines, *_describe_hours(config, prediction, records)])


def _describe_hours(config: Config, prediction: Prediction, records: int | None) -> list[str]:
    if records is None and config.train.max_steps is None:
        return ["hours: a stream does not say how long it is; give train.max_steps"]
    peak = peak_tflops(config.log.peak_tflops, bf16=config.train.bf16)
    device = "this device" if peak else ASSUMED_DEVICE
    if config.log.peak_tflops:
        device = "log.peak_tflops"
    peak = peak or ASSUMED_PEAK
    times = (
        f"{hours(config, prediction, records=records, ranks=ranks, tflops=peak, mfu=ASSUMED_MFU):>9.3g}"
        if records is None or records >= ranks
        else f"{'-':>9}"
        for ranks in RANKS
    )
    count = optimizer_steps(config, records or 0, runtime.world_size())
    return [
        f"hours, assuming {peak:g} TFLOP/s for each rank ({device}) at an MFU of {ASSUMED_MFU:g}, without loading, "
        f"validation and saving; {count:,} steps on {runtime.world_size()} rank(s):",
        _row("ranks", (f"{ranks:>9}" for ranks in RANKS)),
        _row("hours", times),
        *_describe_few(config, records),
    ]


def _describe_few(config: Config, records: int | None) -> list[str]:
    """Where ranks find less than a step for them, or nothing."""
    step = config.train.per_device_batch_size * config.train.gradient_accumulation_steps
    few = [ranks for ranks in RANKS if records is not None and records < step * ranks]
    if not few:
        return []
    note = f"{records} records do not fill a step of {few[0]} or more ranks"
    return [note + ("; -: fewer records than ranks cannot be trained on" if records < RANKS[-1] else "")]


def _row(name: str, cells: Iterator[str]) -> str:
    return f"{name:<11}" + "".join(cells)


def _name(stage: int | None) -> str:
    return "none" if stage is None else f"ZeRO-{stage}"


def dry_run(config: Config) -> Prediction:
    """Print the prediction; on a small model also run one batch for real on the CPU (see `on_cpu`). Trains nothing."""
    family = outline.read_model_config(config.model).model_type
    inputs = run.read_inputs(config)
    prediction = predict(config, inputs)
    print(
        describe(config, prediction, first_step(config, inputs), len(inputs.records) if inputs.source is None else None)
    )
    if prediction.total > SMALL:
        print(f"{prediction.total:,} parameters: weights were not loaded, no batch was run")
        return prediction
    config = on_cpu(config, masks=FAMILIES[family].own_masks)
    model = run.build_model(config, inputs)
    batch = _one_batch(config, inputs)
    started = time.perf_counter()
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.train.bf16):
        outputs = model(**batch)
    outputs.loss.backward()
    seconds = time.perf_counter() - started
    print(f"one batch: loss {float(outputs.loss.detach()):.4f}, forward and backward {seconds:.2f} s on this CPU")
    lacking = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    print("every trained parameter received a gradient" if not lacking else f"no gradient reached {lacking[:5]}")
    if caches.wanted(config):
        print("constant text states and cached features are computed when training starts")
    return prediction


def on_cpu(config: Config, *, masks: bool = False) -> Config:
    """The same run as a CPU can take a batch of it, with a GPU beside it or not: without DeepSpeed, 4 bits, kernels of
    a GPU and compiling. masks: `Adapter.own_masks` of the model."""
    config = copy.deepcopy(config)
    config.train.deepspeed, config.train.compile, config.model.load_in_4bit = None, False, False
    if config.model.attn_implementation not in ("sdpa", "eager"):
        config.model.attn_implementation = "sdpa" if masks else "segments"
    if config.objective.lm_loss == "liger":
        config.objective.lm_loss = "chunked"
    return config


def _one_batch(config: Config, inputs: run.Inputs) -> dict[str, Tensor]:
    dataset = run.build_train_set(config, inputs, pixels=True)
    if inputs.source is None:
        samples = [dataset[i] for i in range(min(config.train.chunk_size, len(dataset)))]
    else:
        samples = dataset.__getitems__([0])
    return PackedCollator(inputs.encoder, config.objective)(samples)
