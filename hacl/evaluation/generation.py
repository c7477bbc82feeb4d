"""Batched greedy generation with a stock model: captions, and answers to yes/no questions."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from tqdm import tqdm

from hacl.data.templates import SequenceEncoder
from hacl.evaluation.inputs import ImageLike, evaluating, make_encoder, pixels_of


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
    encoder = make_encoder(processor, template)
    sequences = [prompt_ids(encoder, text, image is not None) for image, text in zip(images, prompts, strict=True)]
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    tokenizer = processor.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    texts = [""] * len(sequences)
    with evaluating(model) as device, tqdm(total=len(order), desc=progress, disable=not progress, leave=False) as bar:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            longest = max(len(sequences[i]) for i in rows)
            padded = [[pad] * (longest - len(sequences[i])) + sequences[i] for i in rows]
            mask = [[0] * (longest - len(sequences[i])) + [1] * len(sequences[i]) for i in rows]
            shown = [images[i] for i in rows if images[i] is not None]
            extra = {"pixel_values": pixels_of(processor, shown, device).to(model.dtype)} if shown else {}
            output = model.generate(
                input_ids=torch.tensor(padded, device=device),
                attention_mask=torch.tensor(mask, device=device),
                do_sample=False,
                num_beams=1,
                max_new_tokens=max_new_tokens,
                pad_token_id=pad,
                eos_token_id=tokenizer.eos_token_id,
                **extra,
            )
            for i, ids in zip(rows, output[:, longest:], strict=True):
                texts[i] = tokenizer.decode(ids, skip_special_tokens=True).strip()
            bar.update(len(rows))
    return texts


def prompt_ids(encoder: SequenceEncoder, prompt: str, with_image: bool) -> list[int]:
    """Token ids up to where the reply begins: what precedes the first label of a training sequence, to the token."""
    sequence = with_prompt(encoder, prompt).caption_sequence("yes", with_image=with_image)
    return sequence.ids[: sequence.is_label.index(True)]


def with_prompt(encoder: SequenceEncoder, prompt: str) -> SequenceEncoder:
    """The same encoder asking something else."""
    other = copy.copy(encoder)
    other.prompt = prompt
    return other
