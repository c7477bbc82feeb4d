"""What replies to a batch of requests: a model that generates, or one whose log-likelihoods are read."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from PIL import Image

from hacl.evaluation.generation import Generator
from hacl.evaluation.likelihood import log_likelihoods
from hacl.evaluation.runner.ask import Row
from hacl.evaluation.runner.plan import Request


class GeneratingAnswerer:
    """Replies by generation: ``reply``, ``tokens`` (EOS included), ``stopped`` (by EOS and not by the limit).

    session: of a steering method that looks vectors up by sample id, which is told whose rows a batch has.
    """

    def __init__(self, generator: Generator, session=None):
        self.generator, self.session = generator, session

    def size(self, request: Request) -> int:
        return len(self.generator.prompt_ids(request.prompt, request.image))

    def answer(self, requests: Sequence[Request], images: Sequence[Image.Image | None]) -> list[Row]:
        samples = [request.sample for request in requests]
        with contextlib.nullcontext() if self.session is None else self.session.rows(sample_ids=samples):
            replies = self.generator.replies(
                images,
                [request.prompt for request in requests],
                names=[request.key for request in requests],
                max_new_tokens=requests[0].max_new_tokens,
            )
        return [{"reply": reply.text, "tokens": len(reply.ids), "stopped": reply.stopped} for reply in replies]


class LikelihoodAnswerer:
    """Replies with ``total``, the log-likelihood of the text and EOS in nats, and its number of ``tokens``."""

    def __init__(self, model, processor, template: str):
        self.model, self.processor, self.template = model, processor, template

    def size(self, request: Request) -> int:
        return 0  # texts of one image stay together, so that the tower sees it once per batch

    def answer(self, requests: Sequence[Request], images: Sequence[Image.Image | None]) -> list[Row]:
        found = log_likelihoods(
            self.model,
            self.processor,
            images,
            [request.text or "" for request in requests],
            prompt=[request.prompt for request in requests],
            template=self.template,
            batch_size=len(requests),
        )
        return [
            {"total": float(total), "tokens": int(tokens)}
            for total, tokens in zip(found.total, found.tokens, strict=True)
        ]
