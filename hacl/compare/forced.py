"""Teacher forcing of one text on two models: padded batches, image embeddings made once, logits at label positions.

Shapes: R rows, T tokens, D hidden size, V vocabulary, Nl label tokens of a batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from hacl.data.templates import EncodedSequence
from hacl.evaluation.generation import Generator, with_prompt
from hacl.evaluation.inputs import ImageEmbeddings, evaluating, make_encoder, row_batch, written
from hacl.evaluation.likelihood import LogLikelihoods
from hacl.evaluation.runner.decoding import Decoding
from hacl.models.adapters import find_adapter
from hacl.representations.parts import find_parts
from hacl.representations.samples import Sample
from hacl.steering import PositionPolicy
from hacl.steering.tracker import Tracker


class Side:
    """One of the two models under comparison.

    model: a stock model, or a PEFT wrapper; adapter: whether the wrapper's adapter counts (False: the original inside
    it, so that one load serves both sides); template: as in training.
    """

    def __init__(self, model: nn.Module, processor, *, template: str = "plain", adapter: bool = True):
        if not adapter and not hasattr(model, "disable_adapter"):
            raise ValueError("adapter=False: the model has no adapter that could be switched off")
        self.model, self.processor, self.template, self.adapter_on = model, processor, template, adapter
        self.encoder = make_encoder(processor, template)
        self._generators: dict[Decoding, Generator] = {}

    def generator(self, decoding: Decoding) -> Generator:
        """What writes this side's replies; kept, so that a prompt is rendered once for all variants of a model."""
        if decoding not in self._generators:
            made = Generator(self.model, self.processor, template=self.template, decoding=decoding)
            self._generators[decoding] = made
        return self._generators[decoding]

    @contextlib.contextmanager
    def open(self) -> Iterator[torch.device]:
        """Eval mode, no gradients, the adapter on or off; yields the model's device."""
        off = contextlib.nullcontext() if self.adapter_on else self.model.disable_adapter()
        with off, evaluating(self.model) as device:
            yield device


def two_sides(original: nn.Module, tuned: nn.Module | None, processor, template: str) -> tuple[Side, Side]:
    """Original and tuned model; tuned None: `original` is a PEFT wrapper, which is both.

    Raises:
        ValueError: the vocabularies differ in size, or there is no adapter.
    """
    if tuned is None:
        return Side(original, processor, template=template, adapter=False), Side(original, processor, template=template)
    sizes = [len(find_adapter(model).lm_head.weight) for model in (original, tuned)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"the models have {sizes[0]} and {sizes[1]} output tokens; their logits cannot be compared")
    return Side(original, processor, template=template), Side(tuned, processor, template=template)


@dataclass(frozen=True)
class ForcedBatch:
    """Right-padded rows of prompt and text. rows: indices of their samples; prompts: tokens before the first label;
    ids_RT and mask_RT on the CPU; image_RT: image tokens, the markers around them not; labels: (row, column) of every
    token of the texts, EOS included, but for a row's first token, which nothing predicts.
    """

    rows: list[int]
    samples: list[Sample]
    sequences: list[EncodedSequence]
    prompts: list[int]
    ids_RT: Tensor
    mask_RT: Tensor
    image_RT: Tensor
    labels: Tensor

    def policy(self, policy: str | PositionPolicy) -> str | Tensor | PositionPolicy:
        """A policy that needs no token ids: kinds of tokens become a mask."""
        parsed = PositionPolicy.parse(policy)
        if parsed.kind not in ("image", "text"):
            return parsed
        return self.image_RT if parsed.kind == "image" else ~self.image_RT & self.mask_RT

    @property
    def sample_ids(self) -> list[str]:
        return [sample.id for sample in self.samples]


def forced_batches(side: Side, samples: Sequence[Sample], texts: Sequence[str], batch_size: int) -> list[ForcedBatch]:
    """All texts after their samples' prompts, in batches of like length.

    Raises:
        ValueError: numbers differ, or a text without a token.
    """
    if len(samples) != len(texts):
        raise ValueError(f"{len(samples)} samples but {len(texts)} texts")
    sequences = [
        with_prompt(side.encoder, sample.prompt).caption_sequence(
            text, with_image=sample.image is not None, image=written(side.encoder, sample.image)
        )
        for sample, text in zip(samples, texts, strict=True)
    ]
    for sample, sequence in zip(samples, sequences, strict=True):
        if not sequence.predicted:
            raise ValueError(f"sample {sample.id!r}: its text has no token that another comes before")
    # By length, so that little is padding; rows of one image together, so that the tower reads it once per batch.
    order = sorted(range(len(samples)), key=lambda i: (len(sequences[i]), str(samples[i].image), i))
    image_token_id = side.encoder.image_token_id
    return [
        _batch(order[start : start + batch_size], samples, sequences, image_token_id)
        for start in range(0, len(order), batch_size)
    ]


