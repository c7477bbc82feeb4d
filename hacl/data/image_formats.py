"""What the stock processor of a family writes for an image in a text, and which tensors it makes of the image.

Both come from one call of the processor, never from computing its expansion anew. The tokens of an image depend on
its (width, height) alone, so those of one that is not open are found on a blank image of that size; where a family
writes one number whatever the shape, no image needs to be opened to know the length of a sequence.

Shapes: I images, F image tokens of all images of a batch, in order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from hacl.data.image_tokens import KeptTokens
from hacl.data.labels import Spans
from hacl.data.literal import OPEN

Pixels = dict[str, Tensor]
BLANK = (32, 32)  # (width, height) of the image that stands in a batch without one
IDS = "input_ids"
PROBES = ((64, 48), (48, 96))  # shapes for which a family with one number of tokens must write the same


@dataclass(frozen=True)
class ImageFormat:
    """The image side of a processor's class.

    names: tensors of an image that the model is called with, each with a first dimension that several images are
    concatenated along; mark: what a text holds for an image, None for the processor's image token; token: the token
    whose embedding gives way to image features, None for the processor's image token; by_shape: whether the number of
    tokens depends on the image's shape; pads: whether tensors of several images are padded with zeros to one shape;
    before_bos: whether an image stands before the beginning of the text's tokens; reads_prompt: whether its features
    depend on what the text asks; token_types: inputs with one value
    per token that the stock forward pass needs: in an image what the processor gives, elsewhere 0 up to the answer and
    then `answer_type`; islands: which tokens see each other in both directions: those of type 1 of one image ("image")
    or of all images of a sequence ("images"), or all before the answer ("prompt"); "" for none; around: text that the
    processor writes before and after an image, which tokenizers may join with the text there.
    """

    names: tuple[str, ...] = ("pixel_values",)
    mark: str | None = None
    token: str | None = None
    by_shape: bool = False
    pads: bool = False
    before_bos: bool = False
    reads_prompt: bool = False
    token_types: tuple[str, ...] = ()
    answer_type: int = 0
    islands: str = ""
    around: tuple[str, str] = ("", "")

    def bos(self, processor: Any) -> list[int]:
        """What texts begin with."""
        number = processor.tokenizer.bos_token_id
        return [] if number is None else [number]

    def mark_ids(self, processor: Any) -> list[int]:
        """Tokens of the mark of an image, which a chat template writes and `written` replaces."""
        return processor.tokenizer(self.mark_text(processor), add_special_tokens=False)["input_ids"]

    def token_id(self, processor: Any) -> int:
        """The token that carries image features."""
        if self.token is None:
            return processor.image_token_id
        return processor.tokenizer.convert_tokens_to_ids(self.token)

    def read(self, processor: Any, image: Image.Image, count: int = 1) -> Any:
        """What the processor makes of a text that is an image's mark: its tokens and its tensors come from one call,
        because a processor calls its image processor with settings of its own. count: of the images in the text."""
        text = [self.mark_text(processor)]
        return processor(images=[[image]], text=text, add_special_tokens=False, return_tensors="pt")

    def written(self, processor: Any, made: Any, count: int = 1) -> list[int]:
        """What the processor writes in place of the mark of an image: markers, tokens of rows and columns, line ends
        and all. made: what `read` gives."""
        return self._of_image(processor, made["input_ids"][0].tolist())

    def written_types(self, processor: Any, made: Any) -> dict[str, list[int]]:
        """`token_types` of the tokens that `written` gives."""
        return {name: self._of_image(processor, made[name][0].tolist()) for name in self.token_types}

    def _of_image(self, processor: Any, values: Sequence[int]) -> list[int]:
        """Of one value for each token of a text that is an image's mark, those of what is written for the image."""
        return list(values)

    def written_behind_another(self, written: list[int]) -> list[int]:
        """What of it the processor writes where nothing stands between an image and the one before it."""
        return written

    def tensors(self, processor: Any, made: Any, count: int = 1, prompt: str | None = None) -> Pixels:
        """The tensors `names` of one image. made: what `read` gives; prompt: what the text asks, which only families
        whose features depend on it need."""
        return {name: made[name] for name in self.names}

    def collate(self, images: Sequence[Pixels]) -> Pixels:
        """The tensors of several images in order, as the model takes them in one call."""
        return {name: self._concatenated([image[name] for image in images]) for name in self.names}

    def _concatenated(self, tensors: list[Tensor]) -> Tensor:
        shapes = {tuple(tensor.shape[1:]) for tensor in tensors}
        if len(shapes) == 1:
            return torch.cat(tensors)
        if not self.pads:
            raise ValueError(f"images of one batch have different shapes after processing: {sorted(shapes)}")
        largest = [max(sizes) for sizes in zip(*shapes, strict=True)]
        return torch.cat([_padded(tensor, largest) for tensor in tensors])

    def mark_text(self, processor: Any) -> str:
        """What a chat template writes for an image."""
        return processor.image_token if self.mark is None else self.mark


