"""Concept-level recovery: how much of the tuned model's concepts the original's concepts plus shifts give back.

Held out, with every control in the same table. Of each concept k with its shift D_k and its match j:
R_k = 1 - |u_j - (u_k + D_k)|^2 / |u_j - u_k|^2, where u_k and D_k come from some images and u_j from others.

Shapes: N samples, D hidden size, K concepts, S splits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hacl.compare.concept_rows import alpha_rows, concept_rows, image_columns, word_columns
from hacl.compare.controls import control_rows, summary
from hacl.compare.correlations import correlate
from hacl.compare.plain import Row, interval_columns, plain, write_tables
from hacl.compare.recovery_split import Options, Split, make_split, recovery_draws
from hacl.compare.resampling import centred_interval, numbered_groups, split_rows
from hacl.evaluation.statistics import Interval, format_interval
from hacl.representations.dictionaries import Dictionary
from hacl.representations.grounding import WordRule
from hacl.representations.readout import Readout

ALPHAS = tuple(round(0.25 * step, 2) for step in range(9))
IN_SAMPLE = (
    "in-sample (tautology: with k-means and alpha = 1 the shifted concept is the tuned mean of the same samples; it "
    "tests whether the partition is stable, not whether the shift carries over)"
)
HELD = "own concept's shift, tuned concepts learnt on held-out images"


@dataclass(frozen=True)
class ConceptReport:
    """What `concept_recovery` found.

    Attributes:
        rows: one per concept of the first split (see `concept_rows`). controls: own shift first, then every control,
            the in-sample figure last. headline: held-out R of the concepts' own shifts minus that of the global shift,
            with its interval, and both parts. alpha_curve, correlations, splits: tables of that name. agreement:
            partition agreement (adjusted Rand index). similarity: cosine of each original concept (row) with each tuned
            one of the first split. settings, provenance: what made it.
    """

    rows: list[Row]
    controls: list[Row]
    headline: Row
    alpha_curve: list[Row]
    correlations: list[Row]
    splits: list[Row]
    agreement: Row
    similarity: list[list[float]]
    settings: dict[str, Any]
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return plain({"format": "hacl-concept-recovery-1", **{name: getattr(self, name) for name in self._names()}})

    def tables(self) -> dict[str, list[Row]]:
        """Rows for CSV by table name."""
        controls = [{key: value for key, value in row.items() if key != "R_by_concept"} for row in self.controls]
        named = {"concepts": self.rows, "controls": controls, "alpha": self.alpha_curve}
        return {**named, "correlations": self.correlations, "splits": self.splits}

    def save(self, folder: Path | str) -> Path:
        """Write `concept_recovery.json` and a CSV beside it for every table. Returns the JSON's path."""
        return write_tables(folder, "concept_recovery", self.to_json(), self.tables())

    def verdict(self) -> str:
        """One sentence with the headline, honest about what it does not show."""
        head = self.headline
        if head["gain_over_global"] is None:
            return f"Concept recovery is undefined: no concept of {self.settings['K']} moved and could be matched."
        gain = Interval(head["gain_over_global"], head["gain_over_global_low"], head["gain_over_global_high"], 0, 0)
        meaning = (
            "is concept-specific" if gain.excludes(0) and gain.estimate > 0 else "is not shown to be concept-specific"
        )
        own, common = f"{head['R_concept']:.2f} with own shifts", f"{head['R_global']:.2f} with one global shift"
        return (
            f"Held-out concept recovery: R = {own}, {common}; difference {format_interval(gain, '+.2f')} over "
            f"{head['splits']} splits: the shift {meaning}."
        )

    @staticmethod
    def _names() -> tuple[str, ...]:
        tables = ("headline", "controls", "rows", "alpha_curve", "correlations", "splits", "agreement")
        return (*tables, "similarity", "settings", "provenance")


