"""Tiny random models with their stock processors, one for each multimodal family that stock transformers has."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

GROUPS = {
    "llava": "llava_like",
    "llava_next": "llava_like",
    "llava_onevision": "llava_like",
    "fast_vlm": "llava_like",
    "blip_2": "qformer",
    "blip_2_opt": "qformer",
    "instructblip": "qformer",
    "idefics2": "idefics",
    "idefics3": "idefics",
    "smolvlm": "idefics",
    "qwen2_vl": "qwen",
    "qwen2_5_vl": "qwen",
    "qwen3_vl": "qwen",
    "qwen3_vl_moe": "qwen",
    "internvl": "internvl",
    "molmo2": "molmo2",
    "gemma3": "gemma",
    "paligemma": "gemma",
    "deepseek_vl": "deepseek",
    "deepseek_vl_hybrid": "deepseek",
    "llama": "text_only",
    "qwen2": "text_only",
    "gemma": "text_only",
}
TEXT_ONLY = tuple(name for name, group in GROUPS.items() if group == "text_only")
MULTIMODAL = tuple(name for name in GROUPS if name not in TEXT_ONLY)

CORE = ("llava_next", "smolvlm", "qwen3_vl", "gemma3", "instructblip")  # that differ the most


def chosen() -> tuple[str, ...]:
    """Families that the slow tests run: those of CORE, all with HACL_ALL_FAMILIES=1."""
    return MULTIMODAL if os.environ.get("HACL_ALL_FAMILIES") else CORE


def build(name: str, folder: str | Path, seed: int = 0) -> Path:
    """Save a tiny random model of family `name` and its processor to `folder`; returns the folder.

    The auto classes reload both with no network. A text-only family has a tokenizer in place of a processor.
    """
    if name not in GROUPS:
        raise ValueError(f"family {name!r}: expected one of {', '.join(GROUPS)}")
    return importlib.import_module(f"tests.families.{GROUPS[name]}").build(name, folder, seed)
