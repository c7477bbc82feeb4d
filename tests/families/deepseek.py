"""Tiny models of the first DeepSeek-VL: a SigLIP tower (1.3B), and one with a SAM tower beside it (7B, hybrid)."""

from __future__ import annotations

from pathlib import Path

from tests.families.common import VISION, chat_template, extended_tokenizer, save, text_config

MARK = "<image_placeholder>"


def build(name: str, folder: str | Path, seed: int = 0) -> Path:
    """Sixteen tokens an image. The hybrid's weight of its SAM neck starts at zero; here it is one half."""
    import torch
    from transformers import (
        DeepseekVLConfig,
        DeepseekVLForConditionalGeneration,
        DeepseekVLHybridConfig,
        DeepseekVLHybridForConditionalGeneration,
        DeepseekVLHybridImageProcessor,
        DeepseekVLHybridProcessor,
        DeepseekVLImageProcessor,
        DeepseekVLProcessor,
        LlamaConfig,
        SamVisionConfig,
        SiglipVisionConfig,
    )

    torch.manual_seed(seed)
    tokenizer = extended_tokenizer({"image_token": MARK})
    size = {"height": 32, "width": 32}
    parts = {
        "vision_config": SiglipVisionConfig(**VISION, vision_use_head=False),
        "text_config": LlamaConfig(**text_config(tokenizer)),
        "image_token_id": tokenizer.image_token_id,
        "tie_word_embeddings": False,
    }
    rest = {"tokenizer": tokenizer, "chat_template": chat_template(MARK), "num_image_tokens": 16}
    if name == "deepseek_vl":
        processor = DeepseekVLProcessor(image_processor=DeepseekVLImageProcessor(size=size), **rest)
        return save(folder, DeepseekVLForConditionalGeneration(DeepseekVLConfig(**parts)), processor)
    high = SamVisionConfig(
        hidden_size=32,
        output_channels=8,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=64,
        patch_size=16,
        window_size=2,
        global_attn_indexes=[1],
        num_pos_feats=16,
        mlp_dim=64,
    )
    images = DeepseekVLHybridImageProcessor(size=size, high_res_size={"height": 64, "width": 64})
    processor = DeepseekVLHybridProcessor(image_processor=images, **rest)
    model = DeepseekVLHybridForConditionalGeneration(DeepseekVLHybridConfig(high_res_vision_config=high, **parts))
    with torch.no_grad():
        model.model.high_res_vision_alpha.fill_(0.5)
    return save(folder, model, processor)
