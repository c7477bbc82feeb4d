"""The steps of a comparison on captured features, one function each: fit, ground, shift vectors, recovery, drift.

Every step takes what `load_pairs` returns, fits the norm handling to the layer, and names both models in its result.
Each result has `to_json()` (no NaN), `tables()` (rows for CSV) and, but for grounding and drift, a `save`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hacl.compare.concept_recovery import ConceptReport, concept_recovery
from hacl.compare.drift import Drift, drift
from hacl.compare.linear_maps import map_rows
from hacl.compare.paired_features import PairedFeatures, load_pairs
from hacl.compare.plain import Row, plain
from hacl.compare.shift_vectors import ShiftVectors, shift_vectors
from hacl.representations.dictionaries import Dictionary
from hacl.representations.grounding import WordRule, dictionary_overlap, ground_words, most_activating, norm_modes
from hacl.representations.stability import Stability, stability

SIDES = ("original", "tuned")


@dataclass(frozen=True)
class Grounding:
    """rows: one per concept: size, words, most activating images (ids, and files as the samples named them).

    summary: mean share of words that concepts have in common (lower is better), fit error.
    """

    rows: list[Row]
    summary: Row
    settings: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return plain({"settings": self.settings, "summary": self.summary, "concepts": self.rows})

    def tables(self) -> dict[str, list[Row]]:
        return {"concepts": self.rows}


def fit_concepts(
    features: PairedFeatures, K: int, *, side: str = "original", method: str = "kmeans", seed: int = 0, **options: Any
) -> Dictionary:
    """Concepts of one model's states; options: of `Dictionary.fit`."""
    provenance = {**features.provenance, "side": side, "model": features.provenance[_checked(side)]}
    return Dictionary.fit(_states(features, side), K, method, seed, provenance=provenance, **options)


def concept_stability(
    features: PairedFeatures, K: int, *, side: str = "original", seeds: Sequence[int] = (0, 1, 2, 3, 4), **options: Any
) -> Stability:
    """How much the concepts depend on the seed; options: method, and those of `Dictionary.fit`."""
    return stability(_states(features, side), K, seeds=seeds, **options)


def ground_concepts(
    features: PairedFeatures,
    dictionary: Dictionary,
    *,
    side: str = "original",
    rule: WordRule | None = None,
    norm_mode: str | None = None,
    images: int = 5,
) -> Grounding:
    """Words and images of a dictionary's concepts; norm_mode: None takes the one that fits the layer.

    Words are read through the original's LM head on either side.

    Raises:
        ValueError: a dictionary of another layer or selector.
    """
    _same_place(features, dictionary.provenance)
    states_ND = _states(features, side)
    sizes_K = dictionary.sizes(states_ND)
    norm_mode = norm_mode or norm_modes(features.layer)[0]
    words = [None] * len(sizes_K)
    if features.readout is not None:
        words = ground_words(dictionary.concepts_KD, features.readout, rule, norm_mode=norm_mode)
    top = most_activating(dictionary.activations(states_ND), images, features.groups.tolist())
    rows = [
        {
            "concept": k,
            "n": int(sizes_K[k]),
            "words": words[k],
            "top_samples": [features.rows[row].sample for row in top[k]],
            "top_images": [features.rows[row].image_id for row in top[k]],
            "top_files": [features.rows[row].image for row in top[k] if features.rows[row].image],
        }
        for k in range(len(sizes_K))
    ]
    shared = dictionary_overlap(words) if features.readout is not None else None
    settings = {**features.provenance, "side": side, "norm_mode": norm_mode, "method": dictionary.method}
    settings["word_rule"] = (rule or WordRule.default()).to_json()
    return Grounding(plain(rows), {"dictionary_overlap": shared, "fit_error": dictionary.fit_error}, settings)


def measure_shift(features: PairedFeatures, dictionary: Dictionary, **options: Any) -> ShiftVectors:
    """Shift vectors by the concepts of the original; options: of `shift_vectors`.

    Raises:
        ValueError: a dictionary of another layer or selector, or of the tuned model.
    """
    _same_place(features, dictionary.provenance)
    if dictionary.provenance.get("side", "original") != "original":
        raise ValueError("shifts are averaged over the original's concepts; fit the dictionary with side='original'")
    assignment_N, K = dictionary.assign(features.a_ND), len(dictionary.concepts_KD)
    provenance = {**features.provenance, "method": dictionary.method}
    options = {"groups": features.groups, "provenance": provenance, **options}
    return shift_vectors(features.a_ND, features.b_ND, assignment_N, K, **options)


