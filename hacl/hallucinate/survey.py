"""What a first pass over a collection learns about it: sums over records and a sample of them, so parts can be counted
apart and merged. Memory: the vocabulary's and the sample's."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from heapq import nsmallest
from typing import Any

from hacl.data.records import Record, parse_record, record_to_json
from hacl.hallucinate.cooccurrence import Cooccurrence
from hacl.hallucinate.english import words_of

SAMPLE_RECORDS = 4000  # the records whose ids have the smallest hashes: enough to balance a choice of words by
_VERSION = 1


@dataclass
class Survey:
    """records, captions: how many; images, together and words: see `Cooccurrence`; sample: hash of the id -> record, at
    most `SAMPLE_RECORDS` once cut."""

    records: int = 0
    captions: int = 0
    images: Counter[str] = field(default_factory=Counter)
    together: Counter[tuple[str, str]] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)
    sample: dict[str, Record] = field(default_factory=dict)

    def add(self, record: Record, *, new_image: bool = True) -> None:
        """Count a record. new_image: whether its image's objects are to be counted, which is once per image."""
        self.records += 1
        self.captions += len(record.captions)
        self.words.update(word.text for caption in record.captions for word in words_of(caption))
        if record.captions:
            self.sample[hashlib.sha256(record.id.encode()).hexdigest()] = record
            if len(self.sample) >= 2 * SAMPLE_RECORDS:
                self._cut()
        if record.objects is not None and new_image:
            self.add_objects(sorted(record.objects))

    def add_objects(self, names: list[str]) -> None:
        """Count the objects of an image, in alphabetical order."""
        self.images.update(names)
        self.together.update((a, b) for i, a in enumerate(names) for b in names[i + 1 :])

    def merge(self, other: Survey) -> None:
        """Add what was counted over other records."""
        self.records += other.records
        self.captions += other.captions
        self.images.update(other.images)
        self.together.update(other.together)
        self.words.update(other.words)
        self.sample.update(other.sample)
        self._cut()

    def sampled(self) -> list[Record]:
        """The sample in the order of its hashes."""
        self._cut()
        return [self.sample[key] for key in sorted(self.sample)]

    def _cut(self) -> None:
        if len(self.sample) > SAMPLE_RECORDS:
            self.sample = {key: self.sample[key] for key in nsmallest(SAMPLE_RECORDS, self.sample)}

    @cached_property
    def cooccurrence(self) -> Cooccurrence:
        """The counts a generator needs to find plausible absent objects; ask only after the last `add`."""
        return Cooccurrence(dict(self.images), dict(self.together), dict(self.words))

    def to_json(self) -> dict[str, Any]:
        """The same for the same records in any order; `from_json` gives an equal survey."""
        return {
            "version": _VERSION,
            "records": self.records,
            "captions": self.captions,
            "images": dict(sorted(self.images.items())),
            "together": [[a, b, count] for (a, b), count in sorted(self.together.items())],
            "words": dict(sorted(self.words.items())),
            "sample": [record_to_json(record) for record in self.sampled()],
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Survey:
        """Raises ValueError for a survey of another version."""
        if row.get("version") != _VERSION:
            raise ValueError(f"survey of version {row.get('version')}, this is version {_VERSION}; make it again")
        survey = cls(row["records"], row["captions"], Counter(row["images"]))
        survey.together.update({(a, b): count for a, b, count in row["together"]})
        survey.words.update(row["words"])
        for index, raw in enumerate(row["sample"]):
            record = parse_record(raw, where=f"survey:sample[{index}]")
            survey.sample[hashlib.sha256(record.id.encode()).hexdigest()] = record
        return survey
