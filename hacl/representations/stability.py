"""How much concepts and partitions change from one seed to the next: the noise under every statement about concepts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from hacl.representations.dictionaries import Dictionary
from hacl.representations.matching import match_concepts


@dataclass(frozen=True)
class Stability:
    """Agreement of every two seeds: mean cosine of matched concepts, and adjusted Rand index of the partitions."""

    method: str
    K: int
    seeds: tuple[int, ...]
    cosines: tuple[float, ...]
    agreements: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Means, standard deviations and smallest values over pairs of seeds."""
        described: dict[str, Any] = {"method": self.method, "K": self.K, "seeds": list(self.seeds)}
        for name, values in (("matched_cosine", self.cosines), ("adjusted_rand_index", self.agreements)):
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
            described[name] = {"mean": float(np.mean(values)), "sd": spread, "least": float(min(values))}
        return described


def stability(
    x_ND: np.ndarray, K: int, method: str = "kmeans", seeds: Sequence[int] = (0, 1, 2, 3, 4), **options: Any
) -> Stability:
    """Fit the dictionary with every seed and compare all pairs.

    x_ND: (N, D) hidden states; options: of `Dictionary.fit`.

    Raises:
        ValueError: fewer than two different seeds.
    """
    if len(set(seeds)) < 2:
        raise ValueError(f"stability over seeds {list(seeds)}; give at least two different ones")
    fitted = [Dictionary.fit(x_ND, K, method, seed, **options) for seed in seeds]
    partitions = [dictionary.assign(x_ND) for dictionary in fitted]
    pairs = list(combinations(range(len(fitted)), 2))
    matched = [
        float(np.mean([match.cosine for match in match_concepts(fitted[i].concepts_KD, fitted[j].concepts_KD)]))
        for i, j in pairs
    ]
    agreements = [partition_agreement(partitions[i], partitions[j]) for i, j in pairs]
    return Stability(method, K, tuple(seeds), tuple(matched), tuple(agreements))


def partition_agreement(first_N: np.ndarray, second_N: np.ndarray) -> float:
    """Adjusted Rand index of two partitions of the same rows: 1 the same, about 0 for unrelated ones."""
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(first_N, second_N))
