"""A local causal language model fills slots: words of the same type, of which it keeps those it finds likeliest.

Types take turns, since the likeliest words of all are those of the types that change least (relation, attribute). Every
slot of a caption gets fillers drawn by their frequency in the collection; the model scores the edited captions in
batches, and a candidate must come close to the caption's own likelihood. Nothing outside the slot changes.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from hacl.data.records import HallucinatedCaption
from hacl.hallucinate.backends.base import BackendOption, Item, caption_of, checked_types
from hacl.hallucinate.backends.checks import check_text, keep_different
from hacl.hallucinate.backends.slots import slots, word_types
from hacl.hallucinate.context import ImageContext
from hacl.hallucinate.english import Replacement, apply
from hacl.hallucinate.lexicon import Lexicon
from hacl.hallucinate.survey import Survey
from hacl.hallucinate.vocabulary import default_lexicon


class LanguageModelBackend:
    """model: folder of a causal LM and its tokenizer; drop: most nats by which a candidate may be less likely than its
    caption; fillers: words tried per slot; batch_size: captions scored at once; device: of the model."""

    name = "lm"
    is_local_cpu = False
    options: ClassVar[tuple[BackendOption, ...]] = (
        BackendOption("model", "folder of a causal language model (required)"),
        BackendOption("device", "cpu or cuda (default: cuda where there is one)"),
        BackendOption("batch_size", "captions scored at once", 64, int),
        BackendOption("fillers", "words tried in each slot", 8, int),
        BackendOption("drop", "most nats by which a candidate may be less likely than its caption", 6.0, float),
    )

    def __init__(
        self,
        *,
        model: str | None = None,
        seed: int = 0,
        types: Sequence[str] | None = None,
        survey: Survey | None = None,
        device: str | None = None,
        batch_size: int = 64,
        fillers: int = 8,
        drop: float = 6.0,
        lexicon: Lexicon | None = None,
    ):
        if not model:
            raise ValueError("backend lm: name the folder of a causal language model (option model)")
        from hacl.hallucinate.backends.scoring import TextScorer

        self.scorer = TextScorer(model, device=device, batch_size=batch_size)
        self.seed, self.types = seed, checked_types(types)
        self.fillers, self.drop = fillers, drop
        self.lexicon = default_lexicon() if lexicon is None else lexicon
        self.cooccurrence = None if survey is None else survey.cooccurrence
        self.words = word_types(self.lexicon)
        self.rejections: Counter[str] = Counter()

    def settings(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "types": sorted(self.types),
            "model": self.scorer.identity,
            "fillers": self.fillers,
            "drop": self.drop,
        }

    def propose_batch(self, items: Sequence[Item], k: int) -> list[list[HallucinatedCaption]]:
        """See `Backend`. Scores are rounded to 0.01 nat, so that padding does not decide between candidates."""
        drafts = [self._drafts(item) for item in items]
        texts = [caption_of(item) for item in items]
        flat = [made.text for some in drafts for made in some]
        scores = self.scorer.log_likelihoods([*texts, *flat])
        base, rest = scores[: len(texts)], iter(scores[len(texts) :])
        results = []
        for some, own in zip(drafts, base, strict=True):
            losses = {made.text: round(own - next(rest), 2) for made in some}
            fluent = [made for made in some if losses[made.text] <= self.drop]
            self.rejections["not fluent"] += len(some) - len(fluent)
            results.append(keep_different(in_turns(fluent, losses), k))
        return results

    def _drafts(self, item: Item) -> list[HallucinatedCaption]:
        record, index = item
        caption_of(item)
        context = ImageContext(record, index, self.lexicon, self.cooccurrence)
        draw = random.Random(f"lm/{self.seed}/{record.id}/{index}")
        made = []
        for at, kind in slots(context.words, self.words):
            if kind.split()[0] not in self.types:
                continue
            for new in self._draw(kind, draw):
                word = context.words[at]
                if new == word.text:
                    continue
                text, _ = apply(context.text, [Replacement(word.start, word.end, new)])
                checked = check_text(context, text, self.name, kind=kind.split()[0])
                if isinstance(checked, str):
                    self.rejections[checked] += 1
                else:
                    made.append(checked)
        return made

    def _draw(self, kind: str, draw: random.Random) -> list[str]:
        """Different words of a type, the commoner in the collection the likelier."""
        counts = {} if self.cooccurrence is None else self.cooccurrence.words
        keys = {word: draw.random() ** (1 / (counts.get(word, 0) + 0.1)) for word in self.words[kind]}
        return sorted(keys, key=lambda word: (-keys[word], word))[: self.fillers]


def in_turns(made: Sequence[HallucinatedCaption], losses: Mapping[str, float]) -> list[HallucinatedCaption]:
    """The best of every type, then the second best of every type, and so on; the smallest loss first in each turn."""
    ranked = sorted(made, key=lambda item: (losses[item.text], item.text))
    turns: Counter[str] = Counter()
    placed = []
    for item in ranked:
        placed.append((turns[item.type], item))
        turns[item.type] += 1
    return [item for _, item in sorted(placed, key=lambda pair: pair[0])]
