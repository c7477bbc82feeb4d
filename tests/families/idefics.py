"""Tiny models of the Idefics line: Idefics2 (resampler), Idefics3 and SmolVLM (tiles and pixel shuffle)."""

from __future__ import annotations

from pathlib import Path

from tests.families.common import VISION, chat_template, extended_tokenizer, save, text_config

MARKS = ("<fake_token_around_image>", "<end_of_utterance>")
TILES = ("<global-img>", *(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)))
LATENTS = 4


def build(name: str, folder: str | Path, seed: int = 0) -> Path:
    """Four tokens for an image (Idefics2) or for each tile of 32 x 32 pixels and the whole image (the others)."""
    import torch

    torch.manual_seed(seed)
    return save(folder, *{"idefics2": _idefics2, "idefics3": _idefics3, "smolvlm": _smolvlm}[name]())


def _idefics2():
    from transformers import (
        Idefics2Config,
        Idefics2ForConditionalGeneration,
        Idefics2ImageProcessor,
        Idefics2Processor,
        MistralConfig,
    )

    names = {"image_token": "<image>", "image_boundary_token": MARKS[0], "end_of_utterance_token": MARKS[1]}
    tokenizer = extended_tokenizer(names)
    processor = Idefics2Processor(
        image_processor=Idefics2ImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}),
        tokenizer=tokenizer,
        image_seq_len=LATENTS,
        chat_template=chat_template("<image>"),
    )
    config = Idefics2Config(
        vision_config={**VISION, "image_size": 64},
        perceiver_config={
            "hidden_size": 32,
            "resampler_n_latents": LATENTS,
            "resampler_depth": 2,
            "resampler_n_heads": 4,
            "resampler_head_dim": 8,
            "num_key_value_heads": 2,
        },
        text_config=MistralConfig(**text_config(tokenizer), sliding_window=None),
        image_token_id=tokenizer.image_token_id,
        tie_word_embeddings=False,
    )
    return Idefics2ForConditionalGeneration(config), processor


def _tiled(config_class, model_class, tokenizer):
    from transformers import LlamaConfig

    config = config_class(
        vision_config=VISION,
        text_config=LlamaConfig(**text_config(tokenizer)),
        scale_factor=2,
        image_token_id=tokenizer.image_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    return model_class(config)


def _idefics3():
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessor,
        Idefics3Processor,
    )

    tokenizer = extended_tokenizer({"image_token": "<image>"}, [*MARKS, *TILES])
    processor = Idefics3Processor(
        image_processor=Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}),
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template=chat_template("<image>"),
    )
    return _tiled(Idefics3Config, Idefics3ForConditionalGeneration, tokenizer), processor


def _smolvlm():
    from transformers import (
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    names = {"image_token": "<image>", "fake_image_token": MARKS[0], "end_of_utterance_token": MARKS[1]}
    names |= {"global_image_token": TILES[0], "video_token": "<video>"}
    tokenizer = extended_tokenizer(names, TILES[1:])
    sizes = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
    processor = SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(**sizes),
        video_processor=SmolVLMVideoProcessor(**sizes),
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template=chat_template("<image>"),
    )
    return _tiled(SmolVLMConfig, SmolVLMForConditionalGeneration, tokenizer), processor
