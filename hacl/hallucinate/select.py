"""Over-generate, then choose: k candidates of different types and places, balanced so that wording marks none."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hacl.data.records import HallucinatedCaption
from hacl.hallucinate.backends.base import Backend, BackendOption, Item
from hacl.hallucinate.balance import Balance, Pool, fit
from hacl.hallucinate.survey import Survey

CANDIDATES = 32  # asked for per caption before choosing
SAMPLE_CAPTIONS = 4000  # captions the balance is fitted on
STRENGTH = 0.75  # of the fitted weights; more of them fits the sample and misleads outside it
_TYPES_WANTED = 3
# What a candidate costs beside its words, in nats: types whose few ways of writing mark them, and each word of length.
# Unlike the fitted weights this holds in any collection.
_TYPE_COST = {"insertion": 5.0, "number": 3.0, "relation": 2.5, "attribute": 0.5}
_WORD_COST = 1.0
_ONCE = frozenset({"insertion", "number"})


class Balanced:
    """A backend that asks another one for `candidates` per caption and returns the k that `Balance` prefers."""

    options: tuple[BackendOption, ...] = ()

    def __init__(self, backend: Backend, balance: Balance, candidates: int = CANDIDATES, seed: int = 0):
        self.backend = backend
        self.balance = balance
        self.candidates = candidates
        self.seed = seed
        self.name, self.is_local_cpu = backend.name, backend.is_local_cpu

    @property
    def rejections(self) -> Counter[str]:
        return self.backend.rejections

    def settings(self) -> dict[str, Any]:
        return {**self.backend.settings(), "select": "balanced", "candidates": self.candidates}

    def propose_batch(self, items: Sequence[Item], k: int) -> list[list[HallucinatedCaption]]:
        """See `Backend`."""
        results = []
        for item, made in zip(items, self.backend.propose_batch(items, self.candidates), strict=True):
            pool = pool_of(item, made, self.seed)
            costs = [self.balance.cost(difference) for difference in pool.differences]
            results.append([pool.candidates[position] for position in choose(pool, costs, k)])
        return results

    def propose(self, record, caption_index: int, k: int) -> list[HallucinatedCaption]:
        """One caption's share of `propose_batch`."""
        return self.propose_batch([(record, caption_index)], k)[0]


def fit_balance(
    backend: Backend, survey: Survey, *, k: int, candidates: int = CANDIDATES, seed: int = 0, batch: int = 256
) -> Balance:
    """Weights for a backend from at most `SAMPLE_CAPTIONS` captions of the survey's sample."""
    items = [(record, index) for record in survey.sampled() for index in range(len(record.captions))][:SAMPLE_CAPTIONS]
    pools = []
    for start in range(0, len(items), batch):
        some = items[start : start + batch]
        pools += [
            pool_of(item, made, seed) for item, made in zip(some, backend.propose_batch(some, candidates), strict=True)
        ]
    pools = [pool for pool in pools if pool.candidates]
    if not pools:
        refused = ", ".join(f"{why} {count}" for why, count in backend.rejections.most_common()) or "none"
        raise ValueError(
            f"backend {backend.name} made no candidate for {len(items)} captions (refused: {refused}); there is "
            "nothing to balance: use another model or endpoint, or --select first to write what little it makes"
        )
    backend.rejections.clear()
    fitted = fit(pools, choose, k=k)
    return replace(fitted, weights={name: STRENGTH * weight for name, weight in fitted.weights.items()})


def pool_of(item: Item, made: Sequence[HallucinatedCaption], seed: int) -> Pool:
    """The candidates of a caption with the random order that belongs to it."""
    record, index = item
    return Pool.of(made, record.captions[index], f"select/{seed}/{record.id}/{index}")


def choose(pool: Pool, costs: Sequence[float], k: int) -> list[int]:
    """Positions of the k candidates to keep, a draw from exp(-cost) under bounds.

    Gumbel keys make a sorted order a draw without replacement. As long as others are left, no type takes more than half
    of the k, nor insertions and numbers more than one; and three types are used where the candidates have three.
    """
    keys = [
        -math.log(max(noise, 1e-12))
        - cost
        - _TYPE_COST.get(made.type, 0.0)
        - _WORD_COST * max(0, abs(change["<words>"]) - 1)
        for noise, cost, made, change in zip(pool.noise, costs, pool.candidates, pool.differences, strict=True)
    ]
    order = sorted(range(len(keys)), key=lambda at: -keys[at])
    kinds = [made.type for made in pool.candidates]
    wanted = min(_TYPES_WANTED, k, len(set(kinds)))
    most = math.ceil(k / 2)
    chosen: list[int] = []
    used: Counter[str] = Counter()
    for at in order:
        if len(chosen) == k:
            break
        missing = wanted - len(used) - (kinds[at] not in used)
        if used[kinds[at]] < (1 if kinds[at] in _ONCE else most) and k - len(chosen) - 1 >= missing:
            chosen.append(at)
            used[kinds[at]] += 1
    for at in order:
        if len(chosen) == k:
            break
        if at not in chosen:
            chosen.append(at)
    return chosen
