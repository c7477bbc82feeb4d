"""Steering from data differences, as one call: capture two sets of samples, make vectors, apply them, measure.

Shapes: N states, D hidden size, K and J concepts of source and target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hacl.compare.behaviour_controls import random_steerer
from hacl.compare.behaviour_tasks import Variant, generate
from hacl.compare.difference_sets import SampleSets
from hacl.compare.differences import (
    answer_effect,
    best_targets,
    coarse_vector,
    concept_differences,
    keep_by_effect,
    word_scores,
)
from hacl.compare.divergence import Setting
from hacl.compare.forced import Side
from hacl.compare.plain import Row, interval_columns, plain, write_tables
from hacl.compare.styles import answer_type, plain_answer
from hacl.compare.targetedness import Targetedness, targetedness
from hacl.evaluation.statistics import format_interval
from hacl.plain_text import markdown, markdown_row
from hacl.representations.capture import capture
from hacl.representations.dictionaries import Dictionary
from hacl.representations.reader import FeatureStore
from hacl.representations.readout import Readout
from hacl.representations.samples import Sample
from hacl.steering import ConceptSteerer, MeanSteerer, Steerer

SELECT = ("words", "effect")


@dataclass(frozen=True)
class DifferenceStates:
    """States of the two sets at one layer; readout: of the same model."""

    source_ND: np.ndarray
    target_ND: np.ndarray
    layer: int
    readout: Readout


@dataclass
class DifferenceReport:
    """rows: one per steerer and strength; texts: replies by (steerer, strength), and the unsteered ones under
    ("unsteered", 0.0); vectors: which fine vectors were kept, with their scores."""

    name: str
    results: dict[tuple[str, float], Targetedness] = field(default_factory=dict)
    texts: dict[tuple[str, float], list[str]] = field(default_factory=dict)
    vectors: list[Row] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)

    def rows(self) -> list[Row]:
        """One flat row per steerer and strength."""
        found = []
        for (name, alpha), t in self.results.items():
            row = {"steerer": name, "alpha": alpha, "samples": t.samples, **interval_columns("changed", t.changed)}
            row |= interval_columns("target_share", t.target_share)
            if t.changed_outside is not None:
                row |= interval_columns("changed_outside", t.changed_outside)
            for key in ("target_texts", "avoided_texts", "longest_repeat"):
                row |= {f"{key}_before": getattr(t, key)[0], f"{key}_after": getattr(t, key)[1]}
            for kind, found_accuracy in t.accuracy.items():
                row |= interval_columns(f"accuracy_change {kind}", found_accuracy["difference"])
            found.append(row)
        return found

    def to_json(self) -> dict[str, Any]:
        return plain({"name": self.name, "meta": self.meta, "vectors": self.vectors, "rows": self.rows()})

    def to_markdown(self) -> str:
        lines = [f"# Steering from data differences: {markdown(self.name)}", ""]
        lines.append("| steerer | alpha | changed | target share of changed | target texts | avoided texts | outside |")
        lines.append("| --- | --- | --- | --- | --- | --- | --- |")
        for (name, alpha), t in self.results.items():
            outside = "n/a" if t.changed_outside is None else format_interval(t.changed_outside)
            cells = [name, f"{alpha:g}", format_interval(t.changed), format_interval(t.target_share)]
            cells += [f"{a} to {b}" for a, b in (t.target_texts, t.avoided_texts)]
            lines.append(markdown_row([*cells, outside]))
        return "\n".join([*lines, ""])

    def write(self, folder: Path | str, name: str = "difference") -> Path:
        """NAME.json, NAME.md, NAME_rows.csv, NAME_vectors.csv. Returns the JSON's path."""
        path = write_tables(folder, name, self.to_json(), {"rows": self.rows(), "vectors": self.vectors})
        path.with_suffix(".md").write_text(self.to_markdown(), encoding="utf-8")
        return path


