"""Measure one pocket model on held-out scenes: captions, yes/no questions, caption margins, and its hidden states.

Every split is a JSONL file of the world with its drawings. Measures are those of :mod:`hacl.evaluation`; this file only
decides what is asked, and keeps the per-image evidence that intervals over images need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hacl.config import ObjectiveConfig
from hacl.data.records import Record
from hacl.evaluation.chair import MentionExtractor, score_chair
from hacl.evaluation.diagnostics import States, entanglement, modality_gap
from hacl.evaluation.generation import answer_questions, generate_captions
from hacl.evaluation.inputs import image_paths, make_encoder
from hacl.evaluation.likelihood import caption_margins
from hacl.evaluation.pope import SPLITS, build_questions, distinct_questions, score_splits
from hacl.evaluation.reports import ScoreReport
from hacl.pocket.language import PROMPTS
from hacl.pocket.world import KINDS, object_vocabulary

PROMPT = PROMPTS[0]
QUESTION = "is there {article} {object} in the image ?"
# States are read as the paper does, whatever an arm was trained with, so that arms can be compared.
READ = ObjectiveConfig(contrastive_weight=0.0, head="none")


@dataclass(frozen=True)
class Sizes:
    """How many scenes of a split are captioned, asked about, and scored by margin and by states."""

    captions: int = 300
    questions: int = 100
    margins: int = 60
    states: int = 150


@dataclass
class Evaluation:
    """metrics: measure -> value; items: measure -> image -> [numerator, denominator]; captions: one per record."""

    metrics: dict[str, float | None] = field(default_factory=dict)
    items: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    captions: list[dict[str, Any]] = field(default_factory=list)
    states: States | None = None

    def add(self, report: ScoreReport, names: Mapping[str, str]) -> None:
        """Take measures (name in the report -> name here), and their evidence per image where there is any."""
        tables = report.by_image()
        for theirs, ours in names.items():
            if theirs in report.metrics:
                self.metrics[ours] = report.metrics[theirs]
            if theirs in tables:
                self.items[ours] = tables[theirs]


def evaluate(
    model,
    processor,
    records: Sequence[Record],
    image_root: Path | str,
    *,
    counts_from: Mapping[str, Mapping[str, int]],
    sizes: Sizes,
    seed: int = 0,
    batch_size: int = 100,
) -> Evaluation:
    """All measures on one split.

    counts_from: image id -> objects of training scenes, whose frequencies decide popular and adversarial questions.
    """
    found = Evaluation()
    chosen = list(records[: sizes.captions])
    texts = generate_captions(
        model,
        processor,
        image_paths(chosen, image_root),
        prompt=PROMPT,
        template="chat",
        batch_size=batch_size,
        max_new_tokens=56,
        progress=False,
    )
    truth = {record.image_id: record.objects or {} for record in records}
    chair = score_chair([r.image_id for r in chosen], texts, truth, MentionExtractor(object_vocabulary()))
    found.add(chair, {"CHAIRs": "chair_s", "CHAIRi": "chair_i", "Recall": "recall", "mean_length": "length"})
    found.captions = chair.items
    _questions(found, model, processor, records[: sizes.questions], image_root, truth, counts_from, seed, batch_size)
    if sizes.margins:
        margins = caption_margins(
            model,
            processor,
            records[: sizes.margins],
            image_root,
            prompt=PROMPT,
            template="chat",
            batch_size=batch_size,
            seed=seed,
            progress=False,
        )
        kinds = sorted({item["type"] for item in margins.items})
        found.add(margins, {"margin_accuracy": "margin", "margin_accuracy_blind": "margin_blind"})
        found.add(margins, {f"margin_accuracy/{kind}": f"margin_{kind}" for kind in kinds})
    if sizes.states:
        _states(found, model, processor, records[: sizes.states], image_root, batch_size)
    return found


def _questions(found, model, processor, records, image_root, truth, counts_from, seed, batch_size) -> None:
    """POPE in its three forms. Popularity and co-occurrence are those of training, the prior that is probed."""
    if not records:
        return
    own = {record.image_id: truth[record.image_id] for record in records}
    every_kind = {"every kind": {kind.name: 0 for kind in KINDS}}  # so that a kind never drawn can still be asked for
    splits = {
        name: build_questions(own, name, seed=seed, counts_from={**counts_from, **every_kind}, template=QUESTION)
        for name in SPLITS
    }
    asked = distinct_questions(splits)
    where = dict(zip(own, image_paths(records, image_root), strict=True))
    replies = answer_questions(
        model,
        processor,
        [where[question.image_id] for question in asked],
        [question.text for question in asked],
        template="chat",
        batch_size=2 * batch_size,
        max_new_tokens=2,
        progress=False,
    )
    answers = {question.question_id: reply for question, reply in zip(asked, replies, strict=True)}
    for name, report in score_splits(splits, answers).items():
        found.add(
            report,
            {"accuracy": f"pope_{name}", "f1": f"pope_{name}_f1", "yes_ratio": f"pope_{name}_yes"},
        )


def _states(found: Evaluation, model, processor, records, image_root, batch_size: int) -> None:
    from hacl.evaluation.states import collect_states
    from hacl.training.objective import HaclModel

    encoder = make_encoder(processor, "chat", PROMPT)
    wrapped = HaclModel(model, READ)
    states = collect_states(
        wrapped, encoder, records, image_root, batch_size=batch_size, max_captions=1, progress=False
    )["pre"]
    found.states = states
    found.add(
        modality_gap(states),
        {
            "centroid_distance": "gap",
            "relative_gap": "gap_relative",
            "modality_auc": "gap_auc",
            "i2t@1": "i2t_1",
            "t2i@1": "t2i_1",
        },
    )
    found.add(
        entanglement(states),
        {"state_margin_accuracy": "state_margin", "shift": "shift", "probe_auc": "probe_auc"},
    )