def _batch(
    rows: list[int], samples: Sequence[Sample], sequences: Sequence[EncodedSequence], image_token_id: int
) -> ForcedBatch:
    chosen = [sequences[i] for i in rows]
    shape = (len(rows), max(map(len, chosen)))
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
    labels: list[tuple[int, int]] = []
    for row, sequence in enumerate(chosen):
        ids[row, : len(sequence)] = torch.tensor(sequence.ids)
        mask[row, : len(sequence)] = True
        labels += [(row, column) for column in sequence.predicted]
    prompts = [sequence.predicted[0] for sequence in chosen]
    image = mask & (ids == image_token_id)
    return ForcedBatch(rows, [samples[i] for i in rows], chosen, prompts, ids, mask, image, torch.tensor(labels))


class ForcedReader:
    """Forward passes of one side over forced batches; to be used inside `side.open()`.

    The embeddings of a batch are made by `embed` once, and every pass over it (unsteered, or inside a session) starts
    from them: a sweep over strengths runs the vision tower once.
    """

    def __init__(self, side: Side, device: torch.device):
        self.side, self.device = side, device
        self.adapter, self.parts = find_adapter(side.model), find_parts(side.model)
        self.images = ImageEmbeddings(side.model, side.processor, device)

    def embed(self, batch: ForcedBatch) -> dict[str, Any]:
        """What the decoder is called with for a batch: embeddings (R, T, D), mask, positions, what a family adds."""
        seen = [sample for sample in batch.samples if sample.image is not None]
        shown = iter(self.images([sample.image for sample in seen], [sample.prompt for sample in seen]))
        images = [None if sample.image is None else next(shown) for sample in batch.samples]
        rows, image_FW = row_batch(self.adapter, batch.sequences, images)
        embeds_RTD = self.adapter.merge(rows, image_FW)
        attention = self.adapter.attention(rows, embeds_RTD.dtype)
        return {
            "inputs_embeds": embeds_RTD,
            "position_ids": self.adapter.positions(rows),
            **attention,
            **self.adapter.decoder_inputs(rows, image_FW),
        }

    def run(self, batch: ForcedBatch, embedded: dict[str, Any]) -> Tensor:
        """(R, T, D) states after the final norm. embedded: what `embed` gave for the batch."""
        with Tracker.of(self.parts).attending(batch.mask_RT):  # a family's own mask does not say where padding is
            return self.adapter.decoder(**embedded, use_cache=False).last_hidden_state

    def log_probs(self, batch: ForcedBatch, embedded: dict[str, Any]) -> Tensor:
        """(Nl, V) log-probabilities, fp32, of the token at each label position."""
        row, column = batch.labels.to(self.device).unbind(-1)
        logits = self.adapter.logits(self.run(batch, embedded)[row, column - 1])
        return torch.log_softmax(logits.float(), dim=-1)


def forced_log_likelihoods(
    side: Side,
    samples: Sequence[Sample],
    texts: Sequence[str],
    *,
    session: Callable[[ForcedBatch], contextlib.AbstractContextManager] | None = None,
    batch_size: int = 16,
    progress: str = "",
) -> LogLikelihoods:
    """log p(text, EOS | image, prompt) of every sample, unsteered, or inside what `session` opens for a batch.

    Unlike `hacl.evaluation.likelihood.log_likelihoods` it tells the session where prompts end, so policies hold.
    """
    batches = forced_batches(side, samples, texts, batch_size)
    total, tokens = np.zeros(len(texts)), np.zeros(len(texts), dtype=np.int64)
    with side.open() as device, tqdm(total=len(texts), desc=progress, disable=not progress, leave=False) as bar:
        reader = ForcedReader(side, device)
        for batch in batches:
            with session(batch) if session else contextlib.nullcontext():
                log_probs_NlV = reader.log_probs(batch, reader.embed(batch))
            row, column = batch.labels.unbind(-1)
            target = batch.ids_RT[row, column].to(device)
            found = log_probs_NlV.gather(1, target[:, None])[:, 0]
            total[batch.rows] = sum_by_row(found, row, len(batch.rows))
            tokens[batch.rows] = torch.bincount(row, minlength=len(batch.rows)).numpy()
            bar.update(len(batch.rows))
    return LogLikelihoods(total, tokens)


def sum_by_row(values_Nl: Tensor, row: Tensor, rows: int) -> np.ndarray:
    """Sums of label tokens by row, fp64 (R)."""
    sums = torch.zeros(rows, dtype=torch.float64)
    return sums.index_add(0, row, values_Nl.double().cpu()).numpy()
