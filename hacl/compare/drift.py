"""How concepts move over the checkpoints of one run: every checkpoint against the first.

Dynamics of arXiv 2501.03012, section 4.1: some concepts are refined, others vanish or emerge, and both the average
cosine and the T-Overlap of matched concepts fall over training.

Shapes: N samples, D hidden size, K concepts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hacl.compare.plain import Row, interval_columns, plain
from hacl.compare.resampling import centred_interval, image_draws, numbered_groups
from hacl.compare.shift_sums import ShiftSums
from hacl.representations.dictionaries import Dictionary
from hacl.representations.grounding import WordRule, ground_words, overlap
from hacl.representations.matching import match_concepts
from hacl.representations.readout import Readout
from hacl.representations.stability import partition_agreement


@dataclass(frozen=True)
class Drift:
    """rows: one per checkpoint, the first included. concepts: one per checkpoint and concept of the first."""

    rows: list[Row]
    concepts: list[Row]
    settings: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return plain({"settings": self.settings, "checkpoints": self.rows, "concepts": self.concepts})

    def tables(self) -> dict[str, list[Row]]:
        return {"checkpoints": self.rows, "concepts": self.concepts}


def drift(
    states: Sequence[np.ndarray],
    names: Sequence[str],
    groups: Sequence[str] | np.ndarray,
    K: int,
    *,
    method: str = "kmeans",
    seed: int = 0,
    words: Readout | None = None,
    word_rule: WordRule | None = None,
    norm_mode: str = "none",
    bootstrap: int = 200,
) -> Drift:
    """Compare the states of the same samples at several checkpoints with those at the first.

    states: one (N, D) matrix per checkpoint, row by row the same samples; names: of the checkpoints; words: the LM head
    through which all concepts are read, the first checkpoint's.

    Per checkpoint: mean cosine of matched concepts (assignment, and nearest), mean T-Overlap (denominator: words of the
    first checkpoint's concept), partition agreement, magnitude and relative magnitude of the global shift with
    intervals over images, mean length of the samples' shifts, share explained by the global shift.

    Raises:
        ValueError: fewer than two checkpoints, or states that do not pair.
    """
    shapes = {np.shape(one) for one in states}
    if len(states) < 2 or len(shapes) != 1 or len(names) != len(states):
        raise ValueError(
            f"drift of {len(states)} checkpoints with shapes {sorted(shapes)}; needs two or more, all alike"
        )
    first_ND = np.asarray(states[0])
    if len(groups) != len(first_ND):
        raise ValueError(f"{len(groups)} image ids for {len(first_ND)} rows; give one each")
    base = Dictionary.fit(first_ND, K, method, seed)
    base_N = base.assign(first_ND)
    base_words = _words(base, words, word_rule, norm_mode)
    rows, concepts = [], []
    for step, (name, one) in enumerate(zip(names, states, strict=True)):
        state_ND = np.asarray(one)
        now = base if step == 0 else Dictionary.fit(state_ND, K, method, seed)
        matches = match_concepts(base.concepts_KD, now.concepts_KD)
        nearest = match_concepts(base.concepts_KD, now.concepts_KD, rule="nearest")
        now_words = _words(now, words, word_rule, norm_mode)
        shared = [overlap(base_words[m.a], now_words[m.b]).percent if words else None for m in matches]
        known = [value for value in shared if value is not None]
        row: Row = {
            "step": step,
            "checkpoint": name,
            "cosine": float(np.mean([match.cosine for match in matches])),
            "cosine_nearest": float(np.mean([match.cosine for match in nearest])),
            "t_overlap": float(np.mean(known)) if known else None,
            "agreement": partition_agreement(base_N, now.assign(state_ND)),
        }
        rows.append(row | _movement(first_ND, state_ND, groups, bootstrap, seed))
        for match, percent in zip(matches, shared, strict=True):
            found = {"concept": match.a, "matched": match.b, "cosine": match.cosine, "margin": match.margin}
            said = {"words": now_words[match.b]} if words else {}
            concepts.append({"step": step, "checkpoint": name, **found, "t_overlap": percent, **said})
    settings = {"K": K, "method": method, "seed": seed, "norm_mode": norm_mode, "bootstrap": bootstrap}
    return Drift(plain(rows), plain(concepts), settings)


def _words(dictionary: Dictionary, readout: Readout | None, rule: WordRule | None, norm_mode: str) -> list[list[str]]:
    if readout is None:
        return [[] for _ in dictionary.concepts_KD]
    return ground_words(dictionary.concepts_KD, readout, rule, norm_mode=norm_mode)


def _movement(first_ND, state_ND, groups, bootstrap: int, seed: int) -> Row:
    image_N, images = numbered_groups(groups)
    by_image = ShiftSums.of(first_ND, state_ND, image_N, images)
    whole = by_image.weighted(np.ones((1, images)))
    stats = whole.statistics()
    drawn = by_image.weighted(image_draws(images, bootstrap, seed)).statistics() if bootstrap else {}
    found: Row = {}
    for name in ("magnitude", "relative_magnitude"):
        draws = drawn.get(name, np.zeros(0))
        found |= interval_columns(name, centred_interval(float(stats[name][0]), draws, items=images))
    mean_length = float(whole.length_K[0] / whole.count_K[0])
    return found | {"mean_length": mean_length, "explained": float(stats["explained"][0])}
