"""A tiny Molmo2: pooled tokens of the whole image and of overlapping crops, added to the embeddings of their marks."""

from __future__ import annotations

from pathlib import Path

from tests.families.common import VISION, chat_template, extended_tokenizer, save, text_config

NAMES = {"image_token": "<|image|>", "video_token": "<|video|>"}
MARKS = (
    "<im_patch>",
    "<im_col>",
    "<im_start>",
    "<low_res_im_start>",
    "<frame_start>",
    "<im_end>",
    "<frame_end>",
    "<im_low>",
)


def build(name: str, folder: str | Path, seed: int = 0) -> Path:
    """The marks are the last ids of the vocabulary: they have an embedding and no logit."""
    import torch
    from transformers import (
        Molmo2Config,
        Molmo2ForConditionalGeneration,
        Molmo2ImageProcessor,
        Molmo2Processor,
        Molmo2VideoProcessor,
    )

    torch.manual_seed(seed)
    tokenizer = extended_tokenizer(NAMES, MARKS)
    words, number = tokenizer.convert_tokens_to_ids("<|image|>"), tokenizer.convert_tokens_to_ids
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
    config = Molmo2Config(
        vision_config={**{**VISION, "image_size": [32, 32]}, **heads},
        adapter_config={
            "vision_feature_layer": [-1, 0],
            "hidden_size": 32,
            "intermediate_size": 64,
            "text_hidden_size": 32,
            **heads,
        },
        text_config=text_config(
            tokenizer,
            vocab_size=words,
            additional_vocab_size=len(tokenizer) - words,
            head_dim=8,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        ),
        image_patch_id=number("<im_patch>"),
        image_start_token_id=number("<im_start>"),
        low_res_image_start_token_id=number("<low_res_im_start>"),
        image_end_token_id=number("<im_end>"),
        frame_start_token_id=number("<frame_start>"),
        frame_end_token_id=number("<frame_end>"),
        tie_word_embeddings=False,
    )
    size = {"height": 32, "width": 32}
    processor = Molmo2Processor(
        image_processor=Molmo2ImageProcessor(
            size=size, patch_size=8, max_crops=4, overlap_margins=[1, 1], pooling_size=[2, 2]
        ),
        video_processor=Molmo2VideoProcessor(size=size, patch_size=8, pooling_size=[2, 2]),
        tokenizer=tokenizer,
        chat_template=chat_template(NAMES["image_token"]),
    )
    return save(folder, Molmo2ForConditionalGeneration(config), processor)
