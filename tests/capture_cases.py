"""Tiny models of every family with samples to capture, and what their stock forward gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from hacl.representations import FeatureStore, Sample, paired
from hacl.representations.capture import capture
from hacl.representations.encoding import RowEncoder
from hacl.representations.parts import find_parts
from tests.tiny import build_tiny_model
from tests.tiny_families import draw_images, sentences, tiny_gpt2_model, tiny_qwen_model, tiny_text_model

SELECT = ["predicts:red", "at:the", "last_prompt", "first_generated", "mean_generated", "index:-1", "all"]
FAMILIES = ["llava", "fast_vlm", "qwen", "text", "gpt2"]


@dataclass
class Case:
    model: torch.nn.Module
    processor: object
    samples: list[Sample]
    template: str
    select: list[str]


def load_tiny(folder, family):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    path = build_tiny_model(folder, family)
    return AutoModelForImageTextToText.from_pretrained(path).eval(), AutoProcessor.from_pretrained(path)


def make_cases(folder, families=FAMILIES) -> dict[str, Case]:
    """A tiny model of each family, and six samples of different lengths with images of different shapes."""
    images = draw_images(folder, [(32, 32), (48, 32), (32, 64), (64, 64), (32, 32)])
    texts = sentences(6)
    made = {}
    for family in families:
        shown = [None] * 6 if family in ("text", "gpt2") else [*images, None]
        samples = [
            Sample(f"s{i}", shown[i], texts[-1 - i], f"the {texts[2 * i % 6]} a red square", f"image-{i // 2}")
            for i in range(6)
        ]
        if family in ("llava", "fast_vlm"):
            model, processor = load_tiny(folder / family, family)
        else:
            model, processor = {"qwen": tiny_qwen_model, "text": tiny_text_model, "gpt2": tiny_gpt2_model}[family]()
        template = "chat" if family in ("qwen", "fast_vlm") else "plain"
        select = SELECT if family in ("text", "gpt2") else [*SELECT, "mean_image"]
        model.generation_config.suppress_tokens = [processor.image_token_id] if select is not SELECT else None
        made[family] = Case(model, processor, samples, template, select)
    return made


def run(case, out, **options):
    options = {"layers": "all", "select": case.select, "template": case.template, "progress": False, **options}
    model, samples = options.pop("model", case.model), options.pop("samples", case.samples)
    return FeatureStore(capture(model, case.processor, samples, out=out, **options))


def largest_difference(a, b):
    pairs = paired(a, b)
    assert len(pairs) == len(a) == len(b) > 0
    return max(np.abs(a.read(name, pairs.index_a) - b.read(name, pairs.index_b)).max() for name in a.layers)


def plain_forward(case, row, dtype=torch.float32):
    """{layer: (T, D)} and logits (T, V) of one unpadded sequence, from the stock model's own outputs."""
    encoder = RowEncoder(case.processor, template=case.template)
    inputs = encoder.batch([row], torch.device("cpu"), dtype)
    with torch.no_grad():
        output = case.model(**inputs, output_hidden_states=True)
    hidden = output.hidden_states
    names = find_parts(case.model).order()
    found = {name: states[0] for name, states in zip([*names[:-2], names[-1]], hidden, strict=True)}
    return found, output.logits[0]
