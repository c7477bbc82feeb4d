"""Tiny models of the Qwen-VL line: one token for each 8 x 8 pixels, positions in time, height and width."""

from __future__ import annotations

from pathlib import Path

from tests.families.common import chat_template, extended_tokenizer, save, text_config
from tests.tiny_families import tiny_qwen_model

MARK = "<|vision_start|><|image_pad|><|vision_end|>"
NAMES = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
SIZES = {"min_pixels": 16 * 16, "max_pixels": 64 * 64, "patch_size": 4, "merge_size": 2}
ROPE = {"rope_type": "default", "rope_theta": 1e4}


def build(name: str, folder: str | Path, seed: int = 0) -> Path:
    """qwen2_vl is that of `tests.tiny_families`, with the shared chat template."""
    import torch

    torch.manual_seed(seed)
    if name == "qwen2_vl":
        model, processor = tiny_qwen_model(seed)
        processor.chat_template = chat_template(MARK)
    elif name == "qwen2_5_vl":
        model, processor = _qwen2_5()
    else:
        model, processor = _qwen3(mixture=name == "qwen3_vl_moe")
    return save(folder, model, processor)


def _ids(tokenizer) -> dict[str, int]:
    return {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in NAMES.items()}


def _qwen2_5():
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = extended_tokenizer(NAMES)
    config = Qwen2_5_VLConfig(
        text_config=text_config(tokenizer, rope_parameters={**ROPE, "mrope_section": [1, 1, 2]}),
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "out_hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 4,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
        tie_word_embeddings=False,
        **_ids(tokenizer),
    )
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**SIZES),
        video_processor=Qwen2VLVideoProcessor(**SIZES),
        tokenizer=tokenizer,
        chat_template=chat_template(MARK),
    )
    return Qwen2_5_VLForConditionalGeneration(config), processor


def _qwen3(mixture: bool):
    """Features of two tower blocks are added to the image states after the first two decoder blocks (DeepStack)."""
    from transformers import (
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLMoeConfig,
        Qwen3VLMoeForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    tokenizer = extended_tokenizer(NAMES)
    changes = {"head_dim": 8, "rope_parameters": {**ROPE, "mrope_section": [2, 1, 1], "mrope_interleaved": True}}
    if mixture:
        changes |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    config_class, model_class = (
        (Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration)
        if mixture
        else (Qwen3VLConfig, Qwen3VLForConditionalGeneration)
    )
    config = config_class(
        text_config=text_config(tokenizer, **changes),
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "out_hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 4,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        tie_word_embeddings=False,
        **_ids(tokenizer),
    )
    edges = {"shortest_edge": SIZES["min_pixels"], "longest_edge": SIZES["max_pixels"]}
    patches = {"patch_size": SIZES["patch_size"], "merge_size": SIZES["merge_size"]}
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**SIZES),
        video_processor=Qwen3VLVideoProcessor(size=edges, **patches),
        tokenizer=tokenizer,
        chat_template=chat_template(MARK),
    )
    return model_class(config), processor
