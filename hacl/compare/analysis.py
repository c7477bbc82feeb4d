"""Analyse the paired states of one layer: concepts of both models, how they moved, shift vectors, held-out recovery.

Everything is written to one folder, and nothing here loads a model.

Shapes: N samples, D hidden size, K concepts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hacl.compare.concept_recovery import ConceptReport
from hacl.compare.paired_features import PairedFeatures
from hacl.compare.plain import Row, plain, write_tables
from hacl.compare.shift_vectors import ShiftVectors
from hacl.compare.steps import (
    concept_stability,
    fit_concepts,
    map_kinds,
    measure_shift,
    recover_concepts,
    shift_map,
    shift_words,
)
from hacl.representations.dictionaries import Dictionary
from hacl.representations.grounding import (
    WordRule,
    dictionary_overlap,
    ground_words,
    most_activating,
    norm_modes,
    overlap,
)
from hacl.representations.matching import cosines, match_concepts
from hacl.representations.readout import Readout
from hacl.representations.stability import partition_agreement

WORDS = ("english", "neutral", "none")
MAP_POINTS = 500  # samples drawn in the map of shifts
EXAMPLES = 5  # images shown per concept


@dataclass(frozen=True)
class AnalysisSettings:
    """concepts: how many (K); method: see `Dictionary.fit`; seed; aggregate, min_size, bootstrap: see `shift_vectors`;
    splits, holdout, controls, match, match_centred, mas, parity: see `concept_recovery`; words: which tokens count as
    words ("english": listed ones, "neutral": any of letters, "none": no words); stability_seeds: dictionaries fitted
    with other seeds; rank: of the low-rank map beside the shifts.
    """

    concepts: int = 20
    method: str = "kmeans"
    seed: int = 0
    aggregate: str = "mean"
    min_size: int = 5
    bootstrap: int = 500
    splits: int = 5
    holdout: float = 0.5
    controls: int = 200
    match: str = "assignment"
    match_centred: bool = False
    mas: int = 50
    parity: bool = False
    words: str = "english"
    stability_seeds: int = 5
    rank: int = 16

    def __post_init__(self) -> None:
        if self.words not in WORDS:
            raise ValueError(f"words={self.words!r}: expected one of {', '.join(WORDS)}")

    def rule(self) -> WordRule | None:
        return {"english": WordRule.default, "neutral": WordRule.neutral, "none": lambda: None}[self.words]()


@dataclass(frozen=True)
class Analysis:
    """original, tuned: dictionaries of both models' states; shifts; recovery; evolution: one row per concept of the
    original; figures: everything else that a report shows."""

    original: Dictionary
    tuned: Dictionary
    shifts: ShiftVectors
    recovery: ConceptReport
    evolution: list[Row]
    figures: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return plain(
            {
                "verdict": self.recovery.verdict(), "shifts": self.shifts.to_json(),
                "recovery": self.recovery.to_json(), "evolution": self.evolution, **self.figures,
            }
        )  # fmt: skip

    def tables(self) -> dict[str, list[Row]]:
        """Rows for CSV: what stands behind every plot."""
        named = ("shift_map", "shift_cosines", "linear_maps", "words")
        return {"evolution": self.evolution, **{name: self.figures[name] for name in named if self.figures.get(name)}}

    def save(self, folder: Path | str) -> Path:
        """Dictionaries, shift vectors, recovery and `analysis.json` with its CSV files. Returns the JSON's path."""
        folder = Path(folder)
        self.original.save(folder / "concepts_original")
        self.tuned.save(folder / "concepts_tuned")
        self.shifts.save(folder)
        write_tables(folder, "shift_vectors", self.shifts.to_json(), self.shifts.tables())
        self.recovery.save(folder)
        return write_tables(folder, "analysis", self.to_json(), self.tables())


