"""Tiny random models of the stock classes with processors, and tiny records with images: seconds to make, offline."""

from __future__ import annotations

import json
from pathlib import Path

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "yellow": (230, 220, 40)}
SHAPES = ("square", "circle", "triangle", "cross")
PLACES = ("left", "right", "top", "bottom")
WORDS = (
    "a the of is on in there and at with no yes not what which where how many describe image picture one two three "
    "small large shape colour object it near"
).split()

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }} : "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% if message['role'] == 'assistant' %}</s>{% else %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT : {% endif %}"
)


def build_tokenizer():
    """Word-level fast tokenizer with <pad>, <s>, </s>, <unk> and <image>; left padding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
    words = [*WORDS, *COLOURS, *SHAPES, *PLACES, "USER", "ASSISTANT", "SYSTEM", ":", ".", ",", "?"]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(specials + words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def build_tiny_model(folder: str | Path, family: str = "llava", *, seed: int = 0, width: int = 32) -> Path:
    """Save a random two-block model and its processor to `folder`; returns the folder.

    family "llava": CLIP tower, 16 image tokens of 32 x 32 pixels; "fast_vlm": convolutional timm tower, 4 image tokens
    of 64 x 64 pixels. Both reload with AutoModelForImageTextToText and AutoProcessor.
    """
    import torch
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        FastVlmConfig,
        FastVlmForConditionalGeneration,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        TimmWrapperConfig,
    )

    torch.manual_seed(seed)
    folder = Path(folder)
    tokenizer = build_tokenizer()
    image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    if family == "llava":
        pixels, patch, extra, strategy = 32, 8, 1, "default"
        vision = CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=pixels,
            patch_size=patch,
            projection_dim=width,
        )
        config = LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=image_token_id,
            image_seq_length=16,
            vision_feature_layer=-2,
            vision_feature_select_strategy=strategy,
            tie_word_embeddings=False,
        )
        model = LlavaForConditionalGeneration(config)
    elif family == "fast_vlm":
        pixels, patch, extra, strategy = 64, 32, 0, "full"
        vision = TimmWrapperConfig(
            architecture="test_convnext", do_pooling=False, model_args={"global_pool": ""}, hidden_size=64, num_labels=0
        )
        config = FastVlmConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=image_token_id,
            image_seq_length=4,
            tie_word_embeddings=False,
        )
        model = FastVlmForConditionalGeneration(config)
    else:
        raise ValueError(f"family {family!r}: expected 'llava' or 'fast_vlm'")
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": pixels}, crop_size={"height": pixels, "width": pixels}
        ),
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=extra,
        chat_template=CHAT_TEMPLATE,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def write_tiny_records(folder: str | Path, count: int = 8, *, name: str = "records.jsonl", text_only: int = 0) -> Path:
    """Write `count` image records (a coloured shape, its caption, one hallucinated caption) and `text_only` dialogues.

    Returns the JSONL file; image paths in it are relative to `folder`.
    """
    from PIL import Image, ImageDraw

    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    colours, lines = list(COLOURS), []
    for index in range(count):
        colour, shape = colours[index % 4], SHAPES[(index // 4 + index) % 4]
        place, other = PLACES[(index // 2) % 4], colours[(index + 1) % 4]
        image = Image.new("RGB", (48, 48), (128, 128, 128))
        draw = ImageDraw.Draw(image)
        x, y = {"left": (2, 14), "right": (26, 14), "top": (14, 2), "bottom": (14, 26)}[place]
        (draw.ellipse if shape == "circle" else draw.rectangle)((x, y, x + 18, y + 18), fill=COLOURS[colour])
        image.save(folder / "images" / f"{index}.png")
        caption = f"a {colour} {shape} on the {place}"
        start = caption.index(colour)
        lines.append(
            {
                "id": f"sample-{index}",
                "image": f"images/{index}.png",
                "image_id": str(index),
                "captions": [caption],
                "hallucinated": [
                    {
                        "text": caption.replace(colour, other, 1),
                        "type": "attribute",
                        "span": [start, start + len(other)],
                        "source": "test",
                        "of": 0,
                    }
                ],
            }
        )
    for index in range(text_only):
        turns = [
            {"from": "human", "value": "what colour is it ?"},
            {"from": "gpt", "value": colours[index % 4]},
            {"from": "human", "value": "is it small ?"},
            {"from": "gpt", "value": "yes" if index % 2 else "no"},
        ]
        lines.append({"id": f"text-{index}", "conversations": turns})
    path = folder / name
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path
