"""From a sample to the token ids and pixels that a model reads, and from several to one left-padded batch.

Processors of known families go through the training's own encoder, so a capture reads what training wrote, to the
token. Others expand images themselves, and a tokenizer alone serves text-only models.

Shapes: R rows, T tokens.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from hacl.data.image_formats import has_format
from hacl.data.images import image_size, load_image
from hacl.data.model_inputs import InputRow, left_padded
from hacl.data.templates import SequenceEncoder
from hacl.representations.samples import Sample
from hacl.representations.selectors import Layout

ROOM = 1 << 20  # nothing is cut
PER_TOKEN = ("mm_token_type_ids", "token_type_ids")


@dataclass
class EncodedRow:
    """One sequence. prompt: tokens of the prompt; end: where the answer ends, EOS not counted; image: places of image
    tokens; inputs: what the processor made of the image; per_token: the types of an `InputRow`.
    """

    ids: list[int]
    prompt: int
    end: int
    image: list[int]
    inputs: dict[str, Tensor] = field(default_factory=dict)
    per_token: dict[str, list[int]] = field(default_factory=dict)

    def layout(self, states: int | None = None) -> Layout:
        return Layout(self.ids, self.prompt, self.end, self.image, len(self.ids) if states is None else states)


class RowEncoder:
    """Encodes samples for one model family.

    processor: a processor, or a tokenizer for text-only models; template: "plain" (image, prompt and a line break, then
    the answer) or "chat" (the processor's chat template).
    """

    def __init__(self, processor, *, template: str = "plain"):
        if template not in ("plain", "chat"):
            raise ValueError(f"template={template!r}: expected 'plain' or 'chat'")
        self.processor, self.template = processor, template
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.has_images = hasattr(processor, "image_processor")
        if self.tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no EOS token, which ends every answer here")
        if template == "chat" and not getattr(processor, "chat_template", None):
            raise ValueError("template='chat', but the processor has no chat template; use 'plain'")
        pad = self.tokenizer.pad_token_id
        self.pad = self.tokenizer.eos_token_id if pad is None else pad
        self.sequences = self._training_encoder()

    def _training_encoder(self) -> SequenceEncoder | None:
        if not self.has_images or not has_format(self.processor):
            return None
        return SequenceEncoder(
            self.processor, template=self.template, prompt="", max_length=ROOM, max_caption_length=ROOM
        )

    def row(self, sample: Sample, answer: str | None, *, pixels: bool = True) -> EncodedRow:
        """The prompt, and the answer with its EOS where there is one.

        pixels: load the image (False: ids only, where the processor allows that).

        Raises:
            ValueError: the sample has an image and the model takes none, or the image cannot be read.
        """
        if sample.image is not None and not self.has_images:
            raise ValueError(f"sample {sample.id!r} has an image, but {type(self.processor).__name__} takes text only")
        row = self._with_answer(self._prompt(sample, pixels), answer) if self.sequences is None else None
        return row or self._trained(sample, answer, pixels)

    def _trained(self, sample: Sample, answer: str | None, pixels: bool) -> EncodedRow:
        encoder, images = copy.copy(self.sequences), self.sequences.images
        encoder.prompt = sample.prompt
        size, made = None, {}
        if pixels and sample.image is not None:
            image = load_image(Path(sample.image))
            size, made = image.size, images.tensors(image, prompt=sample.prompt)
        elif sample.image is not None and images.fixed is None:
            size = image_size(Path(sample.image))
        found = encoder.caption_sequence(
            "yes" if answer is None else answer,
            with_image=sample.image is not None,
            image=None if sample.image is None else images.ids(size),
        )
        prompt = found.is_label.index(True) if True in found.is_label else len(found)
        ids = found.ids[:prompt] if answer is None else found.ids
        if not ids:
            raise ValueError(
                f"sample {sample.id!r}: no token in prompt or image, and none begins a text; give a prompt"
            )
        places = [place for span in found.image_spans for place in range(*span) if ids[place] == images.token_id]
        row = EncodedRow(ids, prompt, self._end(ids, prompt), places, made)
        row.per_token = images.token_types(len(ids), found.image_spans, [size], prompt)
        return row

    def _prompt(self, sample: Sample, pixels: bool) -> EncodedRow:
        text = self._rendered(sample)
        if sample.image is None:
            ids = list(self.tokenizer(text, add_special_tokens=self.template == "plain")["input_ids"])
            if self.template == "plain" and ids[-1:] == [self.tokenizer.eos_token_id]:
                ids.pop()
            return EncodedRow(ids, len(ids), len(ids), [])
        made = dict(self.processor(text=[text], images=[load_image(Path(sample.image))], return_tensors="pt"))
        ids = made.pop("input_ids")[0].tolist()
        made.pop("attention_mask", None)
        per_token = {key: [*made.pop(key)[0].tolist(), 0] for key in PER_TOKEN if key in made}  # 0 for an answer
        image_id = self.processor.image_token_id
        image = [position for position, token in enumerate(ids) if token == image_id]
        return EncodedRow(ids, len(ids), len(ids), image, made if pixels else {}, per_token)

    def _rendered(self, sample: Sample) -> str:
        if self.template == "plain":
            mark = self.processor.image_token if sample.image is not None else ""
            return mark + (f"{sample.prompt}\n" if sample.prompt else "")
        content = [{"type": "text", "text": sample.prompt}]
        if sample.image is not None:
            content.insert(0, {"type": "image"})
        messages = [{"role": "user", "content": content if self.has_images else sample.prompt}]
        return self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def _with_answer(self, row: EncodedRow, answer: str | None) -> EncodedRow:
        if answer is not None:
            row.ids += self.tokenizer(answer, add_special_tokens=False)["input_ids"] if answer else []
            row.end = len(row.ids)
            row.ids.append(self.tokenizer.eos_token_id)
        return row

    def _end(self, ids: Sequence[int], prompt: int) -> int:
        end = len(ids)
        while end > prompt and ids[end - 1] == self.tokenizer.eos_token_id:
            end -= 1
        return end

    def batch(self, rows: Sequence[EncodedRow], device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """Left-padded input_ids and attention_mask (R, T), position_ids (R, T) where the model does not make its own
        from the image grid, and the inputs of the rows that have an image.
        """
        made = [InputRow(row.ids, row.inputs, row.per_token) for row in rows]
        found = left_padded(made, self.pad, None if self.sequences is None else self.sequences.images)
        mask_RT = found["attention_mask"]
        if "image_grid_thw" not in found:
            found["position_ids"] = (mask_RT.cumsum(1) - 1).clamp_min(0)
        return {
            key: value.to(device, dtype if value.is_floating_point() else value.dtype) for key, value in found.items()
        }

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def tokenizer_hash(self) -> str:
        """Names vocabulary and merges: two models with one hash read the same ids from the same text."""
        fast = getattr(self.tokenizer, "backend_tokenizer", None)
        described = fast.to_str() if fast is not None else json.dumps(self.tokenizer.get_vocab(), sort_keys=True)
        if fast is not None:  # whether padding or truncation was last used is no property of the tokenizer
            described = json.dumps(json.loads(described) | {"padding": None, "truncation": None}, sort_keys=True)
        return _digest(described)

    def template_hash(self) -> str:
        """Names how a prompt is written."""
        text = getattr(self.processor, "chat_template", None) if self.template == "chat" else "plain"
        return _digest(f"{self.template}\x1f{text}")


def prompt_hash(row: EncodedRow, sample: Sample) -> str:
    """Of the prompt's token ids and the name of the image file."""
    name = "" if sample.image is None else Path(sample.image).name
    return _digest(f"{row.ids[: row.prompt]}\x1f{name}")


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
