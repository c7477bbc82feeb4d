"""`train.py --dry-run`: what a run would train, how much memory and arithmetic a step needs, and, if small, one step.

Counts come from the model on the meta device, so no weight is loaded for the prediction: parameters by module, floating
point operations of the forward pass as executed, lengths from one real batch of the data. Only activation memory is an
estimate. A model below `SMALL` parameters is then built for real and takes one forward and backward pass.

Symbols: P all parameters, A trained parameters, W ranks.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from hacl.config import Config
from hacl.data.collate import PackedCollator
from hacl.models.adapters import find_adapter
from hacl.training import build, caches, run, runtime
from hacl.training.objective import constant_text, is_frozen

SMALL = 300_000_000
RANKS = (1, 2, 4, 8, 16)
GIB = 2**30


@dataclass
class Prediction:
    """parameters: module -> (all, trained). tflops: one micro-batch of one rank, forward and backward. memory:
    (ZeRO stage or None, ranks) -> GiB per rank for weights, gradients and optimizer. activations: GiB, estimated.
    queue: GiB of its features, on every rank."""

    parameters: dict[str, tuple[int, int]]
    batch: dict[str, int]
    tflops: float
    memory: dict[tuple[int | None, int], float]
    activations: float
    queue: float

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


def state_bytes(total: int, trained: int, *, stage: int | None, ranks: int, bf16: bool, frozen_bytes: float) -> float:
    """Bytes per rank of weights, gradients and Adam state.

    Under DeepSpeed bf16: 2 bytes of weight each, and per trained weight 2 of gradient and 12 of fp32 master and moments
    (Rajbhandari et al., 2020, section 3.1); stage 1 divides the 12 by the ranks, stage 2 also the gradient, stage 3
    also the weights. Without DeepSpeed trained weights are fp32: 4 + 4 + 8. frozen_bytes: per frozen weight.
    """
    frozen = total - trained
    if stage is None:
        return frozen * frozen_bytes + trained * 16
    width = 2 if bf16 else 4
    optimizer = trained * (12 if bf16 else 8) / (ranks if stage >= 1 else 1)
    gradients = trained * width / (ranks if stage >= 2 else 1)
    weights = (frozen * min(width, frozen_bytes) + trained * width) / (ranks if stage == 3 else 1)
    return weights + gradients + optimizer


def predict(config: Config, inputs: run.Inputs | None = None) -> Prediction:
    """Memory and arithmetic of a run, without loading weights."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    inputs = inputs or run.read_inputs(config)
    settings = AutoConfig.from_pretrained(config.model.path, revision=config.model.revision)
    with torch.device("meta"):
        backbone = AutoModelForImageTextToText.from_config(
            settings, attn_implementation=config.model.tower_attention, dtype=build.DTYPES[config.model.dtype]
        )
        backbone = build.select_trainable(backbone, config.model, masters=False)
        adapter = find_adapter(backbone)
        heads = build.build_heads(adapter, config.objective, seed=0, trainable=config.model.learning_rate.heads > 0)
    modules = {name: list(parts) for name, parts in adapter.groups().items()}
    if heads is not None:
        modules["heads"] = [heads]
    parameters, seen = {}, set()
    for name, parts in modules.items():
        own = {id(p): p for part in parts for p in part.parameters() if id(p) not in seen}
        seen |= set(own)
        counted = own.values()
        parameters[name] = (sum(p.numel() for p in counted), sum(p.numel() for p in counted if p.requires_grad))
    cached_text = config.train.cache_text_states and heads is not None and constant_text(backbone)
    batch = _one_batch(config, inputs, _ConstantTexts(adapter.hidden_size) if cached_text else None)
    shape = {
        "samples": len(batch["sample_index"]),
        "rows": batch["input_ids"].shape[0],
        "tokens_per_row": batch["input_ids"].shape[1],
        "label_tokens": len(batch["label_target"]),
        "images": len(batch["pixel_values"]),
    }
    flops = _flops(config, adapter, batch["pixel_values"].shape, shape)
    total = sum(t for t, _ in parameters.values())
    trained = sum(t for _, t in parameters.values())
    frozen_bytes = 0.5 if config.model.load_in_4bit else {"float32": 4, "bfloat16": 2}[config.model.dtype]
    memory = {
        (stage, ranks): state_bytes(
            total, trained, stage=stage, ranks=ranks, bf16=config.train.bf16, frozen_bytes=frozen_bytes
        )
        / GIB
        for stage in (None, 0, 1, 2, 3)
        for ranks in RANKS
    }
    text_size = 0 if heads is None else adapter.hidden_size if is_frozen(adapter.decoder) else heads.projection_size
    return Prediction(
        parameters,
        shape,
        flops / 1e12,
        memory,
        activations=_activation_bytes(config, adapter, shape) / GIB,
        queue=0.0 if heads is None else queue_bytes(config.objective, heads.projection_size, text_size) / GIB,
    )


def queue_bytes(objective, image_size: int, text_size: int) -> int:
    """Bytes of the features that a full queue holds: an image and its texts for each sample."""
    texts = objective.num_captions + (objective.num_hallucinated if objective.queue_hallucinated else 0)
    width = {"float32": 4, "bfloat16": 2}[objective.queue_dtype]
    return objective.queue_size * (image_size + texts * text_size) * width


