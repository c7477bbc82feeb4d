"""What a model is asked at behaviour level, and the evidence by image of its replies: captions, questions, margins.

One function measures the original, the tuned and every steered model, so that they answer exactly the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from hacl.compare.agreement import words as words_of
from hacl.compare.divergence import Setting, quiet
from hacl.compare.forced import ForcedBatch, Side, forced_log_likelihoods
from hacl.compare.recovery_fraction import per_image
from hacl.data.records import Record
from hacl.evaluation.chair import MentionExtractor, score_chair
from hacl.evaluation.likelihood import plan_margins
from hacl.evaluation.pope import Question, distinct_questions, score_splits
from hacl.evaluation.runner.decoding import Decoding
from hacl.evaluation.statistics import Table
from hacl.representations.samples import Sample
from hacl.steering import Steerer, steering

ANSWER_TOKENS = 8  # of a reply to a yes/no question
POPE = {"accuracy": "accuracy", "f1": "f1", "yes_ratio": "yes_rate"}
POPE_DETAILS = {"precision": "precision", "recall": "recall", "unparsed": "unparsed"}


@dataclass(frozen=True)
class Tasks:
    """All parts are optional.

    captions: samples whose prompt asks for a text about the image; truth, vocabulary: objects of each image id and the
    words for them (for CHAIR, see `hacl.evaluation.chair`); styles: words of each style by name, counted in captions;
    questions: POPE questions by split, and images: the file of
    each of their image ids; margins: records with hallucinated captions, image_root and margin_prompt; outside: samples
    outside the domain of the tuning, whose replies should not change. max_new_tokens: of captions and of outside.
    """

    captions: Sequence[Sample] = ()
    truth: Mapping[str, Collection[str]] | None = None
    vocabulary: Mapping[str, str | None] | None = None
    styles: Mapping[str, Collection[str]] = field(default_factory=dict)
    questions: Mapping[str, Sequence[Question]] = field(default_factory=dict)
    images: Mapping[str, Path] = field(default_factory=dict)
    margins: Sequence[Record] = ()
    image_root: Path | str = "."
    margin_prompt: str = ""
    outside: Sequence[Sample] = ()
    max_new_tokens: int = 64

    def without(self, image_ids: Collection[str]) -> Tasks:
        """Without what concerns these images: what settings were chosen on is not asked in the confirmation."""
        gone = set(image_ids)
        return replace(
            self,
            captions=[sample for sample in self.captions if sample.group not in gone],
            questions={
                split: [question for question in found if question.image_id not in gone]
                for split, found in self.questions.items()
            },
            margins=[record for record in self.margins if record.image_id not in gone],
            outside=[sample for sample in self.outside if sample.group not in gone],
        )


@dataclass(frozen=True)
class Variant:
    """A steered model: the setting and the steerer it names."""

    setting: Setting
    steerer: Steerer

    @contextlib.contextmanager
    def forced(self, side: Side, batch: ForcedBatch):
        """A session for one teacher-forced batch."""
        policy = batch.policy(self.setting.policy)
        with quiet(), self._session(side, policy) as session:
            with session.rows(sample_ids=batch.sample_ids, prompt_lengths=batch.prompts):
                yield

    @contextlib.contextmanager
    def generating(self, side: Side, sample_ids: Sequence[str]):
        """A session for one batch of `generate`."""
        with quiet(), self._session(side, self.setting.policy) as session, session.rows(sample_ids=sample_ids):
            yield

    def _session(self, side: Side, policy):
        setting = self.setting
        return steering(side.model, self.steerer, layers=setting.layers, alpha=setting.alpha, policy=policy)


@dataclass(frozen=True)
class Measured:
    """captions, outside: replies in the order of the tasks; answers: by question id; tables: evidence by measure."""

    captions: list[str]
    outside: list[str]
    answers: dict[str, str]
    tables: dict[str, Table]


def measure(
    side: Side,
    tasks: Tasks,
    variant: Variant | None = None,
    *,
    batch_size: int = 16,
    decoding: Decoding | None = None,
    details: bool = False,
    progress: str = "",
) -> Measured:
    """Ask a model everything, unsteered or as a variant.

    Measures: CHAIR_i, CHAIR_s, recall where truth and vocabulary are given; STYLE_words, words of a style per caption;
    pope_SPLIT_accuracy, _f1 and _yes_rate (details: also _precision, _recall and _unparsed); margin_accuracy (share of
    hallucinated captions less likely per token than their true one) and margin (nats per token).
    decoding: how replies are decoded, greedily by default; the numbers of new tokens are the tasks'.
    """
    label = f"{progress} " if progress else ""
    common = {"variant": variant, "batch_size": batch_size, "decoding": decoding}
    captions = generate(side, tasks.captions, tasks.max_new_tokens, progress=label and label + "captions", **common)
    tables: dict[str, Table] = {}
    if tasks.captions and tasks.truth is not None and tasks.vocabulary:
        ids = [sample.group for sample in tasks.captions]
        report = score_chair(ids, captions, tasks.truth, MentionExtractor(tasks.vocabulary))
        names = {"CHAIRi": "CHAIR_i", "CHAIRs": "CHAIR_s", "Recall": "recall"}
        found = report.by_image()
        tables |= {ours: found[theirs] for theirs, ours in names.items()}
    for name, words in tasks.styles.items() if captions else ():
        counts = [sum(word in words for word in words_of(text)) for text in captions]
        tables[f"{name}_words"] = per_image([sample.group for sample in tasks.captions], counts)
    answers = _answers(side, tasks, label and label + "questions", common)
    for split, report in score_splits(tasks.questions, answers).items() if answers else ():
        found = report.by_image()
        names = POPE | POPE_DETAILS if details else POPE
        tables |= {f"pope_{split}_{ours}": found[theirs] for theirs, ours in names.items() if theirs in found}
    if tasks.margins:
        tables |= _margins(side, tasks, variant, batch_size, label and label + "margins")
    outside = generate(side, tasks.outside, tasks.max_new_tokens, progress=label and label + "outside", **common)
    return Measured(captions, outside, answers, tables)


def generate(
    side: Side,
    samples: Sequence[Sample],
    max_new_tokens: int,
    *,
    variant: Variant | None = None,
    batch_size: int = 16,
    decoding: Decoding | None = None,
    progress: str = "",
) -> list[str]:
    """Replies to the samples' prompts, in order; greedy by default, and a sampled one depends on seed and sample id."""
    if not samples:
        return []
    texts = [""] * len(samples)
    with side.open(), tqdm(total=len(samples), desc=progress, disable=not progress, leave=False) as bar:
        decoding = replace(decoding or Decoding(), max_new_tokens=max_new_tokens)
        generator = side.generator(decoding)
        lengths = [len(generator.prompt_ids(sample.prompt, sample.image)) for sample in samples]
        order = sorted(range(len(samples)), key=lambda i: (lengths[i], i))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            asked = [samples[i] for i in rows]
            inside = variant.generating(side, [s.id for s in asked]) if variant else contextlib.nullcontext()
            with inside:
                shown, prompts = [s.image for s in asked], [s.prompt for s in asked]
                replies = generator.replies(shown, prompts, names=[s.id for s in asked])
            for i, reply in zip(rows, replies, strict=True):
                texts[i] = reply.text
            bar.update(len(rows))
    return texts


