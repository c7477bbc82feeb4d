"""Weights that make chosen hallucinated captions use words, pairs of words and lengths as often as true captions do.

A linear probe on counts cannot tell two collections apart whose mean features agree: the gradient of the logistic loss
at zero is the difference of the means, and the loss is convex. So the weights w are those of the maximum-entropy
distribution over candidates, p(candidate) ~ exp(prior - w . (features(candidate) - features(caption))), under which the
mean difference vanishes; they minimise its convex dual by gradient steps on a sample of the collection, with the real
choice in the loop.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hacl.data.records import HallucinatedCaption
from hacl.hallucinate.english import words_of

_VERSION = 1
_LEAST = 3  # a feature in fewer differences of the sample cannot be learnt from, nor balanced


@dataclass(frozen=True)
class Balance:
    """weights: feature -> how much its use in place of others speaks against a candidate; sample: captions they were
    fitted on; before, after: root mean square of the mean differences (scaled) without and with the weights."""

    weights: dict[str, float] = field(default_factory=dict)
    sample: int = 0
    before: float = 0.0
    after: float = 0.0

    def cost(self, difference: Counter[str]) -> float:
        """What the weights hold against a candidate that differs from its caption so."""
        return sum(self.weights.get(name, 0.0) * count for name, count in difference.items())

    def to_json(self) -> dict[str, Any]:
        rounded = {name: round(value, 5) for name, value in sorted(self.weights.items()) if abs(value) > 1e-4}
        return {
            "version": _VERSION,
            "sample": self.sample,
            "before": self.before,
            "after": self.after,
            "weights": rounded,
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Balance:
        """Raises ValueError for weights of another version."""
        if row.get("version") != _VERSION:
            raise ValueError(f"balance of version {row.get('version')}, this is version {_VERSION}; make it again")
        return cls(row["weights"], row["sample"], row["before"], row["after"])


def features(text: str) -> Counter[str]:
    """Words, pairs of words (with and without one-letter words), and length, as counts."""
    words = [word.text for word in words_of(text)]
    long = [word for word in words if len(word) > 1]
    found = Counter(words)
    found.update(f"{a} {b}" for a, b in zip(words, words[1:], strict=False))
    if len(long) < len(words):
        found.update(f"{a}_{b}" for a, b in zip(long, long[1:], strict=False))
    found["<words>"] = len(words)
    found["<characters>"] = len(text) / 5
    return found


def difference(text: str, caption: str, kind: str) -> Counter[str]:
    """Features of a text minus those of the caption it was made from, zeros left out.

    Length and single words count for their type too, so that no type pays for what marks another.
    """
    result = features(text)
    result.subtract(features(caption))
    for name in [name for name in result if " " not in name and "_" not in name]:
        result[f"{kind}:{name}"] = result[name]
    return Counter({name: count for name, count in result.items() if count})


@dataclass(frozen=True)
class Pool:
    """Candidates of one caption with their differences, and keys that put them in a random order (a draw of the
    record's own, so that the choice depends on nothing else)."""

    candidates: Sequence[HallucinatedCaption]
    differences: Sequence[Counter[str]]
    noise: Sequence[float]

    @classmethod
    def of(cls, candidates: Sequence[HallucinatedCaption], caption: str, seed: str) -> Pool:
        draw = random.Random(seed)
        noise = [draw.gammavariate(1, 1) for _ in candidates]
        return cls(candidates, [difference(made.text, caption, made.type) for made in candidates], noise)


def fit(pools: Sequence[Pool], choose, *, k: int, steps: int = 60, rate: float = 0.3, decay: float = 0.002) -> Balance:
    """The weights for a sample of captions.

    choose(pool, costs, k) -> positions chosen, as in the real run; rate: of the first step, falling as 1/sqrt(step);
    decay: of the weights per step.
    """
    import numpy as np
    from scipy import sparse

    counts: Counter[str] = Counter()
    for pool in pools:
        for diff in pool.differences:
            counts.update(diff.keys())
    names = [name for name, count in counts.items() if count >= _LEAST]
    index = {name: at for at, name in enumerate(sorted(names))}
    offsets, rows, columns, values = [0], [0], [], []
    for pool in pools:
        for diff in pool.differences:
            for name, count in diff.items():
                if name in index:
                    columns.append(index[name])
                    values.append(count)
            rows.append(len(columns))
        offsets.append(len(rows) - 1)
    shape = (len(rows) - 1, len(index))
    matrix = sparse.csr_matrix((np.array(values, float), np.array(columns, int), np.array(rows)), shape)
    scale = 1 / np.sqrt(np.asarray(matrix.power(2).mean(axis=0)).ravel() * k + 1e-3)
    w, total = np.zeros(len(index)), np.zeros(len(index))
    before = after = 0.0
    for step in range(steps):
        costs = matrix @ w
        chosen = [
            start + position
            for pool, start, stop in zip(pools, offsets, offsets[1:], strict=False)
            for position in choose(pool, costs[start:stop], k)
        ]
        mean = np.asarray(matrix[chosen].mean(axis=0)).ravel() if chosen else np.zeros(len(index))
        size = float(np.sqrt(np.mean((mean * scale) ** 2)))
        before, after = (size, size) if step == 0 else (before, size)
        w = (1 - decay) * w + rate / (1 + step) ** 0.5 * mean * scale**2 * len(chosen) / (len(chosen) + 50)
        if step >= steps // 2:
            total += w
    average = total / max(1, steps - steps // 2)
    return Balance(dict(zip(sorted(names), average.tolist(), strict=True)), len(pools), before, after)
