"""What a collection of captions is like, so that hallucinated captions become plausible, hence hard negatives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from hacl.data.records import Record
from hacl.hallucinate.english import words_of

MIN_IMAGES = 5  # an object seen in fewer images says nothing about its company


@dataclass(frozen=True)
class Cooccurrence:
    """images: name -> number of images with it; together: (name, name) in alphabetical order -> number of images;
    words: word -> how often true captions have it."""

    images: dict[str, int]
    together: dict[tuple[str, str], int]
    words: dict[str, int] = field(default_factory=dict)

    def weight(self, name: str, present: set[str]) -> float:
        """How much an absent `name` suits an image with `present`: the largest P(name | one of them), at least 0.01."""
        shares = [
            self.together.get((min(name, other), max(name, other)), 0) / self.images[other]
            for other in present
            if self.images.get(other, 0) >= MIN_IMAGES
        ]
        return max([0.01, *shares])

    def commonness(self, phrase: str) -> float:
        """Relative frequency of a phrase, judged by its rarest word. Writing words about as often as true captions do
        leaves less to tell hallucinated captions by without an image."""
        if not self.words:
            return 1.0
        return (min((self.words.get(word.text, 0) for word in words_of(phrase)), default=0) + 0.5) ** 0.7


def cooccurrence(records: Iterable[Record]) -> Cooccurrence:
    """Count the annotated objects of each image once (images without annotation do not count), and all words."""
    images: Counter[str] = Counter()
    together: Counter[tuple[str, str]] = Counter()
    words: Counter[str] = Counter()
    seen: set[str] = set()
    for record in records:
        words.update(word.text for caption in record.captions for word in words_of(caption))
        if record.objects is None or record.image_id in seen:
            continue
        seen.add(record.image_id)
        names = sorted(record.objects)
        images.update(names)
        together.update((a, b) for i, a in enumerate(names) for b in names[i + 1 :])
    return Cooccurrence(dict(images), dict(together), dict(words))
