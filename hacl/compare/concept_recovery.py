"""Concept-level recovery: how much of the tuned model's concepts the original's concepts plus shifts give back.

Held out, with every control in the same table. Of each concept k with its shift D_k and its match j:
R_k = 1 - |u_j - (u_k + D_k)|^2 / |u_j - u_k|^2, where u_k and D_k come from some images and u_j from others. Beside it
stands the transfer of the shift to held-out samples, which needs no second dictionary (`hacl.compare.transfer`).

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
from hacl.compare.headline import Pair, gain_columns, known_mean
from hacl.compare.plain import Row, plain, write_tables
from hacl.compare.recovery_split import Options, Split, make_split, recovery_draws, tuned_again
from hacl.compare.resampling import image_draws, numbered_groups, split_rows
from hacl.compare.transfer import transfer
from hacl.evaluation.statistics import Interval, format_interval
from hacl.representations.dictionaries import Dictionary
from hacl.representations.grounding import WordRule
from hacl.representations.readout import Readout

SPECIFIC = 0.01  # gain in R under which a difference beyond noise is still none worth the name
ALPHAS = tuple(round(0.25 * step, 2) for step in range(9))
IN_SAMPLE = (
    "in-sample (tautology: with k-means and alpha = 1 the shifted concept is the tuned mean of the same samples; it "
    "tests whether the partition is stable, not whether the shift carries over)"
)
AGAIN = (
    "reference: the tuned model's own concepts, learnt on the fitted images, in place of the shifted ones; what is "
    "missing to 1 is the dictionary's instability"
)
HELD = "own concept's shift, tuned concepts learnt on held-out images"


@dataclass(frozen=True)
class ConceptReport:
    """What `concept_recovery` found.

    Attributes:
        rows: one per concept of the first split (see `concept_rows`). controls: own shift first, then every control,
            the two references last. headline: held-out R of the concepts' own shifts minus that of the global shift,
            with its interval, and both parts; the same of the transfer to held-out samples. alpha_curve, correlations,
            splits: tables of that name. agreement: partition agreement (adjusted Rand index). similarity: cosine of
            each original concept (row) with each tuned one of the first split. settings, provenance: what made it.
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
        specific = gain.low is not None and gain.low > 0 and gain.estimate >= SPECIFIC
        meaning = "is concept-specific" if specific else "is not shown to be concept-specific"
        own, common = f"{head['R_concept']:.2f} with own shifts", f"{head['R_global']:.2f} with one global shift"
        return (
            f"Held-out concept recovery: R = {own}, {common}; difference {format_interval(gain, '+.2f')} over "
            f"{head['splits']} splits: the shift {meaning}. On held-out samples of the original's own concepts "
            f"the shifts take {_percent(head['transfer_concept'])} of the mean movement, one global shift "
            f"{_percent(head['transfer_global'])}."
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
    image_N, images = numbered_groups(groups)
    if len(a_ND) != len(b_ND) or len(groups) != len(a_ND) or splits < 1:
        raise ValueError(f"{len(a_ND)} and {len(b_ND)} rows, {len(groups)} image ids, {splits} splits; rows must pair")
    options = Options(method, aggregate, min_size, match, match_centred, low_margin, dict(dictionary or {}))
    draws = bootstrap if aggregate == "mean" else 0
    weight_RG = image_draws(images, draws, seed)
    found = [_one_split(a_ND, b_ND, image_N, K, holdout, options, weight_RG, seed + s) for s in range(splits)]
    first = found[0]
    split, in_sample = first.split, first.in_sample
    rows = concept_rows(split, first.recovery[2], images, parity=parity)
    columns = [image_columns(split, b_ND, groups, mas)]
    if words is not None:
        columns.append(word_columns(split, words, word_rule, norm_mode))
    rows = [row | {key: value for more in columns for key, value in more[k].items()} for k, row in enumerate(rows)]
    for k, row in enumerate(rows):
        row |= {
            "R_in_sample": _own(in_sample)[k],
            "transfer": first.transfer[0][k],
            "transfer_global": first.transfer[1][k],
        }
    table = [{"control": "own", "label": HELD, **summary(_own(split)[None], split)}]
    table += control_rows(a_ND, b_ND, split, draws=controls, seed=seed)
    again = tuned_again(split, in_sample, options)[None]
    table.append({"control": "tuned_again", "label": AGAIN, **summary(again, split)})
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
        plain([_split_row(one) for one in found]),
        {"held_out": split.agreement, "in_sample": in_sample.agreement},
        plain(split.similarity_KJ),
        settings,
        dict(provenance or {}),
    )


@dataclass(frozen=True)
class _Found:
    """One split: held out and in-sample, recovery and transfer with own and global shifts, and their draws."""

    seed: int
    split: Split
    in_sample: Split
    recovery: Pair
    transfer: Pair


def _one_split(a_ND, b_ND, image_N, K, holdout, options: Options, weight_RG: np.ndarray, seed: int) -> _Found:
    fit, held = split_rows(image_N, holdout, seed)
    if min(len(fit), len(held)) < K:
        raise ValueError(
            f"K={K} concepts of {len(fit)} and {len(held)} rows in a split; use fewer concepts or more rows"
        )
    learnt = Dictionary.fit(a_ND[fit], K, options.method, seed, **options.dictionary)
    split = make_split(a_ND, b_ND, image_N, K, fit, held, options, seed, learnt)
    in_sample = make_split(a_ND, b_ND, image_N, K, fit, fit, options, seed, learnt)
    recovered = (_own(split), split.recovery(split.shifts.global_D[None]))
    recovered += recovery_draws(a_ND, b_ND, image_N, split, weight_RG)
    carried = transfer(a_ND, b_ND, image_N, split, weight_RG, min_size=options.min_size)
    return _Found(seed, split, in_sample, recovered, carried)


def _percent(value: float | None) -> str:
    return "an unknown share" if value is None else f"{100 * value:.0f}%"


def _own(split: Split) -> np.ndarray:
    return split.recovery(split.shifts.concepts_KD)


def _headline(found: Sequence[_Found], images: int) -> Row:
    recovered, carried = [one.recovery for one in found], [one.transfer for one in found]
    head: Row = {"splits": sum(np.isfinite(one[0]).any() for one in recovered), "images": images}
    head |= gain_columns(recovered, ("R_concept", "R_global", "gain_over_global"), images)
    return head | gain_columns(carried, ("transfer_concept", "transfer_global", "transfer_gain"), images)


def _split_row(one: _Found) -> Row:
    measured = {"R_concept": one.recovery[0], "R_global": one.recovery[1], "R_in_sample": _own(one.in_sample)}
    measured |= {"transfer_concept": one.transfer[0], "transfer_global": one.transfer[1]}
    return {
        "seed": one.seed,
        **{name: float(known_mean(values_K[None])[0]) for name, values_K in measured.items()},
        "concepts": int(one.split.ok_K.sum()),
        "agreement": one.split.agreement,
        "low_margins": sum(bool(match and match.low) for match in one.split.matches),
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
