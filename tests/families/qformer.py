"""Tiny models that read an image through a Q-Former: BLIP-2 over Llama or OPT, InstructBLIP over Llama."""

from __future__ import annotations

from pathlib import Path

from tests.families.common import VISION, chat_template, extended_tokenizer, save, special_ids, text_config

QFORMER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "encoder_hidden_size": 32,
    "max_position_embeddings": 128,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
QUERIES = 4


def build(name: str, folder: str | Path, seed: int = 0) -> Path:
    """Four query tokens, which start at zero in the stock class and at random here.

    The processors take no chat template: the tokenizer has it, without a mark for an image.
    """
    import torch
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        BlipImageProcessor,
        InstructBlipConfig,
        InstructBlipForConditionalGeneration,
        InstructBlipProcessor,
        LlamaConfig,
    )

    torch.manual_seed(seed)
    tokenizer = extended_tokenizer({})
    tokenizer.chat_template = chat_template("")
    images = BlipImageProcessor(size={"height": 32, "width": 32})
    parts = {
        "vision_config": {**VISION, "initializer_range": 0.02},
        "qformer_config": {**QFORMER, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id},
        "num_query_tokens": QUERIES,
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
    }
    if name == "instructblip":
        processor = InstructBlipProcessor(
            image_processor=images,
            tokenizer=tokenizer,
            qformer_tokenizer=extended_tokenizer({}, padding_side="right"),
            num_query_tokens=QUERIES,
        )
        config = InstructBlipConfig(text_config=LlamaConfig(**text_config(tokenizer)), **parts)
        model = InstructBlipForConditionalGeneration(config)
    else:
        decoder = LlamaConfig(**text_config(tokenizer)) if name == "blip_2" else _opt(tokenizer)
        processor = Blip2Processor(image_processor=images, tokenizer=tokenizer, num_query_tokens=QUERIES)
        model = Blip2ForConditionalGeneration(Blip2Config(text_config=decoder, **parts))
    with torch.no_grad():
        model.query_tokens.normal_(std=0.5)
    return save(folder, model, processor)


def _opt(tokenizer):
    from transformers import OPTConfig

    return OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=512,
        dropout=0.0,
        tie_word_embeddings=False,
        **special_ids(tokenizer),
    )