def concept_recovery(
    a_ND: np.ndarray,
    b_ND: np.ndarray,
    groups: Sequence[str] | np.ndarray,
    K: int,
    *,
    method: str = "kmeans",
    holdout: float = 0.5,
    splits: int = 5,
    seed: int = 0,
    controls: int = 200,
    bootstrap: int = 500,
    aggregate: str = "mean",
    min_size: int = 5,
    match: str = "assignment",
    match_centred: bool = False,
    low_margin: float = 0.05,
    alphas: Sequence[float] = ALPHAS,
    words: Readout | None = None,
    word_rule: WordRule | None = None,
    norm_mode: str = "none",
    mas: int = 50,
    parity: bool = False,
    dictionary: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> ConceptReport:
    """Measure recovery at concept level.

    Args:
        a_ND, b_ND: states of the same samples in the original and the tuned model; groups: image of each row, never
            split between the two sides.
        splits: how many random splits; the tables per concept are those of the first, the headline is the mean.
        controls: random directions; bootstrap: draws of images per split.
        match_centred: take each side's mean state off before concepts are matched. Hidden states share a large common
            part that makes all cosines alike; the paper matches without.
        words: LM head through which all concepts are read (None: no words); norm_mode: see `grounding.logits`.
        mas: most activating images per concept. parity: add upstream's normalised columns.
        dictionary: further options of `Dictionary.fit`.

    Raises:
        ValueError: rows that do not pair, too few images or rows for a split, unknown options.
    """
    a_ND, b_ND = np.asarray(a_ND), np.asarray(b_ND)
    _, images = numbered_groups(groups)
    if len(a_ND) != len(b_ND) or len(groups) != len(a_ND) or splits < 1:
        raise ValueError(f"{len(a_ND)} and {len(b_ND)} rows, {len(groups)} image ids, {splits} splits; rows must pair")
    options = Options(method, aggregate, min_size, match, match_centred, low_margin, dict(dictionary or {}))
    draws = bootstrap if aggregate == "mean" else 0
    found = [_one_split(a_ND, b_ND, groups, K, holdout, options, draws, seed + s) for s in range(splits)]
    split, own_draws, _, in_sample = found[0]
    rows = concept_rows(split, own_draws, images, parity=parity)
    columns = [image_columns(split, b_ND, groups, mas)]
    if words is not None:
        columns.append(word_columns(split, words, word_rule, norm_mode))
    rows = [row | {key: value for more in columns for key, value in more[k].items()} for k, row in enumerate(rows)]
    for k, row in enumerate(rows):
        row["R_in_sample"] = float(value) if np.isfinite(value := _own(in_sample)[k]) else None
    table = [{"control": "own", "label": HELD, **summary(_own(split)[None], split)}]
    table += control_rows(a_ND, b_ND, split, draws=controls, seed=seed)
    table.append({"control": "in_sample", "label": IN_SAMPLE, **summary(_own(in_sample)[None], in_sample)})
    settings = {"K": K, "holdout": holdout, "splits": splits, "seed": seed, "controls": controls, "bootstrap": draws}
    settings |= {**plain(options), "norm_mode": norm_mode, "mas": mas, "rows": len(a_ND), "images": images}
    settings["word_rule"] = (word_rule or WordRule.default()).to_json() if words is not None else None
    return ConceptReport(
        plain(rows),
        plain(table),
        plain(_headline(found, images)),
        plain(alpha_rows(split, alphas)),
        plain(_correlations(rows)),
        plain([_split_row(seed + s, *one) for s, one in enumerate(found)]),
        {"held_out": split.agreement, "in_sample": in_sample.agreement},
        plain(split.similarity_KJ),
        settings,
        dict(provenance or {}),
    )


Found = tuple[Split, np.ndarray, np.ndarray, Split]


def _one_split(a_ND, b_ND, groups, K, holdout, options: Options, draws: int, seed: int) -> Found:
    """(held-out split, R draws with own shifts, with the global shift, in-sample split)."""
    fit, held = split_rows(groups, holdout, seed)
    if min(len(fit), len(held)) < K:
        raise ValueError(
            f"K={K} concepts of {len(fit)} and {len(held)} rows in a split; use fewer concepts or more rows"
        )
    learnt = Dictionary.fit(a_ND[fit], K, options.method, seed, **options.dictionary)
    split = make_split(a_ND, b_ND, groups, K, fit, held, options, seed, learnt)
    in_sample = make_split(a_ND, b_ND, groups, K, fit, fit, options, seed, learnt)
    return split, *recovery_draws(a_ND, b_ND, groups, split, draws, seed), in_sample


def _own(split: Split) -> np.ndarray:
    return split.recovery(split.shifts.concepts_KD)


def _means(split: Split) -> tuple[float, float] | None:
    """Mean R over the concepts that take part: with own shifts, with the global shift."""
    if not split.ok_K.any():
        return None
    return float(np.nanmean(_own(split))), float(np.nanmean(split.recovery(split.shifts.global_D[None])))


def _headline(found: Sequence[Found], images: int) -> Row:
    """Means over splits. The draws of each split lie around its own mean, so the interval holds the spread between
    splits and that over images inside one; splits share samples, which makes it wide rather than narrow.
    """
    usable = [(means, own, common) for split, own, common, _ in found if (means := _means(split))]
    names = {"R_concept": (1, 0), "R_global": (0, 1), "gain_over_global": (1, -1)}
    head: Row = {"splits": len(usable), "images": images}
    for name, (of_own, of_common) in names.items():
        values = [of_own * means[0] + of_common * means[1] for means, _, _ in usable]
        drawn = [
            value + centred[np.isfinite(centred)] - np.nanmean(centred)
            for value, (_, own, common) in zip(values, usable, strict=True)
            if own.size and np.isfinite(centred := _row_means(of_own * own + of_common * common)).any()
        ]
        estimate = float(np.mean(values)) if values else None
        pooled = np.concatenate(drawn) if drawn else np.zeros(0)
        head |= interval_columns(name, centred_interval(estimate, pooled, items=images, runs=len(values)))
    return head


def _row_means(drawn_RK: np.ndarray) -> np.ndarray:
    """Mean of the known values of each draw; NaN where none is known."""
    known = np.isfinite(drawn_RK)
    count_R = known.sum(axis=1)
    total_R = np.where(known, drawn_RK, 0.0).sum(axis=1)
    return np.where(count_R > 0, total_R / np.maximum(count_R, 1), np.nan)


def _split_row(seed: int, split: Split, own: np.ndarray, common: np.ndarray, in_sample: Split) -> Row:
    held, inside = _means(split), _means(in_sample)
    return {
        "seed": seed,
        "R_concept": held and held[0],
        "R_global": held and held[1],
        "R_in_sample": inside and inside[0],
        "concepts": int(split.ok_K.sum()),
        "agreement": split.agreement,
        "low_margins": sum(bool(match and match.low) for match in split.matches),
    }


def _correlations(rows: Sequence[Row]) -> list[Row]:
    moved = [row for row in rows if row["status"] == "ok"]
    labels = {
        "consistency": "consistency (mean cosine of the samples' shifts with their mean)",
        "pairwise_cosine": "mean pairwise cosine of the samples' shifts",
        "magnitude": "magnitude (length of the concept's shift)",
    }
    recovered = [row["R_held"] for row in moved]
    return [
        entry
        for name, label in labels.items()
        for entry in correlate([row[name] for row in moved], recovered, label, "held-out R")
    ]
