"""Replies and answers at many positions of the dial, several of them in one batch, kept on disk as they come.

A batch holds a prompt at all positions side by side (per-row coefficients), and its replies are scored at once under
the unsteered model, so that a curve costs one set of image embeddings per batch. Batches are fixed by what is asked and
never by what is already there: an interrupted run repeats its last batch and gives the same bytes.

Shapes: R rows, T tokens, D hidden size, V vocabulary, Nl label tokens of a batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from hacl.compare.behaviour_tasks import ANSWER_TOKENS, Tasks
from hacl.compare.divergence import kl_by_row, quiet
from hacl.compare.forced import ForcedReader, Side, forced_batches, sum_by_row
from hacl.evaluation.generation import Generator
from hacl.evaluation.pope import distinct_questions
from hacl.evaluation.runner.decoding import Decoding
from hacl.evaluation.runner.store import AnswerStore
from hacl.representations.samples import Sample
from hacl.steering import Steerer, steering
from hacl.study.curve_measures import Reply
from hacl.study.curve_options import FULL


@dataclass(frozen=True)
class Arm:
    """What is turned: a steerer on the dial, or an instruction before the prompt at each position.

    name: of the ablation; draw: number of the vector, of a control with several; steerer: None for no steering;
    prefixes: {position: instruction}, of an arm without steerer.
    """

    name: str
    draw: int = 0
    steerer: Steerer | None = None
    prefixes: Mapping[float, str] | None = None

    def tag(self) -> str:
        """Names the arm and what it is made of."""
        made = self.steerer.fingerprint() if self.steerer else str(sorted((self.prefixes or {}).items()))
        return f"{self.name}.{self.draw}@{made}"

    def positions(self, dial: Sequence[float]) -> list[float]:
        """Where it is asked: the method at 0 as well, which is the unsteered model for all."""
        asked = dial if self.prefixes is None else list(self.prefixes)
        return [c for c in asked if c or self.name == FULL]

    def asked(self, sample: Sample, c: float) -> Sample:
        """The sample as this arm puts it at a position."""
        if self.prefixes is None:
            return sample
        return replace(sample, prompt=f"{self.prefixes[c]} {sample.prompt}".strip())


@dataclass(frozen=True)
class Row:
    """One thing to ask. key: names it in the store."""

    key: str
    sample: Sample
    c: float


class CurveRunner:
    """Asks a model at the positions of a dial. store: where replies are kept; batch_size: rows."""

    def __init__(self, side: Side, store: AnswerStore, *, batch_size: int = 44, progress: bool = True):
        self.side, self.store, self.batch_size, self.progress = side, store, batch_size, progress
        self.known = store.read()

    def replies(
        self, split: str, tasks: Tasks, arm: Arm, dial: Sequence[float], seeds: Sequence[int], decoding: Decoding
    ) -> dict[tuple[float, int], list[Reply]]:
        """{(position, seed): a reply to each caption sample, in order}, with nll and KL under the unsteered model."""
        settings = replace(decoding, max_new_tokens=tasks.max_new_tokens)
        found = {}
        for seed in seeds:
            rows = {
                c: [Row(f"{split}/{arm.tag()}/{c:g}/{seed}/{s.id}", s, c) for s in tasks.captions]
                for c in arm.positions(dial)
            }
            self._ask(arm, _side_by_side(rows), replace(settings, seed=seed), f"{split} {arm.name} captions", True)
            for c, own in rows.items():
                found[c, seed] = [_reply(self.known[row.key]) for row in own]
        return found

    def answers(self, split: str, tasks: Tasks, arm: Arm, dial: Sequence[float]) -> dict[float, dict[str, str]]:
        """{position: {question id: greedy reply}}."""
        asked = distinct_questions(tasks.questions)
        samples = [Sample(q.question_id, tasks.images[q.image_id], q.text, None, q.image_id) for q in asked]
        rows = {
            c: [Row(f"{split}/{arm.tag()}/{c:g}/question/{s.id}", s, c) for s in samples] for c in arm.positions(dial)
        }
        settings = Decoding(max_new_tokens=ANSWER_TOKENS)
        self._ask(arm, _side_by_side(rows), settings, f"{split} {arm.name} questions", False)
        return {c: {row.sample.id: self.known[row.key]["text"] for row in own} for c, own in rows.items()}

    def _ask(self, arm: Arm, rows: Sequence[Row], decoding: Decoding, label: str, score: bool) -> None:
        batches = [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]
        missing = [batch for batch in batches if any(row.key not in self.known for row in batch)]
        if not missing:
            return
        bar = tqdm(total=sum(map(len, missing)), desc=label, disable=not self.progress, leave=False)
        with self.side.open() as device, bar, self.store.shard(0) as shard:
            generator = Generator(
                self.side.model, self.side.processor, template=self.side.template, decoding=decoding
            )  # fmt: skip
            reader = ForcedReader(self.side, device)
            for batch in missing:
                lines = self._one(generator, reader, arm, batch, score)
                shard.append(lines)
                self.known.update({line["key"]: line for line in lines})
                bar.update(len(batch))

    def _one(self, generator: Generator, reader: ForcedReader, arm: Arm, batch: Sequence[Row], score: bool):
        asked = [arm.asked(row.sample, row.c) for row in batch]
        with _dial(self.side, arm, [row.c for row in batch], [s.id for s in asked]):
            replies = generator.replies(
                [s.image for s in asked], [s.prompt for s in asked], names=[row.sample.id for row in batch]
            )
        lines: list[dict[str, Any]] = [
            {"key": row.key, "text": reply.text, "stopped": reply.stopped}
            for row, reply in zip(batch, replies, strict=True)
        ]
        if score:
            spoken = [at for at, reply in enumerate(replies) if reply.text]
            for line in lines:
                line.update(nll=0.0, kl=None if arm.steerer is None else 0.0, tokens=0)
            if spoken:
                self._score(reader, arm, [batch[at] for at in spoken], [lines[at] for at in spoken])
        return lines

    def _score(self, reader: ForcedReader, arm: Arm, rows: Sequence[Row], lines: Sequence[dict[str, Any]]) -> None:
        """Add to the lines, in nats over the reply's tokens and EOS: nll under the unsteered model after the plain
        prompt, and KL(steered || unsteered)."""
        samples = [row.sample for row in rows]
        (forced,) = forced_batches(self.side, samples, [line["text"] for line in lines], len(rows))
        embedded = reader.embed(forced)
        plain_NlV = reader.log_probs(forced, embedded)
        row_Nl, column_Nl = forced.labels.unbind(-1)
        target_Nl = forced.ids_RT[row_Nl, column_Nl].to(plain_NlV.device)
        nll_R = -sum_by_row(plain_NlV.gather(1, target_Nl[:, None])[:, 0], row_Nl, len(rows))
        kl_R = None
        if arm.steerer is not None:
            coefficients = [rows[at].c for at in forced.rows]
            policy = forced.policy(arm.steerer.policy)
            with _dial(self.side, arm, coefficients, forced.sample_ids, policy=policy, prompts=forced.prompts):
                kl_R = kl_by_row(reader.log_probs(forced, embedded), plain_NlV, forced)
        tokens_R = np.bincount(row_Nl.numpy(), minlength=len(rows))
        for place, at in enumerate(forced.rows):
            kl = None if kl_R is None else float(kl_R[place])
            lines[at].update(nll=float(nll_R[place]), kl=kl, tokens=int(tokens_R[place]))


@contextlib.contextmanager
def _dial(
    side: Side, arm: Arm, c: Sequence[float], sample_ids: Sequence[str], *, policy=None, prompts=None
) -> Iterator:
    """A session in which every row has its own coefficient; nothing for an arm that steers nothing."""
    if arm.steerer is None:
        yield
        return
    alpha = torch.tensor(list(c), dtype=torch.float32)
    with quiet(), steering(side.model, arm.steerer, policy=policy) as session:
        with session.rows(sample_ids=list(sample_ids), alpha=alpha, prompt_lengths=prompts):
            yield


def _side_by_side(rows: Mapping[float, Sequence[Row]]) -> list[Row]:
    """Every prompt at all positions, prompts of like length together, so that little of a batch is padding."""
    together = [list(found) for found in zip(*rows.values(), strict=True)]
    together.sort(key=lambda found: len(found[0].sample.prompt))
    return [row for found in together for row in found]


def _reply(line: Mapping[str, Any]) -> Reply:
    return Reply(line["text"], line["stopped"], line["nll"], line["kl"], line["tokens"])
