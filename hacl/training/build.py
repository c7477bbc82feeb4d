"""From a Config to the objects of a run: backbone with processor, what trains in it, records, dataset, collator.

What trains is decided here and nowhere else, by learning rate per module: 0 freezes it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from hacl.config import ConfigError, DataConfig, ModelConfig, ObjectiveConfig
from hacl.data.records import Record, read_records
from hacl.data.sources import Limited, Source, open_source
from hacl.data.templates import SequenceEncoder
from hacl.models.adapters import Adapter, find_adapter
from hacl.models.families import FAMILIES
from hacl.models.identity import commit_of, model_folder, pin_advice
from hacl.training.runtime import local_device

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def check_model_path(path: str) -> None:
    """Refuse an empty model.path, one that looks like a folder and is none (a hub id is `name` or `owner/name`), and a
    folder with a damaged weight file."""
    if not path:
        raise ConfigError("model.path is empty: give the folder (or hub id) of a multimodal checkpoint")
    if Path(path).is_dir():
        return check_weights(Path(path))
    if path.startswith("~") and Path(path).expanduser().is_dir():
        raise ConfigError(f"model.path={path}: '~' is not expanded here; write {Path(path).expanduser()}")
    looks_like_folder = path.startswith((".", "~", os.sep)) or "\\" in path or path.count("/") > 1
    if looks_like_folder or ("/" in path and Path(path).parent.is_dir()):
        raise FileNotFoundError(f"model.path: no such folder {path}; give the folder (or hub id) of a checkpoint")


def check_weights(folder: Path) -> None:
    """Refuse a damaged or cut-off weight file. Reads headers only, which hold the size that the file must have."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(
                f"{path} is damaged or incomplete ({error}); {path.stat().st_size:,} bytes are there: copy it again"
            ) from error


def pin_revision(model: ModelConfig) -> None:
    """Put the commit of a hub id in place of its branch, tag or missing revision, so that every later load, and the
    manifests, name one content. Without a revision the first rank says which commit was taken."""
    check_model_path(model.path)
    if Path(model.path).is_dir():
        return
    commit = commit_of(model_folder(model.path, model.revision))
    if model.revision is None and os.environ.get("RANK", "0") == "0":
        print(f"warning: {pin_advice(model.path, commit)}: model.revision={commit or 'COMMIT'}", file=sys.stderr)
    model.revision = commit or model.revision


def load_processor(model: ModelConfig):
    """The processor saved with the checkpoint."""
    from transformers import AutoProcessor

    check_model_path(model.path)
    return AutoProcessor.from_pretrained(model.path, revision=model.revision)


def load_backbone(model: ModelConfig) -> nn.Module:
    """The stock model, in `model.dtype`, from safetensors only. Raises ConfigError where 4-bit cannot work."""
    from transformers import AutoModelForImageTextToText

    check_model_path(model.path)
    options = {}
    if model.load_in_4bit:
        options = {"quantization_config": _four_bit(model), "device_map": {"": local_device()}}
    return AutoModelForImageTextToText.from_pretrained(
        model.path,
        revision=model.revision,
        dtype=DTYPES[model.dtype],
        attn_implementation=model.tower_attention,
        use_safetensors=True,
        **options,
    )


def _four_bit(model: ModelConfig):
    """Four bits for the decoder's linear layers alone."""
    import importlib.util

    from transformers import AutoConfig, BitsAndBytesConfig

    if not torch.cuda.is_available():
        raise ConfigError("model.load_in_4bit needs a CUDA device; set it to false on a CPU")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("model.load_in_4bit needs the package bitsandbytes: pip install bitsandbytes")
    family = FAMILIES.get(AutoConfig.from_pretrained(model.path, revision=model.revision).model_type, Adapter)
    outside = (*family.VISION, *family.CONNECTOR)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=[*(path.rsplit(".", 1)[-1] for path in outside), "lm_head"],
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
    for module in adapter.unread():  # a sharded run would wait for their gradients in vain
        module.requires_grad_(False)
    _freeze(adapter.model, model.freeze)
    if masters:
        for parameter in backbone.parameters():
            if parameter.requires_grad and parameter.dtype != torch.float32:
                parameter.data = parameter.data.float()
    return backbone


def _freeze(stock: nn.Module, names: Sequence[str]) -> None:
    """Freeze the parameters at or below these names of the stock model. Raises ConfigError for one that is no part."""
    for name in names:
        found = [p for own, p in stock.named_parameters() if own == name or own.startswith(f"{name}.")]
        if not found:
            raise ConfigError(f"model.freeze: the model has no part {name!r}; it has {_outermost(stock)}")
        for parameter in found:
            parameter.requires_grad_(False)


def _outermost(stock: nn.Module) -> str:
    """Names that the parameters of a model begin with, two levels deep."""
    return ", ".join(sorted({".".join(name.split(".")[:2]) for name, _ in stock.named_parameters()}))


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


def open_data(paths: Sequence[str], limit: int | None = None) -> Source:
    """Files, patterns of files (`shards/*.tar`) and hub sources as one `Source`; files are found as in `find_data`."""
    source = open_source([found for path in paths for found in _sources(path)])
    return source if limit is None else Limited(source, limit)


def _sources(path: str) -> list[str]:
    """What one entry of data.path names, a pattern's files in the order of their names."""
    if path.startswith("hub:"):
        return [path]
    if "*" not in path:
        return [str(find_data(path))]
    given = Path(path).expanduser()
    roots = [Path(given.anchor or "."), Path(os.environ.get("HACL_DATA", "."))][: 1 if given.is_absolute() else 2]
    pattern = str(given.relative_to(given.anchor)) if given.is_absolute() else path
    for root in roots:
        if found := sorted(str(file) for file in root.glob(pattern) if file.is_file()):
            return found
    raise FileNotFoundError(f"data files not found: nothing matches {path}")


def read_all(paths: Sequence[str], limit: int | None = None) -> list[Record]:
    """Records of several files, in order; names the file that holds none."""
    records: list[Record] = []
    for path in paths:
        if path.startswith("hub:") or path.endswith((".parquet", ".tar")) or "*" in path:
            raise ConfigError(f"{path}: only training records can be read from there, and with data.stream=true")
        found = read_records(find_data(path))
        if not found:
            raise ValueError(f"{path}: no records")
        records += found
    return records[:limit]


def image_root(data: DataConfig) -> Path | None:
    """`data.image_root`, else the folder of the first training file; None for a source on the Hub."""
    if data.image_root is not None:
        root = Path(data.image_root).expanduser()
        below = Path(os.environ.get("HACL_DATA", "")) / root
        if not root.is_dir() and below.is_dir():
            root = below
        if not root.is_dir():
            raise FileNotFoundError(f"data.image_root: no such folder {data.image_root}")
        return root
    first = _sources(data.path[0])[0] if data.path else "hub:"
    return None if first.startswith("hub:") else Path(first).parent
