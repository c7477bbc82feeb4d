"""Ids of the records in a batch, carried beside its tensors from the loader to the trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

KEY = "record_ids"


class RecordIds:
    """A collator that also says which records the batch holds. Works with samples that have a `record_id`."""

    def __init__(self, collate: Callable[[Sequence[Any]], Any]):
        self.collate = collate

    def __call__(self, samples: Sequence[Any]) -> Any:
        batch = self.collate(samples)
        if isinstance(batch, dict):
            batch[KEY] = [sample.record_id for sample in samples if hasattr(sample, "record_id")]
        return batch


def take_ids(batches: Sequence[dict]) -> list[list[str]]:
    """Record ids of every batch, taken out of them: a model takes tensors only."""
    return [batch.pop(KEY, []) for batch in batches]
