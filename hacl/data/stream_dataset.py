"""A streamed source as what a DataLoader takes: batches of training samples, by number counted over all epochs.

The number alone says which records a batch holds, so workers need not agree on anything and a run goes on where it
stopped by asking for the next number. Numbers that rise are read on from an open source; any other opens it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

from torch.utils.data import Dataset

from hacl.data.bad_samples import drawn_place, read_or_replace
from hacl.data.dataset import Sample, TrainingDataset
from hacl.data.stream import RecordStream

_FIRST = 1024  # rows that replacements come from as long as the number of all rows is unknown


class StreamDataset(Dataset):
    """The batches of one rank as lists of `Sample`s. `dataset.__getitems__([number])` is batch `number`.

    samples: a `TrainingDataset` over no records, which says how a record becomes a sample; batches_per_epoch: see
    `RecordStream.batches_per_epoch`; None is found out when the source ends. chunk: numbers are of parts of batches,
    so many samples each, `parts` to a batch; of a short batch the last parts are empty. tolerant: a row that
    gives no sample is replaced by the first readable one of the source from a drawn row on (`hacl.data.bad_samples`).
    """

    def __init__(
        self,
        stream: RecordStream,
        samples: TrainingDataset,
        batches_per_epoch: int | None,
        *,
        chunk: int | None = None,
        tolerant: bool = False,
    ):
        self.stream, self.samples, self.batches_per_epoch = stream, samples, batches_per_epoch
        self.tolerant = tolerant
        self.chunk = chunk or stream.batch_size
        self.parts = -(-stream.batch_size // self.chunk)
        self._held: tuple[int, list[tuple[str, Any]]] = (-1, [])  # the batch of the last part, by number
        self._open: Iterator[list[tuple[str, Any]]] | None = None
        self._next = (0, 0)  # epoch and batch within it that the open source gives next

    def __len__(self) -> int:
        """Batches per epoch. Raises TypeError where they are not known."""
        if self.batches_per_epoch is None:
            raise TypeError("the number of batches is not known before the source was read to its end")
        return self.batches_per_epoch

    def __getitems__(self, numbers: Sequence[int]) -> list[Sample]:
        (number,) = numbers
        batch, part = divmod(number, self.parts)
        if self._held[0] != batch:
            self._held = batch, self._rows(batch)
        rows = self._held[1][part * self.chunk : (part + 1) * self.chunk]
        self.samples.set_epoch(self.stream.epoch)
        first = part * self.chunk
        return [self._sample(batch, index, where, row) for index, (where, row) in enumerate(rows, start=first)]

    def _sample(self, number: int, index: int, where: str, row: Any) -> Sample:
        if not self.tolerant:
            return self._strict(index, where, row)
        return read_or_replace(lambda: self._strict(index, where, row), lambda: self._others(number, index))

    def _strict(self, index: int, where: str, row: Any) -> Sample:
        source = self.stream.source
        return self.samples.sample(index, source.decode(where, row), source.pictures(row))

    def _others(self, number: int, index: int) -> Iterator[Callable[[], Sample]]:
        """The rows from a drawn one on and round the end; before the length is known, from one of the first."""
        stream = self.stream
        size = stream.batch_size * stream.ranks
        place = number * size + stream.rank + stream.ranks * index
        count = _FIRST if self.batches_per_epoch is None else self.batches_per_epoch * size
        start = drawn_place(self.samples.seed, stream.epoch, place, count)
        for where, row in chain(stream.source.rows(start), stream.source.rows()):
            yield lambda where=where, row=row: self._strict(index, where, row)

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
