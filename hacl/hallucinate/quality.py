"""How good hallucinated captions are: yield, types, truth, grammar, closeness, and what their wording betrays."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from hacl.data.records import HallucinatedCaption, Record
from hacl.hallucinate.backends.checks import change_of
from hacl.hallucinate.context import ImageContext
from hacl.hallucinate.english import DETERMINERS, article, is_plural, same_text_key, words_of
from hacl.hallucinate.filters import mentioned, object_present
from hacl.hallucinate.leak import Leak, Pairs, embedding_leak, interval_of_mean, score_leak, tfidf_leak
from hacl.hallucinate.lexical import LexicalHallucinator
from hacl.hallucinate.lexicon import Lexicon
from hacl.hallucinate.survey import Survey

Scorer = Callable[[Sequence[str]], Sequence[float]]  # texts -> summed log-likelihoods
Embedder = Callable[[Sequence[str]], np.ndarray]  # texts -> (texts, width)


@dataclass
class QualityReport:
    """Shares are of 1. complete: captions with at least `wanted` candidates of at least three types (or as many as
    asked); objects_false: object edits whose new objects neither the annotations nor any caption of the image has;
    grammatical: candidates that pass `grammar_slips`, beside true captions that do; shared_prefix: of the words, before
    the first difference; changed: words exchanged, of the caption's; words: mean difference in length; fluency_gap:
    nats per word that a language model loses from caption to candidate, fluency_interval: 95 % over photographs;
    false_negatives: captions known of an image -> share of candidates that what was kept back
    shows to be true."""

    records: int = 0
    captions: int = 0
    wanted: int = 4
    types: dict[str, int] = field(default_factory=dict)
    complete: float = 0.0
    objects_false: float | None = None
    object_edits: int = 0
    grammatical: float = 0.0
    grammatical_true: float = 0.0
    shared_prefix: float = 0.0
    changed: float = 0.0
    words: float = 0.0
    rejected: dict[str, int] = field(default_factory=dict)
    leaks: list[Leak] = field(default_factory=list)
    fluency_gap: float | None = None
    fluency_interval: tuple[float, float] | None = None
    false_negatives: dict[int, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def assess(
    records: Sequence[Record],
    lexicon: Lexicon,
    *,
    wanted: int = 4,
    rejected: Counter[str] | None = None,
    scorer: Scorer | None = None,
    embedder: Embedder | None = None,
    folds: int = 5,
    seed: int = 0,
) -> QualityReport:
    """Measure every hallucinated caption that says which caption it was made from. Raises ValueError for none."""
    made = [(rec, h) for rec in records for h in rec.hallucinated if h.of is not None]
    if not made:
        raise ValueError("no hallucinated caption that names its caption (`of`); make some first")
    report = QualityReport(len(records), sum(len(rec.captions) for rec in records), wanted)
    report.types = dict(Counter(h.type for _, h in made).most_common())
    report.rejected = dict((rejected or Counter()).most_common())
    report.complete = sum(map(lambda rec: _complete(rec, wanted), records)) / max(1, report.captions)
    judged = [ok for rec, h in made if (ok := object_is_false(rec, h, lexicon)) is not None]
    report.object_edits = len(judged)
    report.objects_false = sum(judged) / len(judged) if judged else None
    report.grammatical = float(np.mean([not grammar_slips(h.text, rec.captions[h.of]) for rec, h in made]))
    report.grammatical_true = float(np.mean([not grammar_slips(t, t) for rec in records for t in rec.captions]))
    pairs = pairs_of(records)
    closeness = np.array([_closeness(t, h) for t, h in zip(pairs.true, pairs.hallucinated, strict=True)])
    report.shared_prefix, report.changed, report.words = map(float, closeness.mean(0))
    report.leaks.append(tfidf_leak(pairs, folds=folds, seed=seed))
    texts = [*pairs.true, *pairs.hallucinated]
    if embedder is not None:
        report.leaks.append(embedding_leak(pairs, _distinct(texts, embedder), folds=folds, seed=seed))
    if scorer is not None:
        scores = _distinct(texts, lambda some: np.asarray(scorer(some))).reshape(2, -1)
        report.leaks.append(score_leak("blind log-likelihood", pairs, -scores, seed=seed))
        length = np.array([len(words_of(text)) for text in texts]).reshape(2, -1)
        gaps = scores[0] / length[0] - scores[1] / length[1]
        report.fluency_gap = float(gaps.mean())
        report.fluency_interval = interval_of_mean(gaps, np.array(pairs.images), seed)
    return report


def pairs_of(records: Iterable[Record]) -> Pairs:
    """Each hallucinated caption beside the caption it was made from."""
    rows = [
        (rec.captions[h.of], h.text, h.type, rec.image_id)
        for rec in records
        for h in rec.hallucinated
        if h.of is not None
    ]
    return Pairs(*map(list, zip(*rows, strict=True)))


def _distinct(texts: Sequence[str], function: Callable[[Sequence[str]], np.ndarray]) -> np.ndarray:
    """The function's rows for all texts, each different text computed once."""
    different = sorted(set(texts))
    place = {text: at for at, text in enumerate(different)}
    return function(different)[[place[text] for text in texts]]


