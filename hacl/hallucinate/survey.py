"""What a first pass over a collection learns about it: sums over records, so parts can be counted apart and merged."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hacl.data.records import Record
from hacl.hallucinate.cooccurrence import Cooccurrence
from hacl.hallucinate.english import words_of


@dataclass
class Survey:
    """records, captions: how many; images, together and words: see `Cooccurrence`. Memory: the vocabulary's."""

    records: int = 0
    captions: int = 0
    images: Counter[str] = field(default_factory=Counter)
    together: Counter[tuple[str, str]] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)

    def add(self, record: Record, *, new_image: bool = True) -> None:
        """Count a record. new_image: whether its image's objects are to be counted, which is once per image."""
        self.records += 1
        self.captions += len(record.captions)
        self.words.update(word.text for caption in record.captions for word in words_of(caption))
        if record.objects is None or not new_image:
            return
        names = sorted(record.objects)
        self.images.update(names)
        self.together.update((a, b) for i, a in enumerate(names) for b in names[i + 1 :])

    def merge(self, other: Survey) -> None:
        self.records += other.records
        self.captions += other.captions
        self.images.update(other.images)
        self.together.update(other.together)
        self.words.update(other.words)

    @property
    def cooccurrence(self) -> Cooccurrence:
        return Cooccurrence(dict(self.images), dict(self.together), dict(self.words))

    def to_json(self) -> dict[str, Any]:
        """The same for the same records in any order."""
        return {
            "records": self.records,
            "captions": self.captions,
            "images": dict(sorted(self.images.items())),
            "together": [[a, b, count] for (a, b), count in sorted(self.together.items())],
            "words": dict(sorted(self.words.items())),
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Survey:
        return cls(
            row["records"],
            row["captions"],
            Counter(row["images"]),
            Counter({(a, b): count for a, b, count in row["together"]}),
            Counter(row["words"]),
        )
