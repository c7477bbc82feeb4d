"""The baseline: a random word of the same type in a random place, checked only for being another text."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

from hacl.data.records import HallucinatedCaption
from hacl.hallucinate.backends.base import BackendOption, Item, caption_of, checked_types
from hacl.hallucinate.backends.checks import keep_different
from hacl.hallucinate.backends.slots import slots, word_types
from hacl.hallucinate.english import words_of
from hacl.hallucinate.lexicon import Lexicon
from hacl.hallucinate.survey import Survey
from hacl.hallucinate.vocabulary import default_lexicon


class NaiveBackend:
    """Random swaps: what a generator without grammar, plausibility and truth would make. For comparison."""

    name = "naive"
    is_local_cpu = True
    options: ClassVar[tuple[BackendOption, ...]] = ()

    def __init__(
        self,
        *,
        seed: int = 0,
        types: Sequence[str] | None = None,
        survey: Survey | None = None,
        lexicon: Lexicon | None = None,
    ):
        self.seed, self.types = seed, checked_types(types)
        self.words = word_types(default_lexicon() if lexicon is None else lexicon)
        self.rejections: Counter[str] = Counter()

    def settings(self) -> dict[str, Any]:
        return {"seed": self.seed, "types": sorted(self.types)}

    def propose_batch(self, items: Sequence[Item], k: int) -> list[list[HallucinatedCaption]]:
        """See `Backend`."""
        return [self._propose(item, k) for item in items]

    def _propose(self, item: Item, k: int) -> list[HallucinatedCaption]:
        caption, (record, index) = caption_of(item), item
        draw = random.Random(f"naive/{self.seed}/{record.id}/{index}")
        words = words_of(caption)
        places = [(at, kind) for at, kind in slots(words, self.words) if kind.split()[0] in self.types]
        made = []
        for _ in range(4 * k if places else 0):
            at, kind = draw.choice(places)
            new = draw.choice(self.words[kind])
            if new == words[at].text:
                continue
            text = caption[: words[at].start] + new + caption[words[at].end :]
            span = (words[at].start, words[at].start + len(new))
            made.append(HallucinatedCaption(text, kind.split()[0], span, self.name, index))
        return keep_different(made, k)