def _complete(record: Record, wanted: int) -> int:
    by_caption: dict[int, list[HallucinatedCaption]] = {}
    for h in record.hallucinated:
        if h.of is not None:
            by_caption.setdefault(h.of, []).append(h)
    return sum(len(some) >= wanted and len({h.type for h in some}) >= min(3, wanted) for some in by_caption.values())


def _closeness(caption: str, text: str) -> tuple[float, float, float]:
    old, new = same_text_key(caption), same_text_key(text)
    prefix = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    change = change_of(text, caption)
    return prefix / max(1, len(new)), len(change.removed) / max(1, len(old)), len(new) - len(old)


def object_is_false(record: Record, made: HallucinatedCaption, lexicon: Lexicon) -> bool | None:
    """Whether no object that an object edit newly names is annotated or named by any caption; None for other edits.

    Every name that a new word may stand for counts, so a doubtful word is judged true.
    """
    if made.type != "object" or made.of is None or not 0 <= made.of < len(record.captions):
        return None
    context = ImageContext(record, made.of, lexicon)
    added = change_of(made.text, context.text).added
    named = {m.kind.name for m in lexicon.mentions(added)}
    said = {form for word in added for form in (word.text,)} & context.said
    new_words = {word.text for word in added} - DETERMINERS
    if not named and new_words and new_words <= said:
        return False
    return not named & context.present


_NUMBERS = frozenset("two three four five six seven eight nine ten several".split())


def grammar_slips(text: str, caption: str) -> list[str]:
    """What is wrong by our stated check, slips that the caption has as well left out.

    An article that does not agree, a doubled word, two determiners in a row, a number above one before a singular or
    "one" before a plural at the end, a capital or full stop that the caption had and the text lacks.
    """
    return sorted((Counter(_slips(text)) - (Counter(_slips(caption)) if text != caption else Counter())).elements()) + [
        name for name, lost in _edges(text, caption) if lost
    ]


def _slips(text: str) -> list[str]:
    words, found = words_of(text), []
    for a, b in zip(words, words[1:], strict=False):
        if text[a.end : b.start].strip():
            continue
        if a.text in ("a", "an") and a.text != article(b.text):
            found.append("article")
        if a.text == b.text and a.text != "that":
            found.append("doubled word")
        if a.text in DETERMINERS - {"that", "all", "her", "his"} and b.text in DETERMINERS - {"that"}:
            found.append("two determiners")
        last = b is words[-1]
        if a.text in ("a", "an", "one") and is_plural(b.text) and last and re.search(r"s$", b.text):
            found.append("number")
        if a.text in _NUMBERS and not is_plural(b.text) and last and b.text not in ("sheep", "fish", "deer"):
            found.append("number")
    return found


def _edges(text: str, caption: str) -> list[tuple[str, bool]]:
    return [
        ("capital", caption[:1].isupper() and not text[:1].isupper()),
        ("full stop", caption.rstrip().endswith(".") and not text.rstrip().endswith(".")),
    ]


def false_negatives(records: Sequence[Record], survey: Survey, *, seed: int = 0, k: int = 8) -> dict[int, float]:
    """How often a candidate is true after all, as a function of how many captions of an image are known.

    For each number the lexical generator gets the caption and so many captions in all, without annotation; what was
    kept back (the other captions and the annotation) then judges its candidates. Only images with five captions and
    annotated objects take part. The last number is the estimate for what no annotation or caption mentions: an upper
    bound for images whose annotation is known, a lower bound for what nobody has written down.
    """
    generator = LexicalHallucinator(survey=survey, seed=seed)
    full = [rec for rec in records if len(rec.captions) >= 5 and (rec.objects or rec.extra.get("chair_objects"))]
    shares = {}
    for known in range(1, 5):
        wrong = total = 0
        for rec in full:
            few = Record(rec.id, rec.images, rec.image_id, rec.captions[:known])
            context = ImageContext(few, 0, generator.lexicon, generator.cooccurrence, generator.bank)
            draw = random.Random(f"{seed}/{rec.id}/{known}")
            everything = ImageContext(rec, 0, generator.lexicon)
            found = generator.accepted(context, draw)
            for candidate in draw.sample(found, min(k, len(found))):
                total += 1
                wrong += bool(object_present(candidate, everything) or mentioned(candidate, everything))
        shares[known] = wrong / max(1, total)
    return shares
