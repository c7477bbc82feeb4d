"""Tiny models of the LLaVA kind: a tower, a two-layer projector and a decoder; tiles from LLaVA-NeXT on."""

from __future__ import annotations

from pathlib import Path

from tests.families.common import VISION, chat_template, extended_tokenizer, save, text_config
from tests.tiny import build_tiny_model

PINPOINTS = [[32, 32], [32, 64], [64, 32], [64, 64]]


def build(name: str, folder: str | Path, seed: int = 0) -> Path:
    """llava and fast_vlm are those of `tests.tiny`, with the shared chat template."""
    if name in ("llava", "fast_vlm"):
        from transformers import AutoModelForImageTextToText, AutoProcessor

        build_tiny_model(folder, name, seed=seed)
        processor = AutoProcessor.from_pretrained(folder)
        processor.chat_template = chat_template("<image>")
        return save(folder, AutoModelForImageTextToText.from_pretrained(folder), processor)
    import torch

    torch.manual_seed(seed)
    return save(folder, *{"llava_next": _llava_next, "llava_onevision": _llava_onevision}[name]())


def _llava_next():
    """A CLIP tower; 16 tokens for the whole image, and 16 and one line end a row for each tile, less the padding."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
    )

    tokenizer = extended_tokenizer({"image_token": "<image>"})
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**VISION, projection_dim=32),
        text_config=LlamaConfig(**text_config(tokenizer)),
        image_token_index=tokenizer.image_token_id,
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=16,
        tie_word_embeddings=False,
    )
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=PINPOINTS
        ),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template("<image>"),
    )
    return LlavaNextForConditionalGeneration(config), processor


def _llava_onevision():
    """A SigLIP tower, all of whose states are kept; tiles as in LLaVA-NeXT, shrunk above nine of them."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
        Qwen2Config,
        SiglipVisionConfig,
    )

    size = {"height": 32, "width": 32}
    tokenizer = extended_tokenizer({"image_token": "<image>", "video_token": "<video>"})
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**VISION, vision_use_head=False),
        text_config=Qwen2Config(**text_config(tokenizer)),
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        image_grid_pinpoints=PINPOINTS,
        tie_word_embeddings=False,
    )
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=PINPOINTS),
        video_processor=LlavaOnevisionVideoProcessor(size=size),
        tokenizer=tokenizer,
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=chat_template("<image>"),
    )
    return LlavaOnevisionForConditionalGeneration(config), processor