def steer_by_difference(
    model: nn.Module,
    processor,
    sets: SampleSets,
    evaluate: Sequence[Sample],
    *,
    layer: int,
    folder: Path | str,
    alphas: Sequence[float] = (1.0,),
    outside: Sequence[Sample] = (),
    concepts: int = 5,
    select: str = "words",
    keep: int = 3,
    assign: str | None = None,
    policy: str = "all",
    template: str = "plain",
    max_new_tokens: int = 32,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> DifferenceReport:
    """Make coarse and fine vectors from `sets` and measure how targeted they are on `evaluate`.

    The steerers: "coarse" (all samples), "fine_all" (the best fine vector, all samples), "fine_source" (the best fine
    vectors, each only where its source concept is active) and "random" (control: as long as coarse). evaluate, outside:
    samples of other images than the sets'; where `evaluate` has answers, accuracy by type is measured. folder: of the
    captured states. concepts: K = J; select: fine vectors by "words" (the target words' logits) or by "effect" (on the
    answers about the first half of the images, arXiv 2501.03012v1 B.3; the other half is then measured); keep: how
    many; assign: see `ConceptSteerer`; by default "last_prompt" where the source's states are those, else "state".

    Raises:
        ValueError: an image in both the sets and the samples measured, an unknown selection, or too few states.
    """
    if select not in SELECT:
        raise ValueError(f"select={select!r}: fine vectors are chosen by {' or '.join(SELECT)}")
    _check_apart(sets, evaluate, outside)
    common = {"template": template, "batch_size": batch_size, "progress": progress}
    states = capture_sets(model, processor, sets, layer, Path(folder), **common)
    side = Side(model, processor, template=template)
    ask = _Asker(side, max_new_tokens, batch_size, progress, policy)
    report = DifferenceReport(sets.name, meta={"layer": layer, "policy": policy, "select": select, "seed": seed})
    report.meta["states"] = {"source": len(states.source_ND), "target": len(states.target_ND)}
    measured = list(evaluate)
    images = list(dict.fromkeys(sample.group for sample in measured))
    chosen_on = set(images[: len(images) // 2]) if select == "effect" else set()
    choice = [sample for sample in measured if sample.group in chosen_on]
    measured = [sample for sample in measured if sample.group not in chosen_on]
    fine = fine_vectors(states, sets, concepts, seed)
    if choice:
        fine = _by_effect(fine, ask, choice, layer, float(alphas[0]))
    report.vectors = [{"source": v.source, "target": v.target, "score": v.score} for v in fine.kept(keep)]
    assign = assign or ("last_prompt" if sets.select_source == "last_prompt" else "state")
    steerers = make_steerers(states, fine, keep=keep, assign=assign, seed=seed)

    before, away = ask(measured, None, 0.0), ask(outside, None, 0.0)
    report.texts["unsteered", 0.0] = before
    for name, steerer in steerers.items():
        for alpha in alphas:
            after = report.texts[name, float(alpha)] = ask(measured, steerer, float(alpha))
            report.results[name, float(alpha)] = targetedness(
                [sample.group for sample in measured], before, after, sets.words, avoided=sets.avoided,
                outside=([s.group for s in outside], away, ask(outside, steerer, float(alpha))) if outside else None,
                **_references(measured), seed=seed,
            )  # fmt: skip
    return report


def capture_sets(
    model: nn.Module, processor, sets: SampleSets, layer: int, folder: Path, **common: Any
) -> DifferenceStates:
    """Teacher-forced states of both sets, in `folder`/source and `folder`/target."""
    found = {}
    for side, samples, select in (
        ("source", sets.source, sets.select_source), ("target", sets.target, sets.select_target)
    ):  # fmt: skip
        store = FeatureStore(
            capture(
                model, processor, samples, layers=[layer], select=select, out=folder / side, classes=sets.classes,
                dtype="float32", **common,
            )
        )  # fmt: skip
        found[side] = store
    return DifferenceStates(found["source"].read(layer), found["target"].read(layer), layer, found["target"].readout())


@dataclass(frozen=True)
class FineVector:
    """From source concept to target concept. score: what it was chosen by, the larger the better."""

    source: int
    target: int
    score: float


@dataclass(frozen=True)
class FineVectors:
    """vectors_KJD: [i, j] = target concept j - source concept i; centres_KD: source concepts; ranked: the best target
    of each source concept, the best first."""

    vectors_KJD: np.ndarray
    centres_KD: np.ndarray
    ranked: list[FineVector]

    def kept(self, count: int) -> list[FineVector]:
        return self.ranked[:count]

    def vector(self, fine: FineVector) -> np.ndarray:
        return self.vectors_KJD[fine.source, fine.target]


def fine_vectors(states: DifferenceStates, sets: SampleSets, concepts: int, seed: int) -> FineVectors:
    """Differences between K-means concepts of the two sets, ranked by how much they raise the target words."""
    source, target = (
        Dictionary.fit(x, min(concepts, len(x)), seed=seed).concepts_KD for x in (states.source_ND, states.target_ND)
    )
    vectors_KJD = concept_differences(source, target)
    scores = word_scores(vectors_KJD.reshape(-1, vectors_KJD.shape[2]), states.readout, sets.words, states.layer)
    ranked = [FineVector(*entry) for entry in best_targets(scores.reshape(vectors_KJD.shape[:2]))]
    return FineVectors(vectors_KJD, source, ranked)


def make_steerers(
    states: DifferenceStates, fine: FineVectors, *, keep: int, assign: str, seed: int, **common: Any
) -> dict[str, Steerer]:
    """coarse, fine_all, fine_source and random; see `steer_by_difference`."""
    layer = states.layer
    coarse = MeanSteerer({layer: _tensor(coarse_vector(states.source_ND, states.target_ND))}, **common)
    found: dict[str, Steerer] = {"coarse": coarse}
    chosen = fine.kept(keep)
    if chosen:
        found["fine_all"] = MeanSteerer({layer: _tensor(fine.vector(chosen[0]))}, **common)
        found["fine_source"] = from_source(fine, chosen, layer, assign=assign, **common)
    return found | {"random": random_steerer(coarse, seed)}


def from_source(
    fine: FineVectors, chosen: Sequence[FineVector], layer: int, *, assign: str = "last_prompt", **common: Any
) -> ConceptSteerer:
    """Each vector only where its source concept is the nearest; other states are left as they are."""
    shifts_KD = np.zeros_like(fine.centres_KD)
    for vector in chosen:
        shifts_KD[vector.source] = fine.vector(vector)
    return ConceptSteerer({layer: _tensor(fine.centres_KD)}, {layer: _tensor(shifts_KD)}, assign=assign, **common)


@dataclass(frozen=True)
class _Asker:
    """Replies of one model, unsteered or steered."""

    side: Side
    max_new_tokens: int
    batch_size: int
    progress: bool
    policy: str

    def __call__(self, samples: Sequence[Sample], steerer: Steerer | None, alpha: float) -> list[str]:
        variant = None if steerer is None else Variant(Setting(steerer.kind, alpha, None, self.policy), steerer)
        label = f"{steerer.kind if steerer else 'unsteered'} {alpha:g}" if self.progress else ""
        return generate(
            self.side, samples, self.max_new_tokens, variant=variant, batch_size=self.batch_size, progress=label
        )


def _by_effect(fine: FineVectors, ask: _Asker, choice: Sequence[Sample], layer: int, alpha: float) -> FineVectors:
    """The same vectors, ranked by their effect on answers; those without an effect are left out."""
    before = [plain_answer(text) for text in ask(choice, None, 0.0)]
    effects: Mapping[str, Any] = {
        str(n): answer_effect(
            before,
            [plain_answer(t) for t in ask(choice, MeanSteerer({layer: _tensor(fine.vector(vector))}), alpha)],
        )
        for n, vector in enumerate(fine.ranked)
    }
    names = keep_by_effect(effects, len(effects))
    ranked = [FineVector(fine.ranked[int(n)].source, fine.ranked[int(n)].target, effects[n].score) for n in names]
    return FineVectors(fine.vectors_KJD, fine.centres_KD, ranked)


def _references(samples: Sequence[Sample]) -> dict[str, Any]:
    """Types and accepted answers where every sample has a short answer; captions have no accuracy."""
    if not samples or not all(s.answer and len(s.answer.split()) <= 3 for s in samples):
        return {}
    return {"types": [answer_type(s.answer) for s in samples], "references": [[s.answer] for s in samples]}


def _check_apart(sets: SampleSets, evaluate: Sequence[Sample], outside: Sequence[Sample]) -> None:
    if not evaluate:
        raise ValueError("no sample to measure on: give evaluate=")
    used = {sample.group for sample in [*sets.source, *sets.target]}
    shared = sorted(used & {sample.group for sample in [*evaluate, *outside]})
    if shared:
        raise ValueError(
            f"image {shared[0]!r} ({len(shared)} in all) made the vectors and would be measured; keep images apart"
        )


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float32)