def analyse(pairs: PairedFeatures, settings: AnalysisSettings | None = None) -> Analysis:
    """All of it for the paired states of one layer and selector.

    Raises:
        ValueError: too few samples or images for the number of concepts or the splits.
    """
    settings = settings or AnalysisSettings()
    K, seed = settings.concepts, settings.seed
    rule = settings.rule()
    readout = pairs.readout if rule is not None else None
    fitting = {"method": settings.method, "seed": seed}
    original = fit_concepts(pairs, K, **fitting)
    tuned = fit_concepts(pairs, K, side="tuned", **fitting)
    shifts = measure_shift(
        pairs,
        original,
        aggregate=settings.aggregate,
        min_size=settings.min_size,
        bootstrap=settings.bootstrap,
        seed=seed,
    )
    recovery = recover_concepts(
        pairs, K, **fitting,
        holdout=settings.holdout, splits=settings.splits, controls=settings.controls, bootstrap=settings.bootstrap,
        aggregate=settings.aggregate, min_size=settings.min_size, match=settings.match,
        match_centred=settings.match_centred, words=readout, word_rule=rule, mas=settings.mas, parity=settings.parity,
    )  # fmt: skip
    seeds = range(seed, seed + max(2, settings.stability_seeds))
    assigned_N = original.assign(pairs.a_ND)
    figures = {
        "layer": pairs.layer, "selector": pairs.selector, "rows": len(pairs.rows),
        "images": len(set(pairs.groups.tolist())), "dropped": [pairs.dropped_a, pairs.dropped_b],
        "settings": asdict(settings),
        "agreement": partition_agreement(assigned_N, tuned.assign(pairs.b_ND)),
        "stability": concept_stability(pairs, K, seeds=list(seeds), method=settings.method).to_json(),
        "linear_maps": map_kinds(pairs, K, rank=settings.rank, seed=seed),
        "shift_map": shift_map(pairs, shifts, original, limit=MAP_POINTS, seed=seed),
        "shift_cosines": _cosine_rows(shifts),
        "words": shift_words(pairs, shifts, rule) if rule is not None else [],
    }  # fmt: skip
    evolution = evolve(original, tuned, pairs, readout, rule, settings)
    figures["dictionary_overlap"] = {
        side: dictionary_overlap([row[f"words_{side}"] for row in evolution]) for side in ("original", "tuned")
    }
    return Analysis(original, tuned, shifts, recovery, evolution, figures)


def evolve(
    original: Dictionary,
    tuned: Dictionary,
    pairs: PairedFeatures,
    readout: Readout | None,
    rule: WordRule | None,
    settings: AnalysisSettings,
) -> list[Row]:
    """What became of each concept of the original: its nearest and its assigned partner, words, images, T-Overlap.

    Both models' concepts are read through the original's LM head. Section 4.1 of arXiv 2501.03012: high overlap of
    words means that a concept was refined, low overlap that it vanished or emerged.
    """
    nearest = match_concepts(original.concepts_KD, tuned.concepts_KD, rule="nearest")
    assigned = match_concepts(original.concepts_KD, tuned.concepts_KD)
    words = [[] for _ in original.concepts_KD], [[] for _ in tuned.concepts_KD]
    if readout is not None:
        mode, _ = norm_modes(pairs.layer)
        words = tuple(ground_words(d.concepts_KD, readout, rule, norm_mode=mode) for d in (original, tuned))
    groups = pairs.groups.tolist()
    images = [
        [[groups[row] for row in rows] for rows in most_activating(d.activations(states_ND), settings.mas, groups)]
        for d, states_ND in ((original, pairs.a_ND), (tuned, pairs.b_ND))
    ]
    rows = []
    for k, (near, match) in enumerate(zip(nearest, assigned, strict=True)):
        row: Row = {"concept": k, "nearest": near.b, "nearest_cosine": near.cosine, "matched": match.b}
        row |= {"cosine": match.cosine, "margin": match.margin, "low_margin": match.low, "words_original": words[0][k]}
        after = [] if match.b is None else words[1][match.b]
        shared = overlap(words[0][k], after)
        row |= {"words_tuned": after, "t_overlap": shared.percent, "t_overlap_of": shared.of}
        seen = [] if match.b is None else images[1][match.b]
        row |= {"mas_overlap": overlap(images[0][k], seen).percent}
        row |= {"images_original": images[0][k][:EXAMPLES], "images_tuned": seen[:EXAMPLES]}
        rows.append(row)
    return plain(rows)


def _cosine_rows(shifts: ShiftVectors) -> list[Row]:
    """Cosine of every two concepts' shifts, usable ones only."""
    usable = np.flatnonzero(shifts.usable_K)
    table = cosines(shifts.concepts_KD[usable], shifts.concepts_KD[usable])
    return [
        {"concept": int(i), "other": int(j), "cosine": float(table[x, y])}
        for x, i in enumerate(usable) for y, j in enumerate(usable)
    ]  # fmt: skip


def layer_summary(analyses: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """One row per layer and selector, from their `analysis.json`: how far, how coherent, how much recovered."""
    rows = []
    for found in analyses.values():
        overall, head = found["shifts"]["overall"], found["recovery"]["headline"]
        row: Row = {"layer": found["layer"], "selector": found["selector"], "rows": found["rows"]}
        for name in ("relative_magnitude", "consistency", "explained"):
            row |= {key: overall.get(key) for key in (name, f"{name}_low", f"{name}_high")}
        row["explained_by_concepts"] = overall.get("explained_by_concepts")
        for name in ("R_concept", "R_global", "gain_over_global"):
            row |= {key: head.get(key) for key in (name, f"{name}_low", f"{name}_high")}
        shared = [row["t_overlap"] for row in found["evolution"] if row["t_overlap"] is not None]
        row |= {"agreement": found["agreement"], "t_overlap": float(np.mean(shared)) if shared else None}
        rows.append(row)
    return plain(rows)
