"""A tiny InternVL: tiles of 32 x 32 pixels of four tokens each, with a thumbnail where there are several."""

from __future__ import annotations

from pathlib import Path

from tests.families.common import VISION, chat_template, extended_tokenizer, save, text_config

NAMES = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


def build(name: str, folder: str | Path, seed: int = 0) -> Path:
    import torch
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
        Qwen2Config,
    )

    torch.manual_seed(seed)
    tokenizer = extended_tokenizer(NAMES)
    size = {"height": 32, "width": 32}
    config = InternVLConfig(
        vision_config=VISION,
        text_config=Qwen2Config(**text_config(tokenizer)),
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=size, max_patches=4),
        video_processor=InternVLVideoProcessor(size=size),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=chat_template(NAMES["context_image_token"]),
    )
    return save(folder, InternVLForConditionalGeneration(config), processor)
