"""Tiny text-only models for steering without images: Llama, Qwen2 and Gemma with a word-level tokenizer."""

from __future__ import annotations

from pathlib import Path

from tests.families.common import chat_template, extended_tokenizer, save, text_config
from tests.tiny_families import tiny_causal_model, tiny_text_model


def build(name: str, folder: str | Path, seed: int = 0) -> Path:
    """llama and qwen2 are those of `tests.tiny_families`."""
    import torch
    from transformers import GemmaConfig, GemmaForCausalLM

    torch.manual_seed(seed)
    tokenizer = extended_tokenizer({})
    tokenizer.chat_template = chat_template("")
    if name == "llama":
        model, _ = tiny_text_model(seed)
    elif name == "qwen2":
        model = tiny_causal_model(name, seed)
    else:
        model = GemmaForCausalLM(GemmaConfig(**text_config(tokenizer, head_dim=8, tie_word_embeddings=True)))
    return save(folder, model, tokenizer)