def _answers(side: Side, tasks: Tasks, label: str, common) -> dict[str, str]:
    asked = distinct_questions(tasks.questions)
    missing = [question.image_id for question in asked if question.image_id not in tasks.images]
    if missing:
        raise ValueError(f"no file for image {missing[0]!r} of the questions; give tasks.images")
    samples = [Sample(q.question_id, tasks.images[q.image_id], q.text, None, q.image_id) for q in asked]
    replies = generate(side, samples, ANSWER_TOKENS, progress=label, **common)
    return {question.question_id: reply for question, reply in zip(asked, replies, strict=True)}


def _margins(side: Side, tasks: Tasks, variant: Variant | None, batch_size: int, label: str) -> dict[str, Table]:
    plan = plan_margins(tasks.margins, tasks.image_root)
    samples = [
        Sample(f"{i}/{text}", image, tasks.margin_prompt, text, plan.records[i].image_id)
        for (i, text), image in zip(plan.rows, plan.shown[""], strict=True)
    ]
    session = (lambda batch: variant.forced(side, batch)) if variant else None
    texts = [text for _, text in plan.rows]
    scores = forced_log_likelihoods(side, samples, texts, session=session, batch_size=batch_size, progress=label)
    at = {row: n for n, row in enumerate(plan.rows)}
    ids, margins = [], []
    for i, record in enumerate(plan.records):
        for edited in record.hallucinated:
            true, false = at[i, record.captions[edited.of or 0]], at[i, edited.text]
            ids.append(record.image_id)
            margins.append(float(scores.mean[true] - scores.mean[false]))
    accuracy = per_image(ids, [margin > 0 for margin in margins])
    return {"margin_accuracy": accuracy, "margin": per_image(ids, margins)}
