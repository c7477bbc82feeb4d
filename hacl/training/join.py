"""Join a language model and a vision tower, with an untrained projector, into a folder of the stock LLaVA class.

It is where stage 1 of LLaVA and LLaVA-1.5 starts (arXiv 2304.08485 section 4.2, arXiv 2310.03744): Vicuna and CLIP as
they are, a projector that knows nothing. Towers of open_clip go through `convert_tower` first.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hacl.models.open_clip_vision import clip_vision_config, stock_vision_state
from hacl.models.original_llava import ACTIVATIONS, PROJECTOR, to_stock
from hacl.training.interchange import FEATURES, fill, refuse_existing, write_stock
from hacl.training.original_folders import read_json, read_language_model, read_tensors

OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
TOWER_WEIGHTS = ("visual.", "module.visual.")


def join(
    llm: Path | str,
    vision: Path | str,
    out: Path | str,
    *,
    projector: str = "mlp2x_gelu",
    feature: str = "patch",
    layer: int = -2,
    aspect: str = "square",
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """Write `out`, which stock classes open: `llm`'s decoder, `vision`'s tower, a new projector. Returns a summary.

    llm: folder of a Llama with its tokenizer; vision: folder or hub id of a stock CLIP checkpoint; projector:
    "mlp2x_gelu" (LLaVA-1.5) or "linear" (LLaVA); feature: "patch" or "cls_patch"; layer: of the tower's states, -2 in
    both; aspect: "pad" pads images to squares as LLaVA-1.5's stage 2 does, "square" leaves the tower's own processing.
    Weights of the projector are those of new linear layers (uniform within 1 / sqrt of their inputs), from `seed`.

    Raises ValueError, FileNotFoundError or FileExistsError; nothing is left at `out` then.
    """
    from transformers import AutoConfig

    out = Path(out)
    refuse_existing(out)
    if Path(vision, OPEN_CLIP_CONFIG).is_file():
        raise ValueError(f"{vision} is an open_clip checkpoint; convert its tower first (convert_llava.py tower)")
    for name, value, known in (("projector", projector, ACTIVATIONS), ("feature", feature, FEATURES)):
        if value not in known:
            raise ValueError(f"{name}={value!r}: expected one of {', '.join(known)}")
    config, tensors = read_language_model(llm)
    found = AutoConfig.from_pretrained(vision)
    width = getattr(found, "vision_config", found).hidden_size
    tensors |= _new_projector(projector, width, config["hidden_size"], seed, next(iter(tensors.values())).dtype)
    config |= {
        "mm_vision_select_layer": layer,
        "mm_vision_select_feature": feature,
        "image_aspect_ratio": aspect,
    }
    return write_stock(config, to_stock(tensors), out, vision=vision, tokenizer=llm, dtype=dtype)


def _new_projector(kind: str, width: int, hidden_size: int, seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first = nn.Linear(width, hidden_size)
        projector = first if kind == "linear" else nn.Sequential(first, nn.GELU(), nn.Linear(hidden_size, hidden_size))
    return {f"{PROJECTOR}{name}": tensor.to(dtype) for name, tensor in projector.state_dict().items()}


def convert_tower(source: Path | str, out: Path | str, *, architecture: str | None = None) -> dict[str, Any]:
    """Write the tower of an open_clip checkpoint as a stock `CLIPVisionModel` with its image processor.

    source: folder with `open_clip_config.json` and weights, or a weight file alone, whose `architecture` (a name of
    `open_clip.list_models()`) must then be given. Returns a summary.

    Raises ValueError for a tower that the stock class does not compute, naming what is odd about it.
    """
    from transformers import CLIPVisionModel

    source, out = Path(source), Path(out)
    refuse_existing(out)
    description = _describe(source, architecture)
    config = clip_vision_config(description.get("model_cfg") or {})
    weights = source
    if source.is_dir():
        weights = next((source / name for name in OPEN_CLIP_WEIGHTS if (source / name).is_file()), None)
        if weights is None:
            raise FileNotFoundError(f"{source}: no {' or '.join(OPEN_CLIP_WEIGHTS)} in it")
    state = read_tensors(weights, TOWER_WEIGHTS, inside=("state_dict",))
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    found = stock_vision_state(state)
    with torch.device("meta"):
        model = CLIPVisionModel(config)
    fill(model, found)
    images = _image_processor(description.get("preprocess_cfg") or {}, config.image_size)
    temporary = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    try:
        model.save_pretrained(temporary)
        images.save_pretrained(temporary)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    tokens = (config.image_size // config.patch_size) ** 2
    return {"width": config.hidden_size, "layers": config.num_hidden_layers, "image_tokens": tokens}


def _describe(source: Path, architecture: str | None) -> dict[str, Any]:
    """{model_cfg, preprocess_cfg} of a checkpoint."""
    if architecture is None:
        if not source.is_dir():
            raise ValueError(f"{source}: weights alone do not say what they are; give --architecture, as ViT-L-14")
        return read_json(source / OPEN_CLIP_CONFIG)
    import open_clip

    model_cfg = open_clip.get_model_config(architecture)
    if model_cfg is None:
        raise ValueError(f"open_clip knows no architecture {architecture!r}; open_clip.list_models() has all of them")
    own = source / OPEN_CLIP_CONFIG
    return {"preprocess_cfg": read_json(own).get("preprocess_cfg") if own.is_file() else None, "model_cfg": model_cfg}


def _image_processor(preprocess: dict[str, Any], pixels: int):
    """CLIP's image processor with the checkpoint's mean, spread, interpolation and way to a square."""
    from PIL import Image
    from transformers import CLIPImageProcessor
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    mode = preprocess.get("resize_mode", "shortest")
    if mode not in ("shortest", "squash"):
        raise ValueError(f"preprocess_cfg.resize_mode={mode!r}: the stock image processor does not pad")
    resample = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}.get(
        preprocess.get("interpolation", "bicubic")
    )
    if resample is None:
        raise ValueError(f"preprocess_cfg.interpolation={preprocess['interpolation']!r}: expected bicubic or bilinear")
    square = {"height": pixels, "width": pixels}
    return CLIPImageProcessor(
        size={"shortest_edge": pixels} if mode == "shortest" else square,
        crop_size=square,
        do_center_crop=mode == "shortest",
        resample=resample,
        image_mean=list(preprocess.get("mean") or OPENAI_CLIP_MEAN),
        image_std=list(preprocess.get("std") or OPENAI_CLIP_STD),
    )
