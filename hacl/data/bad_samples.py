"""What stands in for a training sample that cannot be read: another sample of the same data set, chosen by (seed,
epoch, place), so that ranks stay in step, resuming is exact and no other sample moves.

What may be replaced is a property of the data: it fails again on every try. Other errors of the operating system (a
server that does not answer, no permission) are a state of the machine and are raised.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

from torch.utils.data import Dataset

from hacl.data.dataset import Sample, TrainingDataset
from hacl.data.images import DamagedImage, RefusedImage
from hacl.data.schema import RecordError

REASONS = ("missing_image", "damaged_image", "refused_image", "bad_record", "bad_text")
UNLABELLED = "unlabelled"  # of samples that are trained on, but give no token to learn
TRIES = 64  # records tried in the place of one
_KINDS = (
    (FileNotFoundError, "missing_image"),
    (DamagedImage, "damaged_image"),
    (RefusedImage, "refused_image"),
    (RecordError, "bad_record"),
)


def reason_of(error: BaseException) -> str:
    """One of `REASONS`: of the first error of a known kind among `error` and its causes, else "bad_text"."""
    cause: BaseException | None = error
    while cause is not None:
        for kind, reason in _KINDS:
            if isinstance(cause, kind):
                return reason
        cause = cause.__cause__
    return "bad_text"


def drawn_place(seed: int, epoch: int, place: int, count: int) -> int:
    """Where the search for a replacement of the sample at `place` begins, in [0, count)."""
    return random.Random(f"{seed}/{epoch}/{place}/replacement").randrange(count)


def read_or_replace(read: Callable[[], Sample], others: Callable[[], Iterable[Callable[[], Sample]]]) -> Sample:
    """`read()`, or where that fails the first of `others()` that can be read; its `skipped` says what failed and why.

    Raises ValueError where none of the first `TRIES` can be read.
    """
    try:
        return read()
    except (ValueError, FileNotFoundError) as error:
        first = error
    for other in islice(others(), TRIES):
        try:
            sample = other()
        except (ValueError, FileNotFoundError):
            continue
        sample.skipped = (reason_of(first), str(first))
        return sample
    raise ValueError(f"{first}; and none of up to {TRIES} records in its place could be read") from first


class TolerantDataset(Dataset):
    """A `TrainingDataset` whose unreadable samples are replaced.

    A replacement is the first readable record, from a drawn place on and round the end, that has images if and only if
    the record it stands for has some: batches by modality stay pure.
    """

    def __init__(self, dataset: TrainingDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        self.dataset.set_epoch(epoch)

    def __getitem__(self, index: int) -> Sample:
        return read_or_replace(lambda: self.dataset[index], lambda: self._others(index))

    def _others(self, index: int) -> Iterable[Callable[[], Sample]]:
        dataset, count = self.dataset, len(self.dataset)
        start = drawn_place(dataset.seed, dataset.epoch, index, count)
        has_images = bool(dataset.records[index].images)
        for candidate in (*range(start, count), *range(start)):
            if candidate != index and bool(dataset.records[candidate].images) == has_images:
                yield lambda chosen=candidate: dataset[chosen]


class SkipNotes:
    """A collator whose batches also hold "skipped", [(reason, message)], where a sample was replaced or, for the reason
    `UNLABELLED`, has no token to learn from."""

    def __init__(self, collator: Callable[[Sequence[Sample]], dict[str, Any]]):
        self.collator = collator

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        batch = self.collator(samples)
        notes = [sample.skipped for sample in samples if sample.skipped]
        notes += [(UNLABELLED, sample.unlabelled) for sample in samples if sample.unlabelled]
        return {**batch, "skipped": notes} if notes else batch
