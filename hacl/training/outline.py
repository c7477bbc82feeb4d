"""The model of a run without its weights: parameters on the meta device, with what trains and what each unit costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hacl.config import Config, ModelConfig
from hacl.models.adapters import Adapter
from hacl.training import build, kernels, runtime
from hacl.training.flops import Execution, StepCost, step_cost
from hacl.training.hardware import peak_tflops
from hacl.training.label_loss import plain_limit
from hacl.training.metrics import Utilisation


@dataclass
class Outline:
    """backbone: the stock model, or the PEFT model around one; heads: None without a contrastive loss."""

    backbone: nn.Module
    adapter: Adapter
    heads: nn.Module | None


def outline(config: Config) -> Outline:
    """What `run.build_model` would build, on the meta device. Call it before DeepSpeed is told of ZeRO-3, which would
    shard it."""
    with torch.device("meta"):
        backbone = build_backbone(config, masters=False)
        adapter = build.find_adapter(backbone)
    heads = build.build_heads(adapter, config.objective, seed=0, trainable=config.model.learning_rate.heads > 0)
    heads = heads if heads is None else heads.to("meta")
    return Outline(backbone, adapter, heads)


def build_backbone(config: Config, *, masters: bool, dtype: torch.dtype | None = None) -> nn.Module:
    """The backbone with what trains, its weights as initialised; for a device or a mode without content.

    masters: keep trained weights in fp32; dtype: of the weights, None = `model.dtype`.
    """
    from transformers import AutoModelForImageTextToText

    settings = read_model_config(config.model)
    backbone = AutoModelForImageTextToText.from_config(
        settings, attn_implementation=config.model.tower_attention, dtype=dtype or build.DTYPES[config.model.dtype]
    )
    return build.select_trainable(backbone, config.model, masters=masters)


def read_model_config(model: ModelConfig) -> Any:
    """The checkpoint's configuration, of which a folder needs to hold nothing else but the processor's files.

    Raises FileNotFoundError naming the fix where it is on the Hub and there is no way to it.
    """
    from transformers import AutoConfig

    build.check_model_path(model.path)
    try:
        return AutoConfig.from_pretrained(model.path, revision=model.revision)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(
            f"model.path={model.path}: config.json could not be read ({reason}). Without a network, or to plan a run "
            "before its weights are there, give model.path=FOLDER that holds config.json and the processor's files"
        ) from error


def cost_of(config: Config, model: Outline, processor: Any) -> StepCost:
    """Cost of each unit with images as the processor makes them; without that of images where tower and projector are
    not two calls (their tensors have a content that shapes depend on)."""
    inputs = None
    if model.adapter.is_split:
        dtype = next(model.adapter.vision_tower.parameters()).dtype
        inputs = {"pixel_values": torch.empty(1, *image_shape(processor), dtype=dtype, device="meta")}
    with torch.device("meta"):
        return step_cost(model.adapter, model.heads, inputs, layer=config.objective.layer)


def image_shape(processor: Any) -> tuple[int, ...]:
    """(3, H, W) of an image after processing."""
    from PIL import Image

    blank = Image.new("RGB", (32, 32))
    return tuple(processor.image_processor(blank, return_tensors="pt")["pixel_values"][0].shape)


def execution(config: Config, model: Outline) -> Execution:
    """How the steps of a run are executed."""
    kernel = kernels.implementation(config, masks=model.adapter.own_masks)
    pairs = {"eager": "dense_pairs", "sdpa": "masked_pairs"}.get(kernel, "packed_pairs")
    train = config.train
    vocabulary = len(model.adapter.lm_head.weight)
    plain = plain_limit(config.objective.lm_loss, vocabulary, is_sharded=runtime.zero_stage(train) == 3)
    return Execution(pairs, kernel != "eager", train.gradient_checkpointing, train.grad_cache, plain)


def utilisation(config: Config, processor: Any) -> Utilisation | None:
    """How `mfu` and `hfu` of a run are measured, or None where the peak of the device or the cost of an image is not
    known."""
    peak = peak_tflops(config.log.peak_tflops, bf16=config.train.bf16)
    if peak is None:
        return None
    model = outline(config)
    if not model.adapter.is_split:
        return None
    return Utilisation(cost_of(config, model, processor), peak * 1e12, execution(config, model))
