"""The interface of a generator of hallucinated captions, and how one declares its own options."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from hacl.data.schema import HALLUCINATION_TYPES, HallucinatedCaption, Record

Item = tuple[Record, int]  # a record and the index of the caption to edit


@dataclass(frozen=True)
class BackendOption:
    """An option of one backend. name: of the constructor's keyword; kind: bool makes a flag of it."""

    name: str
    help: str
    default: Any = None
    kind: type = str
    choices: tuple[str, ...] = ()


class Backend(Protocol):
    """Makes hallucinated captions.

    is_local_cpu: work of this process' cores alone, so that several processes are faster; options: its own keywords;
    rejections: candidates that were thought of and refused, by reason, over the backend's life.
    """

    name: str
    is_local_cpu: bool
    options: ClassVar[tuple[BackendOption, ...]]
    rejections: Counter[str]

    def settings(self) -> dict[str, Any]:
        """What makes the output what it is, as JSON values without keys or secrets."""

    def propose_batch(self, items: Sequence[Item], k: int) -> list[list[HallucinatedCaption]]:
        """Up to k different hallucinated captions of each item, in order.

        A function of settings and item alone, never of the other items of the batch.
        """


def caption_of(item: Item) -> str:
    """The caption to edit. Raises ValueError where the record has none of that index."""
    record, index = item
    if not 0 <= index < len(record.captions):
        raise ValueError(f"record {record.id!r} has {len(record.captions)} caption(s), none at {index}")
    return record.captions[index]


def checked_types(types: Sequence[str] | None) -> frozenset[str]:
    """The hallucination types to make, all by default. Raises ValueError for an unknown one."""
    unknown = set(types or ()) - set(HALLUCINATION_TYPES)
    if unknown:
        raise ValueError(f"unknown hallucination types {sorted(unknown)}; use some of {HALLUCINATION_TYPES}")
    return frozenset(types or HALLUCINATION_TYPES)
