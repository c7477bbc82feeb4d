"""Batched generation with a stock model: captions, and answers to yes/no questions.

Shapes: R rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hacl.data import model_inputs
from hacl.data.image_formats import BLANK, Pixels
from hacl.data.images import image_size
from hacl.data.model_inputs import InputRow, left_padded
from hacl.data.templates import SequenceEncoder
from hacl.evaluation.inputs import ImageLike, evaluating, make_encoder, open_image
from hacl.evaluation.runner.decoding import Decoding


@dataclass(frozen=True)
class Reply:
    """text: decoded, without special tokens and outer blanks; ids: new tokens up to EOS; stopped: it ended by EOS."""

    text: str
    ids: tuple[int, ...]
    stopped: bool


class Generator:
    """Replies of one model under one template and one set of decoding settings.

    A row's reply does not depend on the rows beside it: rows are left-padded, and the noise of a sampled reply comes
    from the seed and the row's own name, not from the state of a generator that the batch shares.
    """

    def __init__(self, model: nn.Module, processor, *, template: str = "plain", decoding: Decoding | None = None):
        self.model = model
        self.processor = processor
        self.decoding = decoding or Decoding()
        self.encoder = make_encoder(processor, template)
        tokenizer = processor.tokenizer
        own = model.generation_config.eos_token_id
        self.eos = sorted({tokenizer.eos_token_id, *([own] if isinstance(own, int) else own or ())})
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._prompts: dict[tuple[str, bool], InputRow] = {}

    def prompt_ids(self, prompt: str, image: ImageLike | None) -> list[int]:
        """Token ids up to where the reply begins. Of the image at most the size is read."""
        return list(self._prompt(prompt, image).ids)

    def _prompt(self, prompt: str, image: ImageLike | None) -> InputRow:
        """A prompt that comes again is not rendered again, unless its tokens depend on the image."""
        if image is not None and self.encoder.images.fixed is None:
            size = image.size if isinstance(image, Image.Image) else image_size(image)
            return prompt_row(self.encoder, prompt, size)
        key = prompt, image is not None
        if key not in self._prompts:
            self._prompts[key] = prompt_row(self.encoder, prompt, None if image is None else BLANK)
        return self._prompts[key]

    def inputs(
        self,
        images: Sequence[ImageLike | None],
        prompts: Sequence[str],
        device: torch.device,
        change: Callable[[Pixels], Pixels] | None = None,
    ) -> dict:
        """Left-padded input ids and mask, both (R, T), and what the processor makes of the rows' images.

        change: what becomes of the tensors of each image before those of several are joined.
        """
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} images but {len(prompts)} prompts")
        shown = {_name(image): image for image in images if image is not None}  # one read for all rows of an image
        opened = {name: open_image(image) for name, image in shown.items()}
        tensors, rows = {}, []
        for image, prompt in zip(images, prompts, strict=True):
            if image is None:
                rows.append(self._prompt(prompt, None))
                continue
            key = _name(image), prompt if self.encoder.images.format.reads_prompt else None
            if key not in tensors:
                made = self.encoder.images.tensors(opened[key[0]], prompt=prompt)
                tensors[key] = made if change is None else change(made)
            rows.append(replace(self._prompt(prompt, opened[key[0]]), image=tensors[key]))
        inputs = left_padded(rows, self.pad, self.encoder.images)
        numbers = self.model.dtype
        return {name: x.to(device, numbers if x.is_floating_point() else x.dtype) for name, x in inputs.items()}

    def replies(
        self,
        images: Sequence[ImageLike | None],
        prompts: Sequence[str],
        *,
        names: Sequence[str] | None = None,
        max_new_tokens: int | None = None,
    ) -> list[Reply]:
        """One batch: the continuation of each (image, prompt), in order; None as an image asks without one.

        names: what a sampled row's noise is drawn from beside the seed (default: its prompt and place in the batch).
        max_new_tokens: instead of the setting. Raises ValueError when lengths differ.
        """
        settings = self.decoding if max_new_tokens is None else replace(self.decoding, max_new_tokens=max_new_tokens)
        if settings.vcd is not None and any(image is None for image in images):
            raise ValueError("visual contrastive decoding noises the image, and a question comes without one")
        with evaluating(self.model) as device:
            inputs = self.inputs(images, prompts, device)
            rows = names or [f"{row}/{prompt}" for row, prompt in enumerate(prompts)]
            extra = {"logits_processor": self._processors(settings, rows, images, prompts, device)}
            if settings.min_new_tokens:
                extra["min_new_tokens"] = settings.min_new_tokens
            output = self.model.generate(
                **inputs,
                do_sample=False,  # sampling is the argmax of perturbed logits, see RowNoise
                num_beams=settings.num_beams,
                max_new_tokens=settings.max_new_tokens,
                repetition_penalty=settings.repetition_penalty if settings.vcd is None else 1.0,
                use_cache=True,
                pad_token_id=self.pad,
                eos_token_id=self.eos,
                **extra,
            )
        return [self._reply(ids) for ids in output[:, inputs["input_ids"].shape[1] :].tolist()]

    def _processors(self, settings: Decoding, rows: Sequence[str], images, prompts, device) -> LogitsProcessorList:
        """What changes the logits of each step, in order: the contrast comes before penalties and sampling."""
        found = LogitsProcessorList()
        if settings.vcd is not None:
            from hacl.evaluation.visual_contrastive import VisualContrastProcessor, distorted

            noise = functools.partial(distorted, step=settings.vcd.noise, seed=settings.seed)
            noised = self.inputs(images, prompts, device, noise)
            found.append(VisualContrastProcessor(self.model, settings.vcd, noised))
            if settings.repetition_penalty != 1:
                found.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
        if settings.temperature:
            found += _samplers(settings, rows)
        return found

    def _reply(self, ids: list[int]) -> Reply:
        end = next((t for t, token in enumerate(ids) if token in self.eos), None)
        kept = ids if end is None else ids[: end + 1]
        said = kept if end is None else ids[:end]  # what ends a reply may be a word of the vocabulary, and is not said
        text = self.processor.tokenizer.decode(said, skip_special_tokens=True).strip()
        return Reply(text, tuple(kept), end is not None)


def _name(image: ImageLike) -> str | int:
    return str(image) if isinstance(image, str | Path) else id(image)


class RowNoise:
    """Adds Gumbel noise to logits, so that the argmax is a sample of the softmax (the Gumbel-max trick).

    Every row has its own generator, seeded by the seed and its name: a reply is the same in any batch, on any rank and
    after a resume. A logits processor of stock `generate`.
    """

    def __init__(self, seed: int, names: Sequence[str]):
        self.generators = []
        for name in names:
            digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
            self.generators.append(torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1))

    def __call__(self, input_ids: Tensor, scores_RV: Tensor) -> Tensor:
        width = scores_RV.shape[-1]
        noise_RV = torch.stack([torch.rand(width, generator=g, dtype=torch.float64) for g in self.generators])
        gumbel_RV = -torch.log(-torch.log(noise_RV.clamp_min(1e-300)))
        return scores_RV + gumbel_RV.to(scores_RV)


def _samplers(settings: Decoding, names: Sequence[str]) -> list:
    found = [TemperatureLogitsWarper(settings.temperature)]
    if settings.top_k:
        found.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        found.append(TopPLogitsWarper(settings.top_p))
    found.append(RowNoise(settings.seed, names))
    return found


def generate_captions(
    model: nn.Module,
    processor,
    images: Sequence[ImageLike],
    *,
    prompt: str = "",
    template: str = "plain",
    batch_size: int = 16,
    max_new_tokens: int = 64,
    progress: bool = True,
) -> list[str]:
    """Greedy captions of images (paths or PIL images), in order.

    prompt, template: as in training ("plain": BOS, image, prompt; "chat": the processor's chat template).
    """
    prompts = [prompt] * len(images)
    return generate_texts(
        model,
        processor,
        images,
        prompts,
        template=template,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        progress="captions" if progress else "",
    )


def answer_questions(
    model: nn.Module,
    processor,
    images: Sequence[ImageLike | None],
    questions: Sequence[str],
    *,
    template: str = "plain",
    batch_size: int = 16,
    max_new_tokens: int = 8,
    by: str = "text",
    choices: tuple[str, str] = ("yes", "no"),
    progress: bool = True,
) -> list[str]:
    """Replies to one question per image, in order; None as an image asks without one (a blind baseline).

    by: "text" returns the greedy reply as written; "likelihood" returns whichever of ``choices`` the model finds
    likelier as the whole reply, so that every question has a parsed answer. ``choices`` must be spelt as in training.

    Raises:
        ValueError: ``by`` is neither, or lengths differ.
    """
    if by == "likelihood":
        from hacl.evaluation.likelihood import choose

        return choose(
            model, processor, images, questions, choices, template=template, batch_size=batch_size, progress=progress
        )
    if by != "text":
        raise ValueError(f"by={by!r}: answers are read from 'text' or by 'likelihood'")
    return generate_texts(
        model,
        processor,
        images,
        questions,
        template=template,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        progress="answers" if progress else "",
    )


def generate_texts(
    model: nn.Module,
    processor,
    images: Sequence[ImageLike | None],
    prompts: Sequence[str],
    *,
    template: str = "plain",
    batch_size: int = 16,
    max_new_tokens: int = 64,
    progress: str = "",
) -> list[str]:
    """Greedy continuation of each (image, prompt), left-padded so that batching does not change the text.

    progress: label of the progress bar; empty for none. Raises ValueError when lengths differ.
    """
    if len(images) != len(prompts):
        raise ValueError(f"{len(images)} images but {len(prompts)} prompts")
    generator = Generator(model, processor, template=template, decoding=Decoding(max_new_tokens=max_new_tokens))
    lengths = [len(generator.prompt_ids(text, image)) for image, text in zip(images, prompts, strict=True)]
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    texts = [""] * len(lengths)
    with tqdm(total=len(order), desc=progress, disable=not progress, leave=False) as bar:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            replies = generator.replies([images[i] for i in rows], [prompts[i] for i in rows])
            for i, reply in zip(rows, replies, strict=True):
                texts[i] = reply.text
            bar.update(len(rows))
    return texts


def prompt_row(encoder: SequenceEncoder, prompt: str, size: tuple[int, int] | None) -> InputRow:
    """Tokens of a prompt up to where the reply begins, as `hacl.data.model_inputs.prompt_row` says."""
    return model_inputs.prompt_row(with_prompt(encoder, prompt), size)


def with_prompt(encoder: SequenceEncoder, prompt: str) -> SequenceEncoder:
    """The same encoder asking something else."""
    other = copy.copy(encoder)
    other.prompt = prompt
    return other
