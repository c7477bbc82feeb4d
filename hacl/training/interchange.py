"""Folders of the original LLaVA code base (and HACL's): read into a folder that stock classes open, and written back.

What the original folders hold is read by `hacl.training.original_folders`; what is written here is safetensors.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hacl.config import Config, to_dict
from hacl.models.original_llava import ACTIVATIONS, StockWeights, temperature_of, to_original, to_stock
from hacl.training.export import SIDECAR
from hacl.training.original_folders import PROJECTOR_FILE, read_original
from hacl.training.weights import HEADS

CLIP_NAMES = {(24, 14, 336): "openai/clip-vit-large-patch14-336", (24, 14, 224): "openai/clip-vit-large-patch14"}
FEATURES = {"patch": "default", "cls_patch": "full"}
EMBEDDINGS = "model.language_model.embed_tokens.weight"
MULTIPLE = 64  # rows of the embedding table, as the stock checkpoints have them
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }}: {% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def import_original(
    folder: Path | str,
    out: Path | str,
    *,
    vision: str | None = None,
    base: Path | str | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """Write `out`, which stock classes open: model, processor, and HACL's heads in its `hacl/`. Returns a summary.

    vision: folder or hub id of the CLIP checkpoint; None: the one that the config names. Its image processor is always
    read from there, its weights only where the folder holds none. dtype: None keeps that of the weights.

    Raises ValueError or FileNotFoundError for what does not fit; nothing is left at `out` then.
    """
    out = Path(out)
    refuse_existing(out)
    config, tensors = read_original(folder, base)
    _check(config, folder)
    found = to_stock(tensors)
    if not found.projector:
        raise ValueError(f"{folder}: no model.mm_projector among its weights; this is not a LLaVA checkpoint")
    vision = vision or config.get("mm_vision_tower") or config.get("vision_tower")
    if not vision:
        raise ValueError(f"{folder}/config.json names no mm_vision_tower; say where the CLIP checkpoint is (--vision)")
    return write_stock(config, found, out, vision=vision, tokenizer=folder if base is None else base, dtype=dtype)


def write_stock(
    config: dict[str, Any],
    found: StockWeights,
    out: Path,
    *,
    vision: str | Path,
    tokenizer: str | Path,
    dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """Write a folder of the stock LLaVA class from its parts. Returns a summary.

    config: of the decoder, with the `mm_` entries of an original folder; found: weights of decoder and projector, and
    of a tower or not; vision: CLIP checkpoint; tokenizer: folder of the decoder's; dtype: None keeps that of the
    embeddings. Nothing is left at `out` where it fails.
    """
    from transformers import LlavaForConditionalGeneration

    tower, processor = _tower_and_processor(config, tokenizer, vision)
    if not any(name.startswith("model.vision_tower.") for name in found.state):
        found.state.update({f"model.vision_tower.{name}": tensor for name, tensor in tower.state_dict().items()})
    vocabulary = max(len(processor.tokenizer), len(found.state[EMBEDDINGS]))
    vocabulary += -vocabulary % MULTIPLE
    stock = _stock_config(config, found.projector, tower.config, processor, vocabulary)
    rows = enlarge(found.state, vocabulary, (EMBEDDINGS, "lm_head.weight"))
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(stock)
    kept = dtype or found.state[EMBEDDINGS].dtype
    fill(model, {name: tensor.to(kept) for name, tensor in found.state.items()})
    set_special_tokens(model, processor)
    temporary = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    try:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        if found.heads:
            _write_heads(found.heads, temporary / SIDECAR, stock.text_config.hidden_size)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {
        "projector": found.projector, "new_rows": rows, "heads": sorted(found.heads), "dropped": sorted(found.dropped),
        "dtype": str(kept).removeprefix("torch."), "temperature": temperature_of(found.heads),
    }  # fmt: skip


def export_original(
    folder: Path | str, out: Path | str, *, vision_name: str | None = None, projector_only: bool = False
) -> dict[str, Any]:
    """Write the layout of the original code base from a folder of the stock class. Returns a summary.

    vision_name: what `mm_vision_tower` will say; None: the OpenAI checkpoint of the tower's size. projector_only: only
    `mm_projector.safetensors`, as stage 1 leaves it.
    """
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    folder, out = Path(folder), Path(out)
    refuse_existing(out)
    model = AutoModelForImageTextToText.from_pretrained(folder, use_safetensors=True)
    if model.config.model_type != "llava":
        raise ValueError(f"{folder}: a {model.config.model_type} model; the original layout is LLaVA's")
    heads = load_file(folder / SIDECAR / HEADS) if (folder / SIDECAR / HEADS).is_file() else {}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    vocabulary = _original_vocabulary(model.config, tokenizer)
    kind, tensors = to_original(model.state_dict(), model.config.projector_hidden_act, heads, vocabulary)
    if projector_only:
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith("model.mm_projector.")}
    temporary = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        name = f"{PROJECTOR_FILE}.safetensors" if projector_only else "model.safetensors"
        save_file({n: t.contiguous() for n, t in tensors.items()}, temporary / name, metadata={"format": "pt"})
        content = _original_config(model.config, kind, vocabulary, vision_name)
        (temporary / "config.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        if not projector_only:
            tokenizer.save_pretrained(temporary)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {"projector": kind, "vocabulary": vocabulary, "tensors": len(tensors), "heads": sorted(heads)}


# Stock side


def refuse_existing(out: Path) -> None:
    """Raises FileExistsError for a path that is taken."""
    if out.exists():
        raise FileExistsError(f"{out} exists; remove it or choose another --out")


def _check(config: dict[str, Any], folder: Path | str) -> None:
    if config.get("mm_use_im_start_end"):
        raise ValueError(f"{folder}: mm_use_im_start_end puts marks around images, which the stock class does not do")
    feature = config.get("mm_vision_select_feature", "patch")
    if feature not in FEATURES:
        raise ValueError(f"{folder}: mm_vision_select_feature={feature!r}; known: {', '.join(FEATURES)}")


def add_image_token(tokenizer, image: str = "<image>") -> None:
    """Give a text-only tokenizer, in place, a token for images, and one for padding where it has none of its own."""
    from transformers import AddedToken

    tokenizer.add_tokens(AddedToken(image, special=True, normalized=False), special_tokens=True)
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.unk_token:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})


def _tower_and_processor(config: dict[str, Any], tokenizer_folder: Path | str, vision: str | Path):
    from transformers import (
        AutoTokenizer,
        CLIPImageProcessor,
        CLIPVisionModel,
        LlavaImageProcessor,
        LlavaProcessor,
    )

    tower = CLIPVisionModel.from_pretrained(vision)
    images = CLIPImageProcessor.from_pretrained(vision)
    if config.get("image_aspect_ratio") == "pad":
        images = LlavaImageProcessor(**{**_settings(images), "do_pad": True})
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    add_image_token(tokenizer)
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=tower.config.patch_size,
        vision_feature_select_strategy=FEATURES[config.get("mm_vision_select_feature", "patch")],
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    return tower, processor


def _settings(images) -> dict[str, Any]:
    names = ("size", "crop_size", "image_mean", "image_std", "resample", "rescale_factor")
    return {name: getattr(images, name) for name in names}


def _stock_config(config: dict[str, Any], projector: str, vision, processor, vocabulary: int):
    from transformers import LlamaConfig, LlavaConfig

    own = {name: value for name, value in config.items() if not name.startswith(("mm_", "model_type", "architectures"))}
    tokens = (vision.image_size // vision.patch_size) ** 2
    strategy = processor.vision_feature_select_strategy
    return LlavaConfig(
        vision_config=vision.to_dict(),
        text_config=LlamaConfig(**own | {"vocab_size": vocabulary, "tie_word_embeddings": False}).to_dict(),
        image_token_index=processor.image_token_id,
        projector_hidden_act=ACTIVATIONS[projector],
        vision_feature_layer=config.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy=strategy,
        image_seq_length=tokens + (strategy == "full"),
        tie_word_embeddings=False,
    )


def enlarge(state: dict[str, Tensor], rows: int, tables: Sequence[str]) -> int:
    """Give the tables `rows` rows; new ones are the mean row, whose logit is never the largest. Returns how many."""
    added = 0
    for name in tables:
        table_VD = state[name]
        added = rows - len(table_VD)
        mean_D = table_VD.float().mean(dim=0).to(table_VD.dtype)
        state[name] = torch.cat([table_VD, mean_D.expand(max(added, 0), -1)])
    return added


def fill(model, state: dict[str, Tensor]) -> None:
    """Give a model on the meta device its weights. Raises ValueError where there are too few or too many of them."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    odd = [name for name, tensor in state.items() if name in shapes and tuple(tensor.shape) != shapes[name]]
    if odd:
        raise ValueError(
            f"weights do not fit the model: {odd[0]} is {tuple(state[odd[0]].shape)}, expected {shapes[odd[0]]}"
        )
    result = model.load_state_dict(state, strict=False, assign=True)
    if result.missing_keys or result.unexpected_keys:
        raise ValueError(
            f"weights do not fill the model: missing {result.missing_keys[:3]}, unexpected {result.unexpected_keys[:3]}"
        )


