"""What the tiny models of all families share: the tokenizer with a family's tokens, the chat template, the saving."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.tiny import build_tokenizer
from tests.tiny_families import TEXT

SPREAD = 0.2
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}


def extended_tokenizer(names: Mapping[str, str], others: Iterable[str] = (), padding_side: str = "left"):
    """The tiny word-level tokenizer whose attribute `name` is the special token `names[name]`; `others` have no name.

    No attribute `image_token` is left unless `names` gives one: the BLIP processors then choose another path.
    """
    from transformers import PreTrainedTokenizerFast

    base = build_tokenizer()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=base.backend_tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=dict(names),
        padding_side=padding_side,
        model_input_names=["input_ids", "attention_mask"],
    )
    if others := list(others):
        tokenizer.add_tokens(others, special_tokens=True)
    return tokenizer


def chat_template(image: str) -> str:
    """Turns as "USER : ... ", "ASSISTANT : ...</s>"; an image part is written `image`; an answer is `generation`."""
    return (
        "{% for message in messages %}{{ message['role'] | upper }} : "
        "{% macro render(content) %}{% if content is string %}{{ content }}{% else %}{% for part in content %}"
        "{% if part['type'] == 'image' %}" + image + "{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endif %}{% endmacro %}"
        "{% if message['role'] == 'assistant' %}{% generation %}{{ render(message['content']) }}</s>{% endgeneration %}"
        "{% else %}{{ render(message['content']) }} {% endif %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT : {% endif %}"
    )


def text_config(tokenizer, **changes: Any) -> dict[str, Any]:
    """Keywords of a decoder of three blocks of width 32 over the ids of `tokenizer`."""
    return {**TEXT, "vocab_size": len(tokenizer), **special_ids(tokenizer), **changes}


def special_ids(tokenizer) -> dict[str, int]:
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}


def enliven(model) -> None:
    """Spread the weights of linear layers and embeddings to `SPREAD`.

    At the stock spread of 0.02 and width 32 a token hardly sees the others, and a wrong mask would go unnoticed.
    """
    import torch

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
                spread = module.weight.std()
                if 0 < spread < SPREAD:
                    module.weight.mul_(SPREAD / spread)


def save(folder: str | Path, model, processor) -> Path:
    """Write a model and its processor (or tokenizer) so that the auto classes reload both; returns the folder."""
    enliven(model)
    tokenizer = getattr(processor, "tokenizer", processor)
    for name, number in special_ids(tokenizer).items():
        setattr(model.generation_config, name, number)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


def prompt(processor, words: str, images: int = 1) -> str:
    """What a user says with `images` images before it, as the family's template writes it, ready for an answer."""
    content = [{"type": "image"}] * images + [{"type": "text", "text": words}]
    holder = processor if processor.chat_template else processor.tokenizer
    return holder.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )


def encode(processor, images: list[list[Any]], texts: list[str], **options: Any):
    """Model inputs of a batch: for each text its PIL images. Images are nested, which every family's processor takes.

    PaliGemma's processor adds labels that ignore every token of a prompt; they are left out.
    """
    batch = processor(images=images, text=texts, return_tensors="pt", padding=True, **options)
    batch.pop("labels", None)
    return batch
