"""Which samples form each global batch, and which rank gets which: a pure function of (seed, epoch).

Every rank builds the same plan and takes its share, so ranks always have the same number of batches. Resuming skips
batches of the plan; nothing depends on workers.
"""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Iterator, Sequence

from torch.utils.data import DataLoader, Sampler

MEGABATCH = 32  # steps that are sorted by length together: long enough to group, short enough to stay random


def plan_epoch(
    count: int,
    global_batch: int,
    *,
    seed: int,
    epoch: int,
    accumulation: int = 1,
    grouping: str = "none",
    lengths: Sequence[int] | None = None,
    is_text_only: Sequence[bool] | None = None,
) -> list[list[int]]:
    """Shuffled indices of `count` samples in global batches, of which `accumulation` in a row are one step.

    Steps are planned first and then cut, so what a step holds does not depend on how it is cut. An incomplete last step
    is dropped. Where the samples are too few for one step, there is one with the global batches they fill, or with all
    of them where they fill none.

    grouping "length": samples of one step have similar lengths; "modality": also text-only samples and samples with
    images in separate steps (what is left over of both is mixed).
    """
    generator = random.Random(f"{seed}/{epoch}")
    order = list(range(count))
    generator.shuffle(order)
    size = global_batch * accumulation
    if count <= size:
        return _chunk(order[: count // global_batch * global_batch] or order, global_batch)
    if grouping == "none":
        return _chunk(order[: count // size * size], global_batch)
    if grouping == "length":
        steps = _by_length(order, size, lengths)
    else:
        steps, rest = [], []
        for wanted in (True, False):
            part = [i for i in order if is_text_only[i] == wanted]
            whole = len(part) // size * size
            steps += _by_length(part[:whole], size, lengths)
            rest += part[whole:]
        steps += _chunk(rest, size)
    steps = [step for step in steps if len(step) == size]
    generator.shuffle(steps)
    return [batch for step in steps for batch in _chunk(step, global_batch)]


def plan_evaluation(count: int, global_batch: int, ranks: int) -> list[list[int]]:
    """Every sample exactly once, in order, in nearly equal global batches with at least one sample per rank."""
    if count < ranks:
        raise ValueError(f"{count} validation samples cannot be shared by {ranks} ranks; use fewer ranks or more data")
    batches = min(-(-count // global_batch), count // ranks)
    bounds = [count * b // batches for b in range(batches + 1)]
    return [list(range(start, stop)) for start, stop in zip(bounds, bounds[1:], strict=False)]


def _chunk(order: Sequence[int], size: int) -> list[list[int]]:
    return [list(order[start : start + size]) for start in range(0, len(order), size)]


def _by_length(order: Sequence[int], size: int, lengths: Sequence[int] | None) -> list[list[int]]:
    if lengths is None:
        raise ValueError("grouping by length needs the length of every sample")
    batches = []
    for block in _chunk(order, size * MEGABATCH):
        batches += _chunk(sorted(block, key=lambda i: -lengths[i]), size)
    return batches


class GlobalBatchSampler(Sampler[list[int]]):
    """Batch sampler of one rank. `set_epoch` also tells the dataset, whose captions are drawn per epoch."""

    def __init__(self, plan, *, rank: int, ranks: int, dataset=None, chunk: int | None = None):
        """plan: epoch -> list of global batches (the same on every rank). chunk: give a rank's share of a batch in
        parts of so many samples, as many parts on every rank: where shares differ the last one may be empty."""
        self.plan, self.rank, self.ranks, self.dataset = plan, rank, ranks, dataset
        self.chunk = chunk
        self.epoch = 0
        self._batches = plan(0)

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self._batches = epoch, self.plan(epoch)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return sum(len(self._starts(batch)) for batch in self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._batches:
            if len(batch) < self.ranks:
                raise ValueError(f"a batch of {len(batch)} samples cannot be shared by {self.ranks} ranks")
            share, starts = batch[self.rank :: self.ranks], self._starts(batch)
            for start in starts:
                yield share[start : start + starts.step]

    def _starts(self, batch: Sequence[int]) -> range:
        """Where the parts of a share begin, by the largest share of a rank."""
        largest = -(-len(batch) // self.ranks)
        return range(0, largest, self.chunk or largest)


class NumberedBatches(Sampler[list[int]]):
    """Batch sampler over a `StreamDataset`: the numbers of an epoch's batches (or parts of them), one by one, after
    earlier epochs'."""

    def __init__(self, per_epoch: int):
        self.per_epoch, self.epoch = per_epoch, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.per_epoch

    def __iter__(self) -> Iterator[list[int]]:
        first = self.epoch * self.per_epoch
        return ([number] for number in range(first, first + self.per_epoch))


class EpochDataLoader(DataLoader):
    """DataLoader whose `set_epoch` reaches its batch sampler, as Trainer expects.

    torch tells of a worker's death by an error from a signal handler, wherever the main thread is just then. Without
    that handler it is found, seconds later, where the next batch is asked for, and ranks can agree on what to do.
    """

    def __iter__(self) -> Iterator:
        former = signal.getsignal(signal.SIGCHLD)
        iterator = super().__iter__()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, former)
        return iterator

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)
