"""A streamed source as what a DataLoader takes: batches of training samples, by number counted over all epochs.

The number alone says which records a batch holds, so workers need not agree on anything and a run goes on where it
stopped by asking for the next number. Numbers that rise are read on from an open source; any other opens it again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import Dataset

from hacl.data.dataset import Sample, TrainingDataset
from hacl.data.stream import RecordStream


class StreamDataset(Dataset):
    """The batches of one rank as lists of `Sample`s. `dataset.__getitems__([number])` is batch `number`.

    samples: a `TrainingDataset` over no records, which says how a record becomes a sample; batches_per_epoch: see
    `RecordStream.batches_per_epoch`; None is found out when the source ends.
    """

    def __init__(self, stream: RecordStream, samples: TrainingDataset, batches_per_epoch: int | None):
        self.stream, self.samples, self.batches_per_epoch = stream, samples, batches_per_epoch
        self._open: Iterator[list[tuple[str, Any]]] | None = None
        self._next = (0, 0)  # epoch and batch within it that the open source gives next

    def __len__(self) -> int:
        """Batches per epoch. Raises TypeError where they are not known."""
        if self.batches_per_epoch is None:
            raise TypeError("the number of batches is not known before the source was read to its end")
        return self.batches_per_epoch

    def __getitems__(self, numbers: Sequence[int]) -> list[Sample]:
        (number,) = numbers
        rows = self._rows(number)
        self.samples.set_epoch(self.stream.epoch)
        self.samples.records = self.stream.decode(rows)
        self.samples.pictures = [self.stream.source.pictures(row) for _, row in rows]
        return [self.samples[index] for index in range(len(rows))]

    def _rows(self, number: int) -> list[tuple[str, Any]]:
        if self.batches_per_epoch is None:
            if (rows := self._read(0, number)) is not None:
                return rows
            self.batches_per_epoch = self.stream.batches_of(sum(1 for _ in self.stream.source.rows()))
        epoch, within = divmod(number, self.batches_per_epoch)
        if (rows := self._read(epoch, within)) is None:
            raise ValueError(f"the source ended before batch {within + 1} of {self.batches_per_epoch}: it has changed")
        return rows

    def _read(self, epoch: int, within: int) -> list[tuple[str, Any]] | None:
        """Undecoded rows of a batch, None where the source ends before it."""
        if self._open is None or self._next[0] != epoch or self._next[1] > within:
            self.stream.epoch, self.stream.start = epoch, within
            self._open, self._next = self.stream.undecoded(), (epoch, within)
        for rows in self._open:
            found, self._next = self._next[1], (epoch, self._next[1] + 1)
            if found == within:
                return rows
        self._open = None
        return None
