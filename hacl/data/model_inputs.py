"""What a stock model is called with: token ids of several sequences, left-padded, and the tensors of their images.

Shapes: R rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from PIL.Image import Image
from torch import Tensor

from hacl.data.image_formats import ImageText, Pixels
from hacl.data.templates import SequenceEncoder


@dataclass
class InputRow:
    """One sequence. image: tensors of its image, empty without one; types: further values of each token, by input.
    Those beyond its end do not count, and a sequence that goes on past them goes on with the last."""

    ids: list[int]
    image: Pixels = field(default_factory=dict)
    types: dict[str, list[int]] = field(default_factory=dict)


def prompt_row(encoder: SequenceEncoder, size: tuple[int, int] | None) -> InputRow:
    """Tokens of the encoder's prompt up to where the reply begins: what precedes the first label of a training
    sequence, to the token.

    size: (width, height) of the image, None without one. Raises ValueError where that is no token at all.
    """
    image = None if size is None else encoder.images.ids(size)
    sequence = encoder.caption_sequence("yes", with_image=size is not None, image=image)
    ids = sequence.ids[: sequence.is_label.index(True) if True in sequence.is_label else len(sequence)]
    if not ids:
        raise ValueError(
            "an empty prompt without an image has no token to reply to, as this tokenizer writes none at the beginning "
            "of a text; give a prompt, an image, or template='chat'"
        )
    return InputRow(ids, types=encoder.images.token_types(len(ids), sequence.image_spans, [size], len(ids)))


def prompt_inputs(encoder: SequenceEncoder, images: Sequence[Image]) -> dict[str, Tensor]:
    """What a stock model generates from: the encoder's prompt after each of the images, left-padded."""
    tensors = [encoder.images.tensors(image, prompt=encoder.prompt) for image in images]
    rows = [replace(prompt_row(encoder, image.size), image=made) for image, made in zip(images, tensors, strict=True)]
    tokenizer = encoder.tokenizer
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return left_padded(rows, pad, encoder.images)


def left_padded(rows: Sequence[InputRow], pad: int, images: ImageText | None = None) -> dict[str, Tensor]:
    """input_ids and attention_mask (R, T), types (R, T), and the images' tensors in the order of the rows.

    pad: the id that fills rows on the left; images: how the family joins tensors of several images (None: along their
    first dimension).
    """
    longest = max(len(row.ids) for row in rows)
    ids_RT = torch.full((len(rows), longest), pad)
    mask_RT = torch.zeros(len(rows), longest, dtype=torch.long)
    found = {"input_ids": ids_RT, "attention_mask": mask_RT}
    found |= {name: torch.zeros_like(ids_RT) for name in sorted({name for row in rows for name in row.types})}
    for number, row in enumerate(rows):
        start = longest - len(row.ids)
        ids_RT[number, start:] = torch.tensor(row.ids)
        mask_RT[number, start:] = 1
        for name, values in row.types.items():
            kept = torch.tensor(values[: len(row.ids)] or [0], dtype=torch.long)
            found[name][number, start : start + len(kept)] = kept
            found[name][number, start + len(kept) :] = kept[-1]
    shown = [row.image for row in rows if row.image]
    if shown and images is not None:
        found |= images.format.collate(shown)
    elif shown:
        found |= {name: torch.cat([image[name] for image in shown]) for name in shown[0]}
    return found
