"""What evaluation needs around a stock model: images, an encoder, modules in eval mode, rows of embeddings.

Shapes: I images, N image tokens, R rows (right-padded), T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from hacl.data.images import load_image, resolve_image
from hacl.data.records import Record
from hacl.data.templates import EncodedSequence, SequenceEncoder
from hacl.models.adapters import Adapter, find_adapter
from hacl.models.modes import evaluating

__all__ = [
    "ImageEmbeddings", "ImageLike", "decode_rows", "evaluating", "image_paths", "make_encoder", "open_image",
    "pixels_of",
]  # fmt: skip

ImageLike = Path | str | Image.Image


def make_encoder(processor, template: str = "plain", prompt: str = "") -> SequenceEncoder:
    """The encoder that training uses, with room for whole texts: nothing is cut in evaluation."""
    return SequenceEncoder(processor, template=template, prompt=prompt, max_length=1 << 20, max_caption_length=1 << 20)


def image_paths(records: Sequence[Record], image_root: Path | str) -> list[Path]:
    """The file of each record's one image.

    Raises:
        ValueError: a record has no image or several, or its path leaves the root.
        FileNotFoundError: the file is not there.
    """
    for record in records:
        if len(record.images) != 1:
            raise ValueError(f"record {record.id!r} has {len(record.images)} images; evaluation needs exactly one")
    return [resolve_image(Path(image_root), record.images[0]) for record in records]


def open_image(image: ImageLike) -> Image.Image:
    """An image as it is, or read from its path."""
    return image if isinstance(image, Image.Image) else load_image(Path(image))


def pixels_of(processor, images: Sequence[ImageLike], device: torch.device) -> Tensor:
    """(I, 3, H, W) of the processor's image part."""
    opened = [open_image(image) for image in images]
    return processor.image_processor(opened, return_tensors="pt")["pixel_values"].to(device)


class ImageEmbeddings:
    """Projected image tokens, each path computed once and kept while there is room.

    keep: number of images held; rows of one image are best asked for together, as they then cost one tower pass.
    """

    def __init__(self, model: nn.Module, processor, device: torch.device, keep: int = 512):
        self.adapter = find_adapter(model)
        self.processor = processor
        self.device = device
        self.keep = keep
        self.held: dict[str, Tensor] = {}
        self.opened: dict[str, ImageLike] = {}  # keeps images alive, so that no other image gets the id of one

    def __call__(self, images: Sequence[ImageLike]) -> list[Tensor]:
        """(N, D) for each image, in order."""
        keys = [f"{id(image)}" if isinstance(image, Image.Image) else str(image) for image in images]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in self.held}
        if new:
            features = self.adapter.vision_features(pixels_of(self.processor, list(new.values()), self.device))
            fresh = dict(zip(new, self.adapter.project(features), strict=True))
            found = {key: self.held[key] for key in keys if key in self.held} | fresh
            for key in [key for key in self.held if key not in found]:
                if len(self.held) + len(fresh) <= self.keep:
                    break
                del self.held[key], self.opened[key]
            self.held.update(fresh)
            self.opened.update(new)
            return [found[key] for key in keys]
        return [self.held[key] for key in keys]


def decode_rows(
    adapter: Adapter, sequences: Sequence[EncodedSequence], images: Sequence[Tensor | None], layer: int | None = None
) -> tuple[Tensor, Tensor]:
    """One decoder call over right-padded rows, one row per sequence; padding is never attended to (causal decoder).

    images: (N, D) embeddings of the row's image, None for a row without.
    Returns final states and read states, both (R, T, D), as `Adapter.decode` does.
    """
    device = adapter.embed_tokens.weight.device
    longest = max(len(sequence) for sequence in sequences)
    ids_RT = torch.zeros(len(sequences), longest, dtype=torch.long, device=device)
    for row, sequence in enumerate(sequences):
        ids_RT[row, : len(sequence)] = torch.tensor(sequence.ids, device=device)
    embeds_RTD = adapter.embed(ids_RT).clone()
    for row, (sequence, image_ND) in enumerate(zip(sequences, images, strict=True)):
        for start, end in sequence.image_spans:
            embeds_RTD[row, start:end] = image_ND.to(embeds_RTD.dtype)
    positions_RT = torch.arange(longest, device=device).expand(len(sequences), -1)
    return adapter.decode(embeds_RTD, None, positions_RT, layer)
