"""A streamed source as what a DataLoader takes: batches of training samples, whose place survives a restart.

`StreamLoader` counts the batches that were handed out, not those that workers prepared ahead, so its state is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from hacl.data.dataset import Sample, TrainingDataset
from hacl.data.stream import RecordStream


class StreamDataset(IterableDataset):
    """The batches of one rank as lists of `Sample`s; workers of a DataLoader share them.

    samples: a `TrainingDataset` over no records, which says how a record becomes a sample.
    """

    def __init__(self, stream: RecordStream, samples: TrainingDataset):
        self.stream, self.samples = stream, samples

    def __iter__(self) -> Iterator[list[Sample]]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        self.samples.set_epoch(self.stream.epoch)
        for records in self.stream.batches(worker, workers):
            self.samples.records = records
            yield [self.samples[index] for index in range(len(records))]


class StreamLoader:
    """An epoch of collated batches per iteration; the next iteration is the next epoch.

    collate: list of `Sample`s -> batch; num_workers: processes. `state_dict` after any batch says where to go on.
    """

    def __init__(
        self,
        dataset: StreamDataset,
        collate: Callable[[Sequence[Sample]], Any],
        *,
        num_workers: int = 0,
        **options: Any,
    ):
        self.stream = dataset.stream
        self._loader = DataLoader(dataset, batch_size=None, collate_fn=collate, num_workers=num_workers, **options)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            self.stream.start += 1
            yield batch
        self.stream.set_epoch(self.stream.epoch + 1)

    def set_epoch(self, epoch: int) -> None:
        self.stream.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        return self.stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stream.load_state_dict(state)
