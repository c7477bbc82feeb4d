"""Which objects occur together in annotated images: makes an absent object plausible, hence a hard negative."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from hacl.data.records import Record

MIN_IMAGES = 5  # an object seen in fewer images says nothing about its company


@dataclass(frozen=True)
class Cooccurrence:
    """images: name -> number of images with it; together: (name, name) in alphabetical order -> number of images."""

    images: dict[str, int]
    together: dict[tuple[str, str], int]

    def weight(self, name: str, present: set[str]) -> float:
        """How much an absent `name` suits an image with `present`: the largest P(name | one of them), at least 0.01."""
        shares = [
            self.together.get((min(name, other), max(name, other)), 0) / self.images[other]
            for other in present
            if self.images.get(other, 0) >= MIN_IMAGES
        ]
        return max([0.01, *shares])


def cooccurrence(records: Iterable[Record]) -> Cooccurrence:
    """Count the annotated objects of each image once; records without annotation do not count."""
    images: Counter[str] = Counter()
    together: Counter[tuple[str, str]] = Counter()
    seen: set[str] = set()
    for record in records:
        if record.objects is None or record.image_id in seen:
            continue
        seen.add(record.image_id)
        names = sorted(record.objects)
        images.update(names)
        together.update((a, b) for i, a in enumerate(names) for b in names[i + 1 :])
    return Cooccurrence(dict(images), dict(together))