def _padded(tensor: Tensor, largest: Sequence[int]) -> Tensor:
    """Zeros behind every dimension but the first, up to the sizes given."""
    widths = [wanted - size for wanted, size in zip(largest, tensor.shape[1:], strict=True)]
    return F.pad(tensor, [end for width in reversed(widths) for end in (0, width)])


class OneVisionFormat(ImageFormat):
    """Tiles for an image that is alone in its text, and else the whole image only.

    `batch_num_images` of an image is how many its text has. Those of several texts have one entry for each text, as
    `get_image_features` reads them, so all images of a text must follow each other.
    """

    def read(self, processor: Any, image: Image.Image, count: int = 1) -> Any:
        copies = min(count, 2)
        text = self.mark_text(processor) * copies
        return processor(images=[[image] * copies], text=[text], add_special_tokens=False, return_tensors="pt")

    def written(self, processor: Any, made: Any, count: int = 1) -> list[int]:
        ids = super().written(processor, made)
        return ids[: len(ids) // min(count, 2)]

    def tensors(self, processor: Any, made: Any, count: int = 1, prompt: str | None = None) -> Pixels:
        own = {name: made[name][:1] for name in self.names}
        return {**own, "batch_num_images": torch.tensor([count])}

    def collate(self, images: Sequence[Pixels]) -> Pixels:
        found = super().collate(images)
        counts, place = found["batch_num_images"].tolist(), 0
        texts = []
        while place < len(counts):
            texts.append(counts[place])
            place += counts[place]
        return {**found, "batch_num_images": torch.tensor(texts)}


class InstructBlipFormat(ImageFormat):
    """The Q-Former reads the prompt beside the image, so the tensors of an image hold the prompt's tokens as well."""

    def tensors(self, processor: Any, made: Any, count: int = 1, prompt: str | None = None) -> Pixels:
        if prompt is None:
            raise ValueError("features of an InstructBLIP image depend on the prompt; give it (ImageText.tensors)")
        text = processor.qformer_tokenizer([prompt])
        read = {f"qformer_{name}": torch.tensor(text[name]) for name in ("input_ids", "attention_mask")}
        return {name: read[name].long() if name in read else made[name] for name in self.names}


class Idefics2Format(ImageFormat):
    """One marker stands between two images that follow each other: the one that closes the first opens the second."""

    def written_behind_another(self, written: list[int]) -> list[int]:
        return written[1:]


class Gemma3Format(ImageFormat):
    """Image tokens between two markers; the blank lines around them are text."""

    def _of_image(self, processor: Any, values: Sequence[int]) -> list[int]:
        first = len(processor.tokenizer(self.around[0], add_special_tokens=False)["input_ids"])
        return super()._of_image(processor, values[first : first + processor.image_seq_length + 2])

    def tensors(self, processor: Any, made: Any, count: int = 1, prompt: str | None = None) -> Pixels:
        found = super().tensors(processor, made)
        if len(found["pixel_values"]) != 1:
            raise ValueError(
                f"the processor cuts an image into {len(found['pixel_values'])} crops (pan and scan), which is not "
                "supported; set do_pan_and_scan to false in the checkpoint's processor_config.json"
            )
        return found


class PaliGemmaFormat(ImageFormat):
    """Image tokens, then the beginning of the text's tokens, the prompt and a line break."""

    def _of_image(self, processor: Any, values: Sequence[int]) -> list[int]:
        return super()._of_image(processor, values[: processor.image_seq_length])


class Molmo2Format(ImageFormat):
    """Tokens pool patches of all crops of a call, which they name by number. The processor writes the end token in
    front of a text where there is no token for its beginning."""

    def bos(self, processor: Any) -> list[int]:
        return super().bos(processor) or [processor.tokenizer.eos_token_id]

    def _of_image(self, processor: Any, values: Sequence[int]) -> list[int]:
        return super()._of_image(processor, values[1:])

    def collate(self, images: Sequence[Pixels]) -> Pixels:
        found, first, pooled = super().collate(images), 0, []
        for image in images:
            indices = image["image_token_pooling"]
            pooled.append(torch.where(indices >= 0, indices + first, indices))
            first += image["pixel_values"].shape[:2].numel()
        return {**found, "image_token_pooling": torch.cat(pooled)}


TILES = ImageFormat(names=("pixel_values", "pixel_attention_mask"), by_shape=True, pads=True)
QWEN = ImageFormat(
    names=("pixel_values", "image_grid_thw"),
    mark="<|vision_start|><|image_pad|><|vision_end|>",
    by_shape=True,
    token_types=("mm_token_type_ids",),
)
FORMATS: dict[str, ImageFormat] = {
    "LlavaProcessor": ImageFormat(),
    "LlavaNextProcessor": ImageFormat(names=("pixel_values", "image_sizes"), by_shape=True, pads=True),
    "LlavaOnevisionProcessor": OneVisionFormat(
        names=("pixel_values", "image_sizes", "batch_num_images"), by_shape=True, pads=True
    ),
    "Idefics2Processor": Idefics2Format(names=("pixel_values", "pixel_attention_mask"), pads=True),
    "Idefics3Processor": TILES,
    "SmolVLMProcessor": TILES,
    "Qwen2VLProcessor": QWEN,
    "Qwen2_5_VLProcessor": QWEN,
    "Qwen3VLProcessor": QWEN,
    "InternVLProcessor": ImageFormat(by_shape=True),
    "DeepseekVLProcessor": ImageFormat(),
    "Gemma3Processor": Gemma3Format(
        token="<image_soft_token>", token_types=("token_type_ids",), islands="image", around=("\n\n", "\n\n")
    ),
    "PaliGemmaProcessor": PaliGemmaFormat(
        before_bos=True, token_types=("token_type_ids",), answer_type=1, islands="prompt"
    ),
    "Molmo2Processor": Molmo2Format(
        names=("pixel_values", "image_token_pooling", "image_grids"),
        mark="<|image|>",
        token="<im_patch>",
        by_shape=True,
        token_types=("mm_token_type_ids",),
        islands="images",
    ),
    "Blip2Processor": ImageFormat(mark="", token="<image>", before_bos=True),
    "InstructBlipProcessor": InstructBlipFormat(
        names=("pixel_values", "qformer_input_ids", "qformer_attention_mask"),
        mark="",
        token="<image>",
        pads=True,
        before_bos=True,
        reads_prompt=True,
    ),
    "DeepseekVLHybridProcessor": ImageFormat(names=("pixel_values", "high_res_pixel_values")),
}


def find_format(processor: Any) -> ImageFormat:
    """The format of a processor's class, or of a class it derives from. Raises ValueError naming the known classes."""
    for cls in type(processor).__mro__:
        if cls.__name__ in FORMATS:
            return FORMATS[cls.__name__]
    known = ", ".join(sorted(FORMATS))
    why = f"what {type(processor).__name__} writes for an image is not known; known are {known}"
    raise ValueError(f"{why}. docs/adding_a_family.md says how to add one")


def has_format(processor: Any) -> bool:
    """Whether the format of a processor's class is known."""
    return any(cls.__name__ in FORMATS for cls in type(processor).__mro__)


class ImageText:
    """The image format of one processor, with the tokens of each size of image found once.

    Raises ValueError where the processor's class is unknown, or a family of one number of tokens writes several.
    """

    def __init__(self, processor: Any):
        self.processor = processor
        self.format = find_format(processor)
        self.token_id = self.format.token_id(processor)
        self.mark_ids = self.format.mark_ids(processor)
        self._kept = KeptTokens()
        self.fixed: list[int] | None = None
        if not self.format.by_shape:
            written = [self._tokens(size) for size in PROBES]
            counts = {ids.count(self.token_id) for ids in written}
            if len(counts) != 1:
                raise ValueError(
                    f"the processor writes {sorted(counts)} image tokens for different shapes; expected one number"
                )
            self.fixed = written[0]

        self._island_ids: set[int] = set()
        if self.format.islands in ("image", "images"):
            types = self._tokens(PROBES[0], name=self.format.token_types[0])
            ids = self._tokens(PROBES[0])
            self._island_ids = {token for token, kind in zip(ids, types, strict=True) if kind == 1}

    @property
    def num_tokens(self) -> int | None:
        """Image tokens of every image, None where they depend on its shape."""
        return None if self.fixed is None else self.fixed.count(self.token_id)

    def ids(self, size: tuple[int, int] | None = None, count: int = 1) -> list[int]:
        """Tokens written for an image of this (width, height), which only families by shape need: ValueError where
        they do and it is not given. count: of the images in its text."""
        if self.fixed is not None:
            return self.fixed
        if size is None:
            name = type(self.processor).__name__
            why = f"{name} writes as many tokens for an image as its shape asks for"
            raise ValueError(f"{why}; give its tokens (SequenceEncoder.images.ids(image.size))")
        return self._tokens(size, count)

    def spaced(self, rendered: str, answers: Spans) -> tuple[str, Spans]:
        """A rendering with the text that the processor writes around images, and where its answers then stand."""
        before, after = self.format.around
        if not before + after:
            return rendered, answers
        mark = self.format.mark_text(self.processor)
        marks = [found.span() for found in re.finditer(f"(?<!{OPEN}){re.escape(mark)}", rendered)]

        def moved(place: int) -> int:
            return place + sum(len(before + after) for _, end in marks if end <= place)

        pieces, done = [], 0
        for start, end in marks:
            pieces += [rendered[done:start], before, mark, after]
            done = end
        spaced = "".join([*pieces, rendered[done:]])
        return spaced, [(moved(start), moved(end)) for start, end in answers]

    def islands(self, ids: Sequence[int], prompt: int) -> list[int]:
        """For each token of a sequence a number that it shares with those it sees in both directions, -1 for no other.

        prompt: tokens before the answer. Empty where attention is causal everywhere.
        """
        if self.format.islands == "prompt":
            return [0] * prompt + [-1] * (len(ids) - prompt)
        if not self._island_ids:
            return []
        found: list[int] = []
        number = 0 if self.format.islands == "images" else -1
        for token in ids:
            if self.format.islands == "image" and token in self._island_ids and (not found or found[-1] < 0):
                number += 1
            found.append(number if token in self._island_ids else -1)
        return found

    def token_types(
        self, length: int, spans: Sequence[tuple[int, int]], sizes: Sequence[tuple[int, int]], prompt: int
    ) -> dict[str, list[int]]:
        """Inputs of one value per token of a sequence of `length` tokens, whose answer begins at `prompt`.

        spans: [start, end) of what is written for each image; sizes: (width, height) of each, which only families by
        shape need.
        """
        found = {name: [0] * prompt + [self.format.answer_type] * (length - prompt) for name in self.format.token_types}
        for number, (start, end) in enumerate(spans):
            size = sizes[number] if self.fixed is None else PROBES[0]
            for name in self.format.token_types:
                found[name][start:end] = self._tokens(size, name=name)
        return found

    def _tokens(self, size: tuple[int, int], count: int = 1, name: str = IDS) -> list[int]:
        """Of an image of this (width, height) in a text of `count`: what is written for it, or another input of it."""
        if (size, count) not in self._kept:
            self._keep(self.format.read(self.processor, Image.new("RGB", size), count), size, count)
        return self._kept.get((size, count), name)

    def _keep(self, made: Any, size: tuple[int, int], count: int) -> None:
        ids = self.format.written(self.processor, made, count)
        self._kept.put((size, count), {IDS: ids, **self.format.written_types(self.processor, made)})

    def tensors(self, image: Image.Image, count: int = 1, prompt: str | None = None) -> Pixels:
        """What the model is called with for one image of a text with `count` images that asks `prompt`.

        The tokens of its size are kept from the same call, so who needs both asks for tensors first. Raises ValueError
        without a prompt where features depend on it.
        """
        made = self.format.read(self.processor, image, count)
        if self.fixed is None and (image.size, count) not in self._kept:
            self._keep(made, image.size, count)
        return self.format.tensors(self.processor, made, count, prompt)

    def blank(self) -> Pixels:
        """The tensors of the image that stands in a batch without one. Any text will do, so long as there is one: the
        same parameters must be reached as by an image."""
        return self.tensors(Image.new("RGB", BLANK), prompt="describe")
