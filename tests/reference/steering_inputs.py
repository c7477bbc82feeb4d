"""Tiny steered models and mixed batches for the tests of steering.

Shapes: B samples, T columns, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

WIDTH = 32
NEW = 6


def load(folder, dtype=torch.float32):
    """A tiny model whose tokens look at each other: weights of an untrained one are too small for that."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and ("language_model" in name or "lm_head" in name):
                weight.mul_(8)
    return model.to(dtype)


@dataclass
class Prompts:
    """Rows without padding: ids, and the pixels of the rows that have an image."""

    ids: list[list[int]]
    pixels: list[Tensor | None]
    image_token_id: int

    def image(self, row: int) -> list[bool]:
        return [token == self.image_token_id for token in self.ids[row]]

    def batch(self, rows: list[int] | None = None, side: str = "left", copies: int = 1) -> dict[str, Tensor]:
        """Padded inputs of the rows, each `copies` times in a row."""
        rows = [row for row in (range(len(self.ids)) if rows is None else rows) for _ in range(copies)]
        width = max(len(self.ids[row]) for row in rows)
        ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
        for at, row in enumerate(rows):
            part = slice(width - len(self.ids[row]), None) if side == "left" else slice(len(self.ids[row]))
            ids[at, part], mask[at, part] = torch.tensor(self.ids[row]), 1
        pixels = [self.pixels[row] for row in rows if self.pixels[row] is not None]
        return {"input_ids": ids, "attention_mask": mask} | ({"pixel_values": torch.stack(pixels)} if pixels else {})


def prompts(model, images: tuple[bool, ...] = (True, False, True), seed: int = 0) -> Prompts:
    """Three rows of unlike lengths: text after an image, text alone, text around an image."""
    tokens, size = (16, 32) if model.config.model_type == "llava" else (4, 64)
    image, draw = model.config.image_token_id, torch.Generator().manual_seed(seed)
    rows, pixels = [], []
    for row, shown in enumerate(images):
        words = torch.randint(5, 50, (5 + 3 * row,), generator=draw).tolist()
        before = words[: 1 + row]
        rows.append([1, *before, *([image] * tokens if shown else []), *words[1 + row :]])
        pixels.append(torch.randn(3, size, size, generator=draw) if shown else None)
    return Prompts(rows, pixels, image)


def vectors(*layers: int, seed: int = 0, rows: int | None = None, size: float = 2.0) -> dict[int, Tensor]:
    """{layer: (D), or (rows, D)}, about as long as `size` times a state's coordinates."""
    draw = torch.Generator().manual_seed(seed)
    shape = (WIDTH,) if rows is None else (rows, WIDTH)
    return {layer: size * torch.randn(shape, generator=draw) for layer in layers}


def generate(model, inputs: dict[str, Tensor], new: int = NEW, **settings) -> tuple[Tensor, Tensor]:
    """New tokens (R, new) and the raw logits (R, new, V) they were chosen from; greedy unless told otherwise."""
    output = model.generate(
        **inputs, **{"do_sample": False, **settings}, max_new_tokens=new, min_new_tokens=new,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    return output.sequences[:, -new:], torch.stack(output.logits, dim=1)


def hook_count(model) -> int:
    """Forward hooks and pre-hooks on all modules."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