def _one_batch(config: Config, inputs: run.Inputs, texts) -> dict[str, Tensor]:
    dataset = run.build_train_set(config, inputs, pixels=True)
    if inputs.source is None:
        samples = [dataset[i] for i in range(min(config.train.chunk_size, len(dataset)))]
    else:
        samples = dataset.__getitems__([0])
    return PackedCollator(inputs.encoder, config.objective, text_states=texts)(samples)


def _flops(config: Config, adapter, pixel_shape: torch.Size, shape: dict[str, int]) -> float:
    """Floating point operations of one micro-batch; backward costs one forward for the inputs' gradient and one more
    where weights train, recomputation one more, and the first pass of GradCache one more without the LM head."""
    from torch.utils.flop_counter import FlopCounterMode

    rows, tokens = shape["rows"], shape["tokens_per_row"]
    dtype = next(adapter.decoder.parameters()).dtype

    def count(call) -> tuple[float, Tensor]:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            result = call()
        return float(counter.get_total_flops()), result

    with torch.device("meta"):
        pixels = torch.empty(pixel_shape, dtype=next(adapter.vision_tower.parameters()).dtype)
        embeds = torch.empty(rows, tokens, adapter.hidden_size, dtype=dtype)
        positions = torch.arange(tokens).expand(rows, -1)
        mask = torch.ones(rows, 1, tokens, tokens, dtype=torch.bool)
        tower, features = count(lambda: adapter.vision_features(pixels))
        projector, _ = count(lambda: adapter.project(features))
        decoder, states = count(lambda: adapter.decode(embeds, mask, positions)[0])
        head, _ = count(lambda: adapter.logits(states.reshape(-1, adapter.hidden_size)[: shape["label_tokens"]]))
    if config.train.cache_vision_features:
        tower = 0.0
    total = tower * (1 if is_frozen(adapter.vision_tower) else 3)
    total += projector * (1 if is_frozen(adapter.projector) else 3)
    full = config.model.learning_rate.llm > 0 and not config.model.lora.rank
    total += (decoder + head) * (3 if full else 2)
    total += tower + projector + decoder if config.train.grad_cache else 0.0
    return total + (decoder if config.train.gradient_checkpointing else 0.0)


def _activation_bytes(config: Config, adapter, shape: dict[str, int]) -> float:
    """Stored for the backward pass: about 7 D + 2 D_kv + 4 I numbers per token and block (SDPA), plus fp32 logits."""
    settings = adapter.decoder.config
    width, hidden = (2 if config.train.bf16 else 4), adapter.hidden_size
    heads = settings.num_attention_heads
    shared = hidden * getattr(settings, "num_key_value_heads", heads) / heads
    block = (7 * hidden + 2 * shared + 4 * settings.intermediate_size) * width
    tokens = shape["rows"] * shape["tokens_per_row"]
    blocks = adapter.num_layers
    stored = tokens * (hidden * width * blocks + block if config.train.gradient_checkpointing else block * blocks)
    return stored + shape["label_tokens"] * settings.vocab_size * (width + 8)


def describe(config: Config, prediction: Prediction) -> str:
    """The prediction as text."""
    lines = ["module        parameters        trained"]
    for name, (total, trained) in prediction.parameters.items():
        lines.append(f"{name:<10} {total:>13,} {trained:>14,}")
    batch = prediction.batch
    lines += [
        f"micro-batch of one rank: {batch['samples']} samples in {batch['rows']} rows of {batch['tokens_per_row']} "
        f"tokens, {batch['images']} images, {batch['label_tokens']} label tokens",
        f"{prediction.tflops:.4g} TFLOP per micro-batch and rank, "
        f"{prediction.tflops * config.train.chunks_per_step:.4g} per optimizer step",
        f"activations about {prediction.activations:.2f} GiB per rank (estimate)",
        *([f"queue {prediction.queue:.2f} GiB on every rank"] if config.objective.queue_size else []),
        "weights, gradients and optimizer, GiB per rank:",
        "ranks      " + "".join(f"{ranks:>9}" for ranks in RANKS),
    ]
    chosen = runtime.zero_stage(config.train)
    for stage in (None, 0, 1, 2, 3):
        name = "none" if stage is None else f"ZeRO-{stage}"
        mark = " <- configured" if stage == chosen else ""
        lines.append(f"{name:<11}" + "".join(f"{prediction.memory[stage, r]:>9.2f}" for r in RANKS) + mark)
    return "\n".join(lines)


def dry_run(config: Config) -> Prediction:
    """Print the prediction; on a small model also run one batch for real (without DeepSpeed). Trains nothing."""
    inputs = run.read_inputs(config)
    prediction = predict(config, inputs)
    print(describe(config, prediction))
    if prediction.total > SMALL:
        print(f"{prediction.total:,} parameters: weights were not loaded, no batch was run")
        return prediction
    config.train.deepspeed = None
    model = run.build_model(config, inputs)
    batch = _one_batch(config, inputs, None)
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
