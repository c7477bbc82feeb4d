"""Adapters of the multimodal families of stock `transformers`, by the `model_type` of their configuration.

`docs/families.md` lists what each can do, `docs/adding_a_family.md` says how to add one.
"""

from __future__ import annotations

from hacl.models.adapters import Adapter
from hacl.models.families.blip import Blip2Adapter, InstructBlipAdapter
from hacl.models.families.deepseek import DeepseekVLAdapter, DeepseekVLHybridAdapter
from hacl.models.families.gemma import Gemma3Adapter, PaliGemmaAdapter
from hacl.models.families.idefics import Idefics2Adapter, Idefics3Adapter
from hacl.models.families.internvl import InternVLAdapter
from hacl.models.families.llava import FastVlmAdapter, LlavaAdapter, LlavaNextAdapter, LlavaOnevisionAdapter
from hacl.models.families.molmo2 import Molmo2Adapter
from hacl.models.families.qwen import Qwen2VLAdapter, Qwen3VLAdapter

FAMILIES: dict[str, type[Adapter]] = {
    "llava": LlavaAdapter,
    "fast_vlm": FastVlmAdapter,
    "llava_next": LlavaNextAdapter,
    "llava_onevision": LlavaOnevisionAdapter,
    "gemma3": Gemma3Adapter,
    "paligemma": PaliGemmaAdapter,
    "molmo2": Molmo2Adapter,
    "idefics2": Idefics2Adapter,
    "idefics3": Idefics3Adapter,
    "smolvlm": Idefics3Adapter,
    "qwen2_vl": Qwen2VLAdapter,
    "qwen2_5_vl": Qwen2VLAdapter,
    "qwen3_vl": Qwen3VLAdapter,
    "qwen3_vl_moe": Qwen3VLAdapter,
    "internvl": InternVLAdapter,
    "blip-2": Blip2Adapter,
    "instructblip": InstructBlipAdapter,
    "deepseek_vl": DeepseekVLAdapter,
    "deepseek_vl_hybrid": DeepseekVLHybridAdapter,
}
