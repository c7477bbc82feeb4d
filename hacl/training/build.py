"""From a Config to the objects of a run: backbone with processor, what trains in it, records, dataset, collator.

What trains is decided here and nowhere else, by learning rate per module: 0 freezes it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from hacl.config import ConfigError, DataConfig, ModelConfig, ObjectiveConfig
from hacl.data.records import Record, read_records
from hacl.data.templates import SequenceEncoder
from hacl.models.adapters import Adapter, find_adapter
from hacl.training.runtime import local_device

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_processor(model: ModelConfig):
    """The processor saved with the checkpoint."""
    from transformers import AutoProcessor

    if not model.path:
        raise ConfigError("model.path is empty: give the folder (or hub id) of a multimodal checkpoint")
    return AutoProcessor.from_pretrained(model.path, revision=model.revision)


def load_backbone(model: ModelConfig) -> nn.Module:
    """The stock model, in `model.dtype`, from safetensors only. Raises ConfigError where 4-bit cannot work."""
    from transformers import AutoModelForImageTextToText

    if not model.path:
        raise ConfigError("model.path is empty: give the folder (or hub id) of a multimodal checkpoint")
    options = {}
    if model.load_in_4bit:
        options = {"quantization_config": _four_bit(), "device_map": {"": local_device()}}
    return AutoModelForImageTextToText.from_pretrained(
        model.path,
        revision=model.revision,
        dtype=DTYPES[model.dtype],
        attn_implementation=model.attn_implementation,
        use_safetensors=True,
        **options,
    )


def _four_bit():
    import importlib.util

    from transformers import BitsAndBytesConfig

    if not torch.cuda.is_available():
        raise ConfigError("model.load_in_4bit needs a CUDA device; set it to false on a CPU")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("model.load_in_4bit needs the package bitsandbytes: pip install bitsandbytes")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["vision_tower", "multi_modal_projector", "lm_head"],
    )


def select_trainable(backbone: nn.Module, model: ModelConfig, *, masters: bool) -> nn.Module:
    """Freeze by learning rate, add LoRA to the decoder's linears; returns the backbone, wrapped by PEFT with LoRA.

    masters: keep trained weights in fp32 (DeepSpeed keeps its own fp32 copies and wants one dtype, so false there).
    """
    rates, lora = model.learning_rate, model.lora
    adapter = find_adapter(backbone)
    backbone.requires_grad_(False)
    if lora.rank:
        backbone = _add_lora(backbone, adapter, model)
    trained = {"vision": rates.vision > 0, "projector": rates.projector > 0, "llm": rates.llm > 0 and not lora.rank}
    for name, modules in adapter.groups().items():
        for module in modules:
            if trained[name]:
                module.requires_grad_(True)
    if trained["vision"]:
        _freeze_unread_vision_layers(adapter)
    if masters:
        for parameter in backbone.parameters():
            if parameter.requires_grad and parameter.dtype != torch.float32:
                parameter.data = parameter.data.float()
    return backbone


def _add_lora(backbone: nn.Module, adapter: Adapter, model: ModelConfig) -> nn.Module:
    """LoRA on linears inside the decoder blocks, chosen by where they are and not by leaf name alone.

    Leaf names such as q_proj also occur in CLIP towers, so a bare list would adapt the tower too.
    """
    from peft import LoraConfig, get_peft_model

    lora = model.lora
    prefix = next(name for name, module in backbone.named_modules() if module is adapter.blocks)
    inside = adapter.blocks.named_modules()
    leaves = {name.rsplit(".", 1)[-1] for name, module in inside if isinstance(module, nn.Linear)}
    unknown = sorted(set(lora.targets) - leaves)
    if unknown:
        raise ConfigError(f"model.lora.targets: no linear {unknown} in the decoder blocks; there are {sorted(leaves)}")
    chosen = "|".join(map(re.escape, sorted(lora.targets or leaves)))
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=rf"{re.escape(prefix)}\.\d+\.(?:.*\.)?(?:{chosen})",
        bias="none",
    )
    return get_peft_model(backbone, settings, autocast_adapter_dtype=False)


def _freeze_unread_vision_layers(adapter: Adapter) -> None:
    """Tower blocks after the selected feature layer get no gradient; a sharded run would wait for it in vain."""
    layer = getattr(adapter.model.config, "vision_feature_layer", None)
    stacks = [m for m in adapter.vision_tower.modules() if isinstance(m, nn.ModuleList)]
    if layer is None or adapter.model.config.model_type != "llava" or not stacks:
        return
    blocks = max(stacks, key=len)
    chosen = [layer] if isinstance(layer, int) else list(layer)
    last = max(index if index >= 0 else len(blocks) + 1 + index for index in chosen)
    for block in blocks[last:]:
        block.requires_grad_(False)
    for name, module in adapter.vision_tower.named_modules():
        if name.endswith("post_layernorm"):
            module.requires_grad_(False)


def make_heads(hidden_size: int, objective: ObjectiveConfig, *, seed: int):
    """Contrastive heads as the objective describes them, initialised from `seed`."""
    from hacl.models.heads import ContrastiveHeads

    return ContrastiveHeads(
        hidden_size,
        kind=objective.head,
        projection_size=objective.projection_size,
        shared=objective.shared_head,
        temperature=objective.temperature,
        learn_temperature=objective.learn_temperature,
        temperature_min=objective.temperature_min,
        temperature_max=objective.temperature_max,
        seed=seed,
    )


def build_heads(adapter: Adapter, objective: ObjectiveConfig, *, seed: int, trainable: bool):
    """Heads for this decoder, or None when the contrastive loss is off."""
    if not objective.contrastive_weight:
        return None
    heads = make_heads(adapter.hidden_size, objective, seed=seed)
    if not trainable:
        heads.requires_grad_(False)
    return heads


def build_encoder(processor, data: DataConfig) -> SequenceEncoder:
    return SequenceEncoder(
        processor,
        template=data.template,
        prompt=data.prompt,
        max_length=data.max_length,
        max_caption_length=data.max_caption_length,
    )


def find_data(path: str) -> Path:
    """A data file as given, or below $HACL_DATA when it is relative and not found. Raises FileNotFoundError."""
    given = Path(path).expanduser()
    if given.is_file():
        return given
    root = os.environ.get("HACL_DATA")
    if root and not given.is_absolute() and (Path(root) / given).is_file():
        return Path(root) / given
    raise FileNotFoundError(f"data file not found: {path}" + (f" (also tried under {root})" if root else ""))


def read_all(paths: Sequence[str], limit: int | None = None) -> list[Record]:
    """Records of several files, in order; names the file that holds none."""
    records: list[Record] = []
    for path in paths:
        found = read_records(find_data(path))
        if not found:
            raise ValueError(f"{path}: no records")
        records += found
    return records[:limit]


def image_root(data: DataConfig) -> Path | None:
    """`data.image_root`, else the folder of the first training file."""
    if data.image_root is not None:
        root = Path(data.image_root).expanduser()
        below = Path(os.environ.get("HACL_DATA", "")) / root
        if not root.is_dir() and below.is_dir():
            root = below
        if not root.is_dir():
            raise FileNotFoundError(f"data.image_root: no such folder {data.image_root}")
        return root
    return find_data(data.path[0]).parent if data.path else None


def check_records(records: Sequence[Record], objective: ObjectiveConfig, where: str) -> None:
    """Refuse, before anything is loaded, records that the objective cannot use; names the first few.

    A record with captions must have a hallucinated caption when the objective uses them (set
    objective.num_hallucinated=0 for plain contrastive training).
    """
    uses_hallucinated = objective.num_hallucinated > 0 and (
        objective.contrastive_weight > 0 or objective.likelihood_margin_weight > 0
    )
    if not records:
        raise ValueError(f"{where}: no records")
    if uses_hallucinated:
        lacking = [r.id for r in records if r.images and r.captions and not r.hallucinated]
        if lacking:
            raise ValueError(
                f"{where}: {len(lacking)} record(s) have no hallucinated caption, first {lacking[:3]}; make them with "
                "data_prep/make_hallucinations.py or set objective.num_hallucinated=0"
            )
    captioned = sum(bool(r.images and r.captions) for r in records)
    if objective.contrastive_weight > 0 and not captioned:
        raise ValueError(f"{where}: no record has an image and a caption; set objective.contrastive_weight=0")


def check_image_tokens(backbone: nn.Module, encoder: SequenceEncoder) -> None:
    """Refuse a processor whose image-token count differs from what tower and projector produce."""
    adapter = find_adapter(backbone)
    processor = encoder.processor
    from PIL import Image

    pixels = processor.image_processor(Image.new("RGB", (32, 32)), return_tensors="pt")["pixel_values"]
    parameter = next(adapter.vision_tower.parameters())
    with torch.no_grad():
        produced = adapter.vision_features(pixels.to(parameter.device)).shape[1]
    if produced != encoder.num_image_tokens:
        raise ValueError(
            f"wrong image-token count: the processor writes {encoder.num_image_tokens} tokens per image, the vision "
            f"tower gives {produced}; correct patch_size, num_additional_image_tokens or "
            "vision_feature_select_strategy in the checkpoint's processor_config.json"
        )


def check_images(records: Sequence[Record], root: Path | None) -> None:
    """Refuse, before training, records whose image is missing or lies outside the image folder; names the first."""
    from hacl.data.images import resolve_image

    for record in records:
        for image in record.images:
            try:
                resolve_image(root, image)
            except (ValueError, OSError) as error:
                raise type(error)(f"record {record.id!r}: {error}") from error