def shift_words(features: PairedFeatures, shifts: ShiftVectors, rule: WordRule | None = None) -> list[Row]:
    """Words that each shift makes likelier and less likely; empty where the store holds no LM head."""
    if features.readout is None:
        return []
    return shifts.words(features.readout, rule, norm_mode=norm_modes(features.layer)[1])


def shift_map(
    features: PairedFeatures, shifts: ShiftVectors, dictionary: Dictionary, *, limit: int = 2000, seed: int = 0
) -> list[Row]:
    """The samples' shifts along the two strongest directions, for a plot; at most `limit` of them, drawn by seed."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(features.a_ND))[:limit])
    delta_nD = features.b_ND[rows].astype(np.float64) - features.a_ND[rows]
    x_nR = delta_nD @ shifts.basis_RD[:2].T
    concept_n = dictionary.assign(features.a_ND[rows])
    named = zip(rows.tolist(), concept_n.tolist(), x_nR.tolist(), strict=True)
    return [
        {"sample": features.rows[row].sample, "image_id": features.rows[row].image_id, "concept": k}
        | dict(zip(("x", "y"), [*place, None, None][:2], strict=True))
        for row, k, place in named
    ]


def map_kinds(features: PairedFeatures, K: int, **options: Any) -> list[Row]:
    """How much of the change is one shift, shifts per concept, a rotation, a linear map; options: of `map_rows`."""
    return map_rows(features.a_ND, features.b_ND, features.groups, K, **options)


def recover_concepts(features: PairedFeatures, K: int, **options: Any) -> ConceptReport:
    """Concept-level recovery with controls; options: of `concept_recovery`."""
    fitting = {"words": features.readout, "norm_mode": norm_modes(features.layer)[0], "provenance": features.provenance}
    return concept_recovery(features.a_ND, features.b_ND, features.groups, K, **{**fitting, **options})


def drift_of_stores(
    folders: Sequence[Path | str],
    K: int,
    *,
    layer: int | str,
    selector: str | None = None,
    names: Sequence[str] | None = None,
    **options: Any,
) -> Drift:
    """Drift over the captures of several checkpoints; the first folder is what the others are compared with.

    Only rows that all of them have are compared. names: of the checkpoints; by default those of the folders.

    Raises:
        ValueError: fewer than two stores, stores that do not belong together, or no common row.
    """
    if len(folders) < 2:
        raise ValueError(f"drift over {len(folders)} checkpoints; give two or more")
    loaded = [load_pairs(folders[0], folder, layer=layer, selector=selector) for folder in folders[1:]]
    keys = [[(row.sample, row.key) for row in features.rows] for features in loaded]
    common = set(keys[0]).intersection(*keys[1:])
    if not common:
        raise ValueError(f"{folders[0]}: no row that all {len(folders)} captures have")
    kept = [np.array([key in common for key in one]) for one in keys]
    states = [loaded[0].a_ND[kept[0]], *(features.b_ND[rows] for features, rows in zip(loaded, kept, strict=True))]
    fitting = {"words": loaded[0].readout, "norm_mode": norm_modes(loaded[0].layer)[0]}
    names = names or [Path(folder).name for folder in folders]
    return drift(states, names, loaded[0].groups[kept[0]], K, **{**fitting, **options})


def _checked(side: str) -> str:
    if side not in SIDES:
        raise ValueError(f"side {side!r}; known: {', '.join(SIDES)}")
    return side


def _states(features: PairedFeatures, side: str) -> np.ndarray:
    return features.a_ND if _checked(side) == "original" else features.b_ND


def _same_place(features: PairedFeatures, provenance: dict[str, Any]) -> None:
    for key in ("layer", "selector"):
        if provenance.get(key, features.provenance[key]) != features.provenance[key]:
            raise ValueError(
                f"dictionary of {key} {provenance[key]!r}, features of {features.provenance[key]!r}; fit it on these"
            )
