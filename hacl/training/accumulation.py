"""The micro-batches of one step: as many on every rank, and the counts over all of them that losses are divided by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hacl.data.collate import GENERATION, HALLUCINATED_GENERATION
from hacl.losses.gather import Gather

PAIR_COUNTS = "pair_counts"


def label_tokens(batches: Sequence[dict[str, Tensor]]) -> int:
    """Tokens of these micro-batches that the generation loss is a mean over."""
    return sum(int((b["sequence_kind"][b["label_sequence"]] == GENERATION).sum()) for b in batches)


def fill(batches: list[dict[str, Tensor]], count: int, empty: Callable[[], dict]) -> list[dict[str, Tensor]]:
    """These micro-batches, and behind them batches of no samples until there are `count`.

    Under DDP and ZeRO every module call of a rank waits for that of the others, so a rank with fewer micro-batches has
    to go on calling. A batch of no samples, which `empty` makes, runs every module and adds nothing to a loss, the
    queue or a count.
    """
    return batches + [empty() for _ in range(count - len(batches))]


def add_pair_counts(batches: Sequence[dict[str, Tensor]], gather: Gather, device: torch.device) -> None:
    """Write into each micro-batch how many (true, hallucinated) pairs it has, and the step, over all ranks; (2,) int64.

    As integers, since floating-point tensors of a batch are cast to the dtype of a DeepSpeed engine. With several ranks
    all must call this together, with equally many micro-batches.
    """
    pairs = torch.tensor([int((b["sequence_kind"] == HALLUCINATED_GENERATION).sum()) for b in batches], device=device)
    pairs = gather.sum(pairs)
    for batch, count in zip(batches, pairs, strict=True):
        batch[PAIR_COUNTS] = torch.stack([count, pairs.sum()])


def pair_share(batch: dict[str, Tensor]) -> Tensor | None:
    """The share of a micro-batch in the pairs of its step, fp64 scalar; None where they were not counted.

    A likelihood margin is the mean over the pairs of a micro-batch; weighted so, their sum is the mean over the step,
    however it is cut.
    """
    if PAIR_COUNTS not in batch:
        return None
    count, total = batch[PAIR_COUNTS].double()
    return count / total.clamp_min(1)
