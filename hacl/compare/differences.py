"""Vectors from the differences between two sets of states of one model, and which of them to keep.

Coarse: the difference of the sets' means. Fine: the differences between their concepts (arXiv 2501.03012, section 5).
Upstream stores c_i - c_j under "i to j" (mshukor/xl-vlms@a599fe9); here "i to j" is u_j - u_i. No torch here.

Shapes: N states, D hidden size, K and J concepts of source and target, M vectors, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hacl.representations.grounding import logits, norm_modes, plain_word
from hacl.representations.readout import Readout


def coarse_vector(source_ND: np.ndarray, target_ND: np.ndarray) -> np.ndarray:
    """mean(target) - mean(source), fp64 (D). Raises ValueError for an empty set or unlike widths."""
    for name, states in (("source", source_ND), ("target", target_ND)):
        if np.ndim(states) != 2 or not len(states):
            raise ValueError(f"{name} states of shape {np.shape(states)}; expected (rows, width) with at least one row")
    if source_ND.shape[1] != target_ND.shape[1]:
        raise ValueError(f"source states of width {source_ND.shape[1]}, target states of {target_ND.shape[1]}")
    return target_ND.mean(0, dtype=np.float64) - source_ND.mean(0, dtype=np.float64)


def concept_differences(source_KD: np.ndarray, target_JD: np.ndarray | None = None) -> np.ndarray:
    """All differences between concepts, fp64 (K, J, D): entry [i, j] leads from source concept i to target concept j.

    target_JD: the same concepts where not given; then [i, j] = -[j, i] and [i, i] = 0.
    """
    source = np.asarray(source_KD, dtype=np.float64)
    target = source if target_JD is None else np.asarray(target_JD, dtype=np.float64)
    return target[None] - source[:, None]


def word_scores(vectors_MD: np.ndarray, readout: Readout, words: Iterable[str], layer: int | str) -> np.ndarray:
    """How much each vector raises the target words (M): mean logit of their tokens above the mean of all logits, in
    standard deviations of these.

    Only words that are one token count (with or without a leading blank). Differences before the final norm go through
    its linear part ("fold", see `grounding.logits`).

    Raises:
        ValueError: none of the words is a token.
    """
    wanted = {word.lower() for word in words}
    ids = [i for i, token in enumerate(readout.tokens) if plain_word(token) in wanted]
    if not ids:
        raise ValueError(f"none of the {len(wanted)} target words is one token of this vocabulary; choose by effect")
    found_MV = logits(vectors_MD, readout, norm_modes(layer)[1])
    spread = np.maximum(found_MV.std(axis=1), 1e-12)
    return (found_MV[:, ids].mean(axis=1) - found_MV.mean(axis=1)) / spread


def best_targets(scores_KJ: np.ndarray) -> list[tuple[int, int, float]]:
    """For each source concept its best target: (source, target, score), the best score first."""
    chosen = [(i, int(row.argmax()), float(row.max())) for i, row in enumerate(np.asarray(scores_KJ))]
    return sorted(chosen, key=lambda entry: -entry[2])


@dataclass(frozen=True)
class AnswerEffect:
    """What a vector did to the answers.

    targets: those whose count rose most, as one cluster; score: their smallest rise minus the largest rise of the
    others considered; gains: the rises looked at, the largest first.
    """

    targets: tuple[str, ...]
    score: float
    gains: tuple[tuple[str, int], ...]


def answer_effect(before: Sequence[str], after: Sequence[str], top: int = 5) -> AnswerEffect:
    """How singly a vector favours some answers (arXiv 2501.03012v1, appendix B.3).

    Counts of answers after minus before; the `top` largest rises, parted into two clusters on the line (k-means with
    k = 2, solved exactly); the upper cluster is what the vector steers to. No rise at all has score 0 and no target.
    """
    gains = Counter(after)
    gains.subtract(Counter(before))
    ranked = sorted(((a, n) for a, n in gains.items() if n > 0), key=lambda entry: (-entry[1], entry[0]))[:top]
    if not ranked:
        return AnswerEffect((), 0.0, ())
    counts = np.array([n for _, n in ranked], dtype=float)
    size = upper_cluster(counts) if len(counts) > 1 else 1
    lower = counts[size] if size < len(counts) else 0.0
    return AnswerEffect(tuple(a for a, _ in ranked[:size]), float(counts[size - 1] - lower), tuple(ranked))


def upper_cluster(descending: np.ndarray) -> int:
    """How many of the values, the largest first, form the upper of two clusters: exact k-means on a line."""
    cuts = range(1, len(descending))
    costs = [sum(((part - part.mean()) ** 2).sum() for part in (descending[:c], descending[c:])) for c in cuts]
    return 1 + int(np.argmin(costs))


def keep_by_effect(effects: Mapping[str, AnswerEffect], count: int, distinct: bool = True) -> list[str]:
    """Names of the vectors with the highest scores; with `distinct` one for each set of target answers."""
    kept: list[str] = []
    seen: set[tuple[str, ...]] = set()
    for name, effect in sorted(effects.items(), key=lambda entry: -entry[1].score):
        targets = tuple(sorted(effect.targets))
        if effect.score > 0 and len(kept) < count and not (distinct and targets in seen):
            kept.append(name)
            seen.add(targets)
    return kept
