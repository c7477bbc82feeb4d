"""Hallucinated captions from word lists: one edit per caption, checked against everything known about the image."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from hacl.data.records import HallucinatedCaption, Record
from hacl.hallucinate.backends.base import BackendOption, Item, caption_of, checked_types
from hacl.hallucinate.context import Candidate, ImageContext
from hacl.hallucinate.cooccurrence import Cooccurrence
from hacl.hallucinate.edits_contradictions import contradiction_edits
from hacl.hallucinate.edits_counts import count_edits
from hacl.hallucinate.edits_exchange import exchange_edits
from hacl.hallucinate.edits_nouns import insertion_edits, object_edits
from hacl.hallucinate.edits_numbers import number_edits
from hacl.hallucinate.edits_transplant import transplant_edits
from hacl.hallucinate.edits_verbs import verb_edits
from hacl.hallucinate.edits_words import attribute_edits, phrase_edits
from hacl.hallucinate.filters import DEFAULT_FILTERS, Filter, first_reason
from hacl.hallucinate.image_text import REASON, ImageTextFilter
from hacl.hallucinate.lexicon import Lexicon
from hacl.hallucinate.phrase_bank import phrase_bank
from hacl.hallucinate.survey import Survey
from hacl.hallucinate.tagger import TAGGERS, SpacyTagger
from hacl.hallucinate.vocabulary import default_lexicon

_EDITS = (
    object_edits,
    insertion_edits,
    number_edits,
    attribute_edits,
    phrase_edits,
    exchange_edits,
    verb_edits,
    transplant_edits,
    count_edits,
    contradiction_edits,
)
# Types with fewer places in captions are drawn more readily, so that no type swamps the others.
_TYPE_WEIGHTS = {"number": 3.0, "attribute": 3.0, "action": 2.5, "relation": 2.0, "object": 1.5, "insertion": 0.4}


class LexicalHallucinator:
    """Offline generator of hallucinated captions.

    lexicon: words and rules (default: photographs); seed: of every draw; types: which types may be made (default: all
    that the lexicon has rules for); cooccurrence: statistics that make absent objects plausible; filters: name ->
    filter. `rejections` counts refused candidates by reason over the generator's life.
    """

    name = source = "lexical"
    is_local_cpu = True
    options: ClassVar[tuple[BackendOption, ...]] = (
        BackendOption(
            "tagger", "what finds nouns and verbs: the built-in rules, or spaCy (extra)", "rules", choices=TAGGERS
        ),
        BackendOption("spacy_pipeline", "package or folder of the spaCy pipeline", "en_core_web_sm"),
        BackendOption("image_text", "folder or name of an open_clip model: drop what the image supports"),
        BackendOption("image_text_weights", "file with the weights, where image_text is a name"),
        BackendOption("image_text_margin", "a cosine must be lower than the caption's by this", 0.0, float),
        BackendOption("image_root", "folder that image paths start from (for image_text)"),
    )

    def __init__(
        self,
        *,
        lexicon: Lexicon | None = None,
        seed: int = 0,
        types: Sequence[str] | None = None,
        cooccurrence: Cooccurrence | None = None,
        survey: Survey | None = None,
        filters: Mapping[str, Filter] = DEFAULT_FILTERS,
        tagger: str = "rules",
        spacy_pipeline: str = "en_core_web_sm",
        image_text: str | None = None,
        image_text_weights: str | None = None,
        image_text_margin: float = 0.0,
        image_root: str | None = None,
    ):
        self.lexicon = default_lexicon() if lexicon is None else lexicon
        self.seed = seed
        self.types = checked_types(types)
        self.cooccurrence = survey.cooccurrence if cooccurrence is None and survey is not None else cooccurrence
        if tagger not in TAGGERS:
            raise ValueError(f"tagger={tagger}: use one of {', '.join(TAGGERS)}")
        self.tagger = SpacyTagger(spacy_pipeline) if tagger == "spacy" else None
        self.image_text = None
        if image_text is not None:
            given = {"image_root": image_root, "weights": image_text_weights, "margin": image_text_margin}
            self.image_text = ImageTextFilter(image_text, **given)
        self.bank = None if survey is None else phrase_bank(survey.sampled(), self.lexicon, self.tagger)
        self.filters = filters
        self.rejections: Counter[str] = Counter()

    def settings(self) -> dict[str, Any]:
        made_with = {"seed": self.seed, "types": sorted(self.types)}
        if self.tagger is not None:
            made_with["tagger"] = self.tagger.name
        return made_with | (self.image_text.settings() if self.image_text is not None else {})

    def propose_batch(self, items: Sequence[Item], k: int) -> list[list[HallucinatedCaption]]:
        """See `Backend`."""
        return [self.propose(record, index, k) for record, index in items]

    def propose(self, record: Record, caption_index: int, k: int) -> list[HallucinatedCaption]:
        """Up to k different hallucinated captions of one caption, a function of (seed, record id, caption index).

        Types that have places in the caption take turns. Fewer than k where the caption does not offer more.
        """
        caption_of((record, caption_index))
        draw = random.Random(f"{self.seed}/{record.id}/{caption_index}")
        context = ImageContext(record, caption_index, self.lexicon, self.cooccurrence, self.bank, self.tagger)
        by_type: dict[str, list[Candidate]] = {}
        for candidate in self.accepted(context, draw):
            by_type.setdefault(candidate.type, []).append(candidate)
        more = k if self.image_text is None else 2 * k  # some will be dropped
        made = [
            HallucinatedCaption(chosen.text, chosen.type, chosen.span, self.source, caption_index)
            for chosen in _choose(by_type, more, draw)
        ]
        if self.image_text is not None:
            made, supported = self.image_text.keep(record, record.captions[caption_index], made)
            self.rejections[REASON] += supported
        return made[:k]

    def accepted(self, context: ImageContext, draw: random.Random) -> list[Candidate]:
        """Every candidate that no filter refuses, weighted; refusals are counted."""
        found: dict[str, Candidate] = {}
        for edit in _EDITS:
            for candidate in edit(context, draw):
                if candidate.type not in self.types or candidate.text in found:
                    continue
                reason = first_reason(candidate, context, self.filters)
                if reason is None:
                    common = 1.0 if self.cooccurrence is None else self.cooccurrence.commonness(candidate.phrase)
                    found[candidate.text] = replace(candidate, weight=candidate.weight * common)
                else:
                    self.rejections[reason] += 1
        return list(found.values())


def _choose(by_type: dict[str, list[Candidate]], k: int, draw: random.Random) -> list[Candidate]:
    """k candidates: types in a drawn order, round after round, other places of the caption first.

    At most half of them are insertions, which fit nearly everywhere and would crowd out the rest.
    """
    most = {"insertion": (k + 1) // 2}
    chosen: list[Candidate] = []
    while len(chosen) < k and by_type:
        for kind in _shuffled(list(by_type), [_TYPE_WEIGHTS.get(kind, 1.0) for kind in by_type], draw):
            if len(chosen) == k:
                break
            used = {other.slot for other in chosen}
            pool = by_type[kind]
            fresh = [candidate for candidate in pool if candidate.slot not in used] or pool
            pick = _shuffled(fresh, [candidate.weight for candidate in fresh], draw)[0]
            chosen.append(pick)
            pool.remove(pick)
            if not pool or sum(other.type == kind for other in chosen) == most.get(kind):
                del by_type[kind]
    return chosen


def _shuffled(items: list, weights: list[float], draw: random.Random) -> list:
    """Items in a random order in which heavier ones tend to come first (weighted draw without replacement)."""
    keys = [draw.random() ** (1 / max(weight, 1e-6)) for weight in weights]
    return [item for _, _, item in sorted(zip(keys, range(len(items)), items, strict=True), reverse=True)]