def set_special_tokens(model, processor) -> None:
    """Special tokens of the tokenizer, where generation looks for them."""
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(processor.tokenizer, name))


def _write_heads(heads: dict[str, Tensor], folder: Path, hidden_size: int) -> None:
    """As an export of this project has them: heads, and the settings that they need."""
    from safetensors.torch import save_file

    config = Config()
    weight = heads.get("image_projection.weight")
    config.objective.head = "linear"
    config.objective.projection_size = hidden_size // 4 if weight is None else len(weight)
    folder.mkdir()
    heads = {"temperature.log_inverse": torch.tensor([-math.log(config.objective.temperature)])} | heads
    save_file({name: tensor.contiguous() for name, tensor in heads.items()}, folder / HEADS, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(to_dict(config), indent=1), encoding="utf-8")


# Original side


def _original_vocabulary(config, tokenizer) -> int:
    """Rows to keep: those before `<image>` where that was added last, beside a pad token; else all."""
    image = config.image_token_id
    after = [token for token, index in tokenizer.get_vocab().items() if index > image]
    return image if set(after) <= {"<pad>"} else 0


def _original_config(config, projector: str, vocabulary: int, vision_name: str | None) -> dict[str, Any]:
    vision = config.vision_config
    size = (vision.num_hidden_layers, vision.patch_size, vision.image_size)
    name = vision_name or CLIP_NAMES.get(size)
    if name is None:
        raise ValueError(f"a tower of {size} (layers, patch, pixels) is no OpenAI CLIP; name it with --vision-name")
    strategy = config.vision_feature_select_strategy
    return {
        **config.text_config.to_dict(),
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "vocab_size": vocabulary or config.text_config.vocab_size,
        "mm_vision_tower": name,
        "mm_hidden_size": vision.hidden_size,
        "mm_projector_type": projector,
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_select_feature": next(old for old, new in FEATURES.items() if new == strategy),
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        "image_aspect_ratio": "square",
    }
