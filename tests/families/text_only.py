"""Tiny text-only models for steering without images: Llama and Gemma with the word-level tokenizer, Qwen2 with its."""

from __future__ import annotations

from pathlib import Path

from tests.families.common import chat_template, extended_tokenizer, save, text_config
from tests.tiny import COLOURS, PLACES, SHAPES, WORDS
from tests.tiny_families import tiny_text_model


def build(name: str, folder: str | Path, seed: int = 0) -> Path:
    """llama is that of `tests.tiny_families`."""
    import torch
    from transformers import GemmaConfig, GemmaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    tokenizer = qwen2_tokenizer() if name == "qwen2" else extended_tokenizer({})
    tokenizer.chat_template = chat_template("")
    if name == "llama":
        model, _ = tiny_text_model(seed)
    elif name == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**text_config(tokenizer)))
    else:
        model = GemmaForCausalLM(GemmaConfig(**text_config(tokenizer, head_dim=8, tie_word_embeddings=True)))
    return save(folder, model, tokenizer)


def qwen2_tokenizer():
    """A byte-level tokenizer of Qwen2's class.

    `AutoTokenizer` loads that class for model_type qwen2 whatever the checkpoint names, and with it drops the
    word-level model of another tokenizer in silence.
    """
    from transformers import Qwen2Tokenizer

    words = [" " + " ".join([*WORDS, *COLOURS, *SHAPES, *PLACES, "USER", "ASSISTANT", "SYSTEM"])]
    tokenizer = Qwen2Tokenizer(padding_side="left").train_new_from_iterator(words, vocab_size=600, show_progress=False)
    tokenizer.add_special_tokens({"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"})
    return tokenizer
