"""What evaluation needs around a stock model: images, an encoder, modules in eval mode, rows of embeddings.

Shapes: I images, N tokens of an image, F of all images, R rows (right-padded), T tokens, D hidden size, W width of an
image's features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from hacl.data.image_formats import ImageText, Pixels
from hacl.data.images import image_size, load_image, resolve_image
from hacl.data.records import Record
from hacl.data.templates import EncodedSequence, SequenceEncoder
from hacl.models.adapters import Adapter, check_image_count, find_adapter
from hacl.models.modes import evaluating

__all__ = [
    "EmbeddedImage", "ImageEmbeddings", "ImageLike", "decode_rows", "evaluating", "image_paths", "make_encoder",
    "open_image", "pixels_of", "row_batch", "written",
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


def written(encoder: SequenceEncoder, image: ImageLike | None) -> list[int] | None:
    """Tokens written for an image, None without one. Only where they depend on its shape is its header read."""
    if image is None:
        return None
    if encoder.images.fixed is not None:
        return encoder.images.fixed
    return encoder.images.ids(image.size if isinstance(image, Image.Image) else image_size(Path(image)))


@dataclass(frozen=True)
class EmbeddedImage:
    """ids: what is written for an image in a sequence; features_NW: see `Adapter.image_embeddings`; inputs: those of
    its tensors that positions depend on."""

    ids: list[int]
    features_NW: Tensor
    inputs: Pixels


class ImageEmbeddings:
    """Embedded images, each computed once and kept while there is room.

    keep: number of images held; rows of one image are best asked for together, as they then cost one tower pass.
    """

    def __init__(self, model: nn.Module, processor, device: torch.device, keep: int = 512):
        self.adapter = find_adapter(model)
        self.images = ImageText(processor)
        self.device = device
        self.keep = keep
        self.held: dict[str, EmbeddedImage] = {}
        self.opened: dict[str, ImageLike] = {}  # keeps images alive, so that no other image gets the id of one

    def __call__(self, images: Sequence[ImageLike], prompts: Sequence[str] | None = None) -> list[EmbeddedImage]:
        """Each image, in order. prompts: what the text of each asks, where features read it."""
        keys = [f"{id(image)}" if isinstance(image, Image.Image) else str(image) for image in images]
        asked: dict[str, str] = {}
        if prompts is not None and self.images.format.reads_prompt:
            keys = [f"{key}\n{prompt}" for key, prompt in zip(keys, prompts, strict=True)]
            asked = dict(zip(keys, prompts, strict=True))
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in self.held}
        if new:
            made = self._embed([open_image(image) for image in new.values()], [asked.get(key) for key in new])
            fresh = dict(zip(new, made, strict=True))
            found = {key: self.held[key] for key in keys if key in self.held} | fresh
            for key in [key for key in self.held if key not in found]:
                if len(self.held) + len(fresh) <= self.keep:
                    break
                del self.held[key], self.opened[key]
            self.held.update(fresh)
            self.opened.update(new)
            return [found[key] for key in keys]
        return [self.held[key] for key in keys]

    def _embed(self, images: Sequence[Image.Image], prompts: Sequence[str | None]) -> list[EmbeddedImage]:
        tensors = [self.images.tensors(each, prompt=prompt) for each, prompt in zip(images, prompts, strict=True)]
        ids = [self.images.ids(image.size) for image in images]
        inputs = {name: each.to(self.device) for name, each in self.images.format.collate(tensors).items()}
        image_FW = self.adapter.image_embeddings(inputs)
        counts = [each.count(self.images.token_id) for each in ids]
        check_image_count(written=sum(counts), produced=len(image_FW))
        kept = [{name: each[name].to(self.device) for name in self.adapter.position_inputs} for each in tensors]
        return [EmbeddedImage(*parts) for parts in zip(ids, image_FW.split(counts), kept, strict=True)]


def row_batch(
    adapter: Adapter, sequences: Sequence[EncodedSequence], images: Sequence[EmbeddedImage | None]
) -> tuple[dict[str, Tensor], Tensor]:
    """Right-padded rows, one for each sequence, as a batch of `Adapter.decode_batch`, and the features (F, W) of their
    images. images: that of each row, None for a row without."""
    device = adapter.embed_tokens.weight.device
    shape = len(sequences), max(len(sequence) for sequence in sequences)
    ids_RT, source_RT = torch.zeros(shape, dtype=torch.long), torch.full(shape, -1)
    segments_RT, islands_RT = torch.zeros(shape, dtype=torch.long), torch.full(shape, -1)
    counts: list[int] = []
    for row, (sequence, image) in enumerate(zip(sequences, images, strict=True)):
        ids_RT[row, : len(sequence)] = torch.tensor(sequence.ids)
        segments_RT[row, : len(sequence)] = 1
        islands_RT[row, : len(sequence.islands)] = torch.tensor(sequence.islands, dtype=torch.long)
        if image is not None:
            places = ids_RT[row] == adapter.image_token_id
            first, count = sum(counts), len(image.features_NW)
            check_image_count(written=int(places.sum()), produced=count)
            source_RT[row, places] = torch.arange(first, first + count)
            counts.append(count)
    batch = {
        "input_ids": ids_RT,
        "position_ids": torch.arange(shape[1]).expand(shape),
        "segment_ids": segments_RT,
        "image_source": source_RT,
        "islands": islands_RT,
        "image_tokens": torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.long)),
    }
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    shown = [image for image in images if image is not None]
    if not shown:
        return batch, torch.zeros(1, adapter.hidden_size, device=device)
    batch |= {name: torch.cat([image.inputs[name] for image in shown]) for name in adapter.position_inputs}
    return batch, torch.cat([image.features_NW for image in shown])


def decode_rows(
    adapter: Adapter,
    sequences: Sequence[EncodedSequence],
    images: Sequence[EmbeddedImage | None],
    layer: int | None = None,
) -> tuple[Tensor, Tensor]:
    """One decoder call over right-padded rows, one row per sequence; padding is never attended to.

    images: that of each row, None for a row without. Returns final states and read states, both (R, T, D), as
    `Adapter.decode` does.
    """
    return adapter.decode_batch(*row_batch(adapter, sequences, images), layer)
