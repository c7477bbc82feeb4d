"""Proofs on the user's own model: the size of a batch changes no answer, and a look at one prompt and its reply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hacl.evaluation.generation import Generator
from hacl.evaluation.inputs import evaluating
from hacl.evaluation.runner.answerers import GeneratingAnswerer
from hacl.evaluation.runner.ask import batches_of, open_images
from hacl.evaluation.runner.plan import Request


@dataclass(frozen=True)
class Difference:
    """The first reply that a batch changed.

    token: its position in the reply; single, batched: what was written there; margin: how far apart the two tokens'
    logits are at batch size 1 (a small one is rounding, a large one is an error in padding or positions).
    """

    request: Request
    token: int
    single: str
    batched: str
    margin: float
    count: int


def check_batching(generator: Generator, requests: Sequence[Request], batch_size: int) -> Difference | None:
    """None if batches of 1 and of `batch_size` give the same tokens for all requests, else the first difference.

    Raises:
        ValueError: greedy decoding is not set, or a batch size below 2.
    """
    if batch_size < 2:
        raise ValueError(f"--batch-size {batch_size}: compare batch size 1 with at least 2")
    if generator.decoding.num_beams > 1:
        raise ValueError("--check-batching compares token by token; use num_beams=1")
    answerer = GeneratingAnswerer(generator)
    found = {}
    for batch in batches_of(requests, answerer, batch_size):
        found.update(zip([r.key for r in batch], _ids(generator, batch), strict=True))
    different = []
    for request in requests:
        single = _ids(generator, [request])[0]
        if single != found[request.key]:
            different.append((request, single))
    if not different:
        return None
    request, single = different[0]
    batched = found[request.key]
    place = next((t for t, (a, b) in enumerate(zip(single, batched, strict=False)) if a != b), None)
    if place is None:
        place = min(len(single), len(batched))
        return Difference(request, place, "(end)", "(end)", float("nan"), len(different))
    margin = _margin(generator, request, single[:place], single[place], batched[place])
    words = [generator.processor.tokenizer.decode([ids[place]]) for ids in (single, batched)]
    return Difference(request, place, *words, margin, len(different))


def shown_prompt(generator: Generator, request: Request) -> str:
    """A request as the model reads it: its tokens as text, the image tokens of an image as one ``<image x N>``."""
    tokenizer, mark = generator.processor.tokenizer, generator.encoder.image_token_id
    ids = generator.prompt_ids(request.prompt, request.image)
    parts, start = [], 0
    while start < len(ids):
        end = start
        while end < len(ids) and (ids[end] == mark) == (ids[start] == mark):
            end += 1
        parts.append(f"<image x {end - start}>" if ids[start] == mark else tokenizer.decode(ids[start:end]))
        start = end
    return "".join(parts)


def spread(requests: Sequence[Request], count: int) -> list[Request]:
    """`count` requests at even distances."""
    if count >= len(requests):
        return list(requests)
    return [requests[i * len(requests) // count] for i in range(count)]


def _ids(generator: Generator, batch: Sequence[Request]) -> list[tuple[int, ...]]:
    replies = generator.replies(
        open_images(batch),
        [request.prompt for request in batch],
        names=[request.key for request in batch],
        max_new_tokens=batch[0].max_new_tokens,
    )
    return [reply.ids for reply in replies]


def _margin(generator: Generator, request: Request, common: Sequence[int], a: int, b: int) -> float:
    """Logit of token a minus logit of token b after the common start of both replies, at batch size 1."""
    with evaluating(generator.model) as device:
        inputs = generator.inputs(open_images([request]), [request.prompt], device)
        tail = torch.tensor([list(common)], dtype=torch.long, device=device)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], tail], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        logits_V = generator.model(**inputs).logits[0, -1].float()
    return float(logits_V[a] - logits_V[b])
