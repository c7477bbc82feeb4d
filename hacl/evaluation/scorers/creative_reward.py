"""Reward of a pairwise judge: how much better a reply is than a reference, asked in both orders of presentation.

Five grades as in Creation-MMBench (arXiv 2503.14478): -100, -50, 0, 50, 100 for the reply, averaged over the verdicts
of both orders. Verdicts that could not be parsed are left out of the mean and counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from hacl.evaluation.scorers.base import ImageSums, InputError, divide, listed
from hacl.evaluation.scorers.reading import iter_rows, require

# For the reply shown second (B); the reply shown first gets the negative.
GRADES = {"A>>B": -100, "A>B": -50, "A=B": 0, "B=A": 0, "B>A": 50, "A<B": 50, "B>>A": 100, "A<<B": 100}
ORDERS = {"reference_first": 1, "candidate_first": -1}
METRICS = ("reward", "reward_reference_first", "reward_candidate_first")


def reward_of(verdict: Any, order: str) -> int | None:
    """-100 to 100 for the candidate, None for a verdict outside the five grades.

    Args:
        verdict: "A>>B", "A>B", "A=B", "B>A" or "B>>A", A being the reply shown first; brackets and blanks do not count.
        order: "reference_first" or "candidate_first".
    """
    grade = GRADES.get(re.sub(r"[\[\]\s]", "", verdict).upper()) if isinstance(verdict, str) else None
    return None if grade is None else ORDERS[order] * grade


class Verdicts:
    """Verdicts on replies, by id and order.

    Args:
        source: path of a JSONL file, or rows, with ``id``, ``order`` and ``verdict``.

    Raises:
        InputError: an unknown order, or the same id and order twice.
    """

    def __init__(self, source: Any) -> None:
        self.rewards: dict[str, dict[str, int | None]] = {}
        for where, row in iter_rows(source, "verdict"):
            key, order = str(require(row, "id", where, (str, int))), require(row, "order", where)
            if order not in ORDERS:
                raise InputError(f"{where}: order {order!r}; use {' or '.join(ORDERS)}")
            entry = self.rewards.setdefault(key, {})
            if order in entry:
                raise InputError(f"{where}: id {key!r} has two verdicts of order {order}")
            entry[order] = reward_of(row.get("verdict"), order)

    def of(self, key: str) -> dict[str, int | None]:
        """Order to reward, of one id; empty if it was not judged."""
        return self.rewards.get(key, {})


def reward_metrics(
    images: Mapping[str, str], verdicts: Verdicts, sums: ImageSums, allow_missing: bool, warnings: list[str]
) -> tuple[dict[str, float | None], dict[str, int]]:
    """Metrics and counts over all replies, with the evidence added to ``sums``.

    Args:
        images: id of each reply to its image.

    Returns:
        ``reward`` over all parsed verdicts, the same per order (a difference is the judge's preference for a place),
        ``win_rate`` (share of parsed verdicts above 0), ``parse_rate``, ``order_agreement`` (share of replies with
        both verdicts whose signs agree).

    Raises:
        InputError: a reply without verdicts in both orders, unless ``allow_missing``.
    """
    lacking = [key for key in images if len(verdicts.of(key)) < len(ORDERS)]
    if lacking:
        message = f"{len(lacking)} of {len(images)} replies lack a verdict in one or both orders: {listed(lacking)}"
        if not allow_missing:
            raise InputError(f"{message}; judge both orders, or pass --allow-missing")
        warnings.append(message)
    by_order: dict[str, list[int]] = {order: [] for order in ORDERS}
    asked = agreeing = both = 0
    for key, image_id in images.items():
        rewards = verdicts.of(key)
        asked += len(rewards)
        parsed = {order: reward for order, reward in rewards.items() if reward is not None}
        for order, reward in parsed.items():
            by_order[order].append(reward)
            sums.add(image_id, "reward", reward, 1)
            sums.add(image_id, f"reward_{order}", reward, 1)
        if len(parsed) == len(ORDERS):
            both += 1
            agreeing += len({_sign(reward) for reward in parsed.values()}) == 1
    everything = [*by_order["reference_first"], *by_order["candidate_first"]]
    metrics = {"reward": _mean(everything, "reward", warnings)}
    metrics |= {f"reward_{order}": _mean(found, f"reward_{order}", warnings) for order, found in by_order.items()}
    wins = sum(reward > 0 for reward in everything)
    metrics["win_rate"] = divide(wins, len(everything), "win_rate", warnings)
    metrics["parse_rate"] = divide(len(everything), asked, "parse_rate", warnings)
    metrics["order_agreement"] = divide(agreeing, both, "order_agreement", warnings)
    if asked > len(everything):
        warnings.append(f"{asked - len(everything)} of {asked} verdicts could not be parsed and are left out")
    return metrics, {"verdicts": asked, "parsed_verdicts": len(everything)}


def _mean(values: Iterable[int], name: str, warnings: list[str]) -> float | None:
    values = list(values)
    return divide(sum(values), len(values), name, warnings)


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)
