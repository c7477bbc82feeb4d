"""What a choice is worth on captions that its weights were not fitted on: half of the photographs fit, half are judged.

A choice fitted on the very captions that are judged balances them by construction; its leak says nothing about others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hacl.data.records import HallucinatedCaption, Record
from hacl.hallucinate.backends.base import Backend, Item
from hacl.hallucinate.balance import Balance, Pool, fit
from hacl.hallucinate.leak import Leak, Pairs, tfidf_leak
from hacl.hallucinate.select import CANDIDATES, choose, pool_of
from hacl.hallucinate.survey import Survey

WANTED_TYPES = 3


@dataclass(frozen=True)
class HeldOut:
    """Of one strength of balancing. complete: share of captions with k candidates of three types; auc, low, high: mean
    and range over the splits (two for each seed); paired: mean; by_type: mean AUC."""

    strength: float
    complete: float
    auc: float
    low: float
    high: float
    paired: float
    splits: int
    by_type: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def halves(records: Sequence[Record], seed: int) -> tuple[list[Record], list[Record]]:
    """Records by a hash of seed and photograph."""
    parts: tuple[list[Record], list[Record]] = ([], [])
    for record in records:
        digest = hashlib.sha256(f"{seed}/{record.image_id}".encode()).digest()
        parts[digest[0] % 2].append(record)
    return parts


def held_out(
    records: Sequence[Record],
    make_backend: Callable[[Survey], Backend],
    *,
    strengths: Iterable[float],
    seeds: Iterable[int],
    k: int = 4,
    candidates: int = CANDIDATES,
) -> list[HeldOut]:
    """The curve of yield and TF-IDF leak over strengths (0: no weights, costs of types and length alone).

    For each seed and each half: survey and phrases, and the weights, from the other half; candidates of this half
    alone are chosen and probed. Nothing of the judged captions is known beforehand.
    """
    strengths = list(strengths)
    leaks: dict[float, list[Leak]] = {strength: [] for strength in strengths}
    shares: dict[float, list[float]] = {strength: [] for strength in strengths}
    for seed in seeds:
        parts = halves(records, seed)
        for known, judged in (parts, parts[::-1]):
            survey = Survey()
            for record in known:
                survey.add(record)
            backend = make_backend(Survey.from_json(survey.to_json()))
            fitted = fit([pool for _, pool in _pools(backend, known, candidates) if pool.candidates], choose, k=k)
            pools = _pools(backend, judged, candidates)
            for strength in strengths:
                leak, share = _judge(pools, fitted, strength, k, seed)
                leaks[strength].append(leak)
                shares[strength].append(share)
    return [_summary(strength, leaks[strength], shares[strength]) for strength in strengths]


def _pools(backend: Backend, records: Sequence[Record], candidates: int) -> list[tuple[Item, Pool]]:
    items = [(record, index) for record in records for index in range(len(record.captions))]
    made = backend.propose_batch(items, candidates)
    return [(item, pool_of(item, some, 0)) for item, some in zip(items, made, strict=True)]


def _judge(
    pools: Sequence[tuple[Item, Pool]], fitted: Balance, strength: float, k: int, seed: int
) -> tuple[Leak, float]:
    rows, complete = [], 0
    for (record, index), pool in pools:
        costs = [strength * fitted.cost(difference) for difference in pool.differences]
        kept: list[HallucinatedCaption] = [pool.candidates[at] for at in choose(pool, costs, k)]
        complete += len(kept) >= k and len({made.type for made in kept}) >= min(WANTED_TYPES, k)
        rows += [(record.captions[index], made.text, made.type, record.image_id) for made in kept]
    return tfidf_leak(Pairs(*map(list, zip(*rows, strict=True))), seed=seed), complete / max(1, len(pools))


def _summary(strength: float, leaks: Sequence[Leak], shares: Sequence[float]) -> HeldOut:
    values = [leak.auc for leak in leaks]
    kinds = sorted({kind for leak in leaks for kind in leak.by_type})
    by_type = {
        kind: float(np.mean([leak.by_type[kind][0] for leak in leaks if kind in leak.by_type])) for kind in kinds
    }
    paired = float(np.mean([leak.paired for leak in leaks]))
    return HeldOut(
        strength, float(np.mean(shares)), float(np.mean(values)), min(values), max(values), paired, len(values), by_type
    )
