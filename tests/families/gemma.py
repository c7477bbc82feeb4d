"""Tiny Gemma 3 (sliding windows, image tokens that see each other) and PaliGemma (a prefix that sees all of itself)."""

from __future__ import annotations

from pathlib import Path

from tests.families.common import SPREAD, VISION, chat_template, extended_tokenizer, save, text_config

NAMES = {"boi_token": "<start_of_image>", "image_token": "<image_soft_token>", "eoi_token": "<end_of_image>"}
WINDOW = 8


def build(name: str, folder: str | Path, seed: int = 0) -> Path:
    import torch

    torch.manual_seed(seed)
    return save(folder, *{"gemma3": _gemma3, "paligemma": _paligemma}[name]())


def _gemma3():
    """Four tokens an image; blocks sliding, full, sliding, of eight tokens. The stock projection starts at zero."""
    import torch
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3ImageProcessor,
        Gemma3Processor,
        Gemma3TextConfig,
        SiglipVisionConfig,
    )

    tokenizer = extended_tokenizer(NAMES)
    text = text_config(
        tokenizer,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        tie_word_embeddings=True,
    )
    config = Gemma3Config(
        text_config=Gemma3TextConfig(**text),
        vision_config=SiglipVisionConfig(**VISION, vision_use_head=False),
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size={"height": 32, "width": 32}),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=chat_template(NAMES["boi_token"]),
    )
    model = Gemma3ForConditionalGeneration(config)
    with torch.no_grad():
        model.model.multi_modal_projector.mm_input_projection_weight.normal_(std=SPREAD)
    return model, processor


def _paligemma():
    """Sixteen tokens an image, one for each patch; the processor adds 1,152 tokens for places and masks."""
    from transformers import (
        GemmaConfig,
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        PaliGemmaProcessor,
        SiglipImageProcessor,
        SiglipVisionConfig,
    )

    tokenizer = extended_tokenizer({"image_token": "<image>"})
    images = SiglipImageProcessor(size={"height": 32, "width": 32})
    images.image_seq_length = 16
    processor = PaliGemmaProcessor(image_processor=images, tokenizer=tokenizer, chat_template=chat_template("<image>"))
    config = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(**VISION, vision_use_head=False),
        text_config=GemmaConfig(**text_config(tokenizer, head_dim=8, tie_word_embeddings=True)),
        image_token_index=tokenizer.image_token_id,
        vocab_size=len(tokenizer),
        projection_dim=32,
        hidden_size=32,
    )
    return PaliGemmaForConditionalGeneration(config), processor
