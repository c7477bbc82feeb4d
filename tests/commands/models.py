"""Random models under the names that the documents use, in seconds and a few megabytes."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.commands.world import COUNT, captions, write_json

TOWER = "openai/clip-vit-large-patch14-336"


def texts() -> Iterator[str]:
    """What the tokenizer is trained on: the captions, COCO's and the pocket world's words, some prompts."""
    from hacl.evaluation.coco_objects import coco_vocabulary
    from hacl.pocket.world import KINDS

    for number in range(COUNT):
        yield from captions(number)
    yield from (f"there is a {name}" for name in (*coco_vocabulary(), *(kind.name for kind in KINDS)))
    yield "Describe the image. Please describe this image in detail. Yes No USER: ASSISTANT: Is there a in the image?"


@cache
def _made_model(seed: int, shelf: Path) -> Path:
    from hacl.models.random_llava import Size, write_random_llava

    size = Size(layers=32, width=128, vision_layers=2, vision_width=64, pixels=28, vocabulary=1024)
    write_random_llava(shelf / f"model-{seed}", size, texts(), seed=seed)
    return shelf / f"model-{seed}"


def model(folder: Path) -> None:
    """LLaVA-1.5 with 32 blocks as the 7B model has, each of width 128; 4 image tokens; random weights."""
    _copy(_made_model(0, _shelf(folder)), folder)


def other_model(folder: Path) -> None:
    """The same with other random weights."""
    _copy(_made_model(1, _shelf(folder)), folder)


def third_model(folder: Path) -> None:
    """And with others."""
    _copy(_made_model(2, _shelf(folder)), folder)


def qwen2_vl(folder: Path) -> None:
    """Qwen2-VL with 28 blocks as the 7B model has; random weights."""
    _family("qwen2_vl", 28, folder)


def idefics2(folder: Path) -> None:
    """Idefics2 with 32 blocks as the 8B model has; random weights."""
    _family("idefics2", 32, folder)


def _family(name: str, blocks: int, folder: Path) -> None:
    """The tiny model of a family with so many decoder blocks."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    from tests.families import build

    build(name, folder)
    config = AutoConfig.from_pretrained(folder)
    config.text_config.num_hidden_layers = blocks
    if hasattr(config.text_config, "layer_types"):
        config.text_config.layer_types = ["full_attention"] * blocks
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)


def text_model(folder: Path) -> None:
    """A causal language model with its tokenizer: the decoder of the first."""
    from transformers import AutoModelForImageTextToText, AutoTokenizer, LlamaForCausalLM

    whole = AutoModelForImageTextToText.from_pretrained(_made_model(0, _shelf(folder)))
    decoder = LlamaForCausalLM(whole.config.text_config)
    decoder.model.load_state_dict(whole.model.language_model.state_dict())
    decoder.save_pretrained(folder)
    AutoTokenizer.from_pretrained(_made_model(0, _shelf(folder))).save_pretrained(folder)


def _shelf(folder: Path) -> Path:
    """Where models are kept for all pages: in the folder that holds the pages' folders."""
    return next(parent for parent in folder.parents if (parent / "shelf").is_dir()) / "shelf"


def _copy(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder, copy_function=os.link)


def clip(folder: Path) -> None:
    """A small random CLIP in open_clip's own layout."""
    import open_clip
    from safetensors.torch import save_file

    size = {"embed_dim": 16, "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}}
    size["text_cfg"] = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    pixels = {"mean": [0.5] * 3, "std": [0.5] * 3}
    write_json(folder / "open_clip_config.json", {"model_cfg": size, "preprocess_cfg": pixels})
    weights = open_clip.model.CLIP(**size).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "open_clip_model.safetensors")


def network(path: Path) -> None:
    """A Learn-to-Steer network as the released code saves it, of the model's width."""
    import torch

    parts = {"encoder.weight": torch.zeros(8, 128), "encoder.bias": torch.zeros(8)}
    torch.save(parts | {"decoder.weight": torch.zeros(128, 8)}, path)


def vision_tower(folder: Path) -> None:
    """The CLIP checkpoint that an original LLaVA folder names."""
    _original().save_tower(folder)


def language_model(folder: Path) -> None:
    """The language model that an original projector or original LoRA matrices belong to."""
    from tests.reference.original_llava import text_tokenizer

    _original().llm.save_pretrained(folder)
    text_tokenizer().save_pretrained(folder)


def original_llava(folder: Path) -> None:
    _named(_original().save(folder))


def original_projector(folder: Path) -> None:
    original = _original()
    alone = {name: tensor for name, tensor in original.tensors(tower=False).items() if "mm_projector" in name}
    _named(original.save(folder, alone, "mm_projector.bin"))


def original_lora(folder: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    original = _original()
    tensors = original.tensors(tower=False)
    others = {f"base_model.model.{name}": tensor for name, tensor in tensors.items() if "mm_projector" in name}
    _named(original.save(folder, others, "non_lora_trainables.bin"))
    tuned = get_peft_model(original.llm, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]))
    tuned.save_pretrained(folder / "peft")
    torch.save(get_peft_model_state_dict(tuned), folder / "adapter_model.bin")
    (folder / "peft" / "adapter_config.json").rename(folder / "adapter_config.json")


def _original():
    from tests.reference.original_llava import OriginalLlava

    return OriginalLlava()


def _named(folder: Path) -> None:
    """Let the folder name its tower as published ones do."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", config | {"mm_vision_tower": TOWER})


def blip2(folder: Path) -> None:
    """BLIP-2 with its processor, a part of MiniGPT-4."""
    _minigpt4("blip2", folder)


def vicuna(folder: Path) -> None:
    """MiniGPT-4's language model."""
    _minigpt4("llm", folder)


def minigpt4_map(path: Path) -> None:
    """MiniGPT-4's own checkpoint: one linear map."""
    _minigpt4("minigpt4.pth", path)


def _minigpt4(part: str, place: Path) -> None:
    from tests.reference.minigpt4 import MiniGPT4

    with tempfile.TemporaryDirectory(dir=place.parent) as made:
        MiniGPT4().save(Path(made))[part].rename(place)
