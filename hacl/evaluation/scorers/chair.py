"""The CHAIR scorer: which COCO objects a caption names that its image does not hold (Rohrbach et al., 2018).

CHAIRi is hallucinated mentions over all mentions, pooled, with repetition; CHAIRs captions with at least one over
captions; Recall (Maxlinn/CHAIR-metric-standalone@640c5071) distinct true objects mentioned over objects of the image,
summed over captions; Precision and F1 as LALBJ/PAI@2112e7f9. Len is tokens / 100 as OPERA and PAI print it. A caption
that names nothing is clean, so Recall and Len belong beside the rates.

Longer captions name more and hallucinate more. ``match`` scores the captions a second time, cut so that two runs are of
equal length image by image; group ``length_matched``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from hacl.evaluation.scorers.base import ImageSums, InputError, Option, Scorer, Totals, divide, listed
from hacl.evaluation.scorers.chair_extract import (
    DIALECTS,
    Mentions,
    WordnetExtractor,
    check_tokens,
    find_objects,
    make_extractor,
)
from hacl.evaluation.scorers.chair_truth import load_truth
from hacl.evaluation.scorers.reading import Place, is_path, iter_rows, require

RATIOS = ("CHAIRs", "CHAIRi", "Recall", "Precision")
SUMMED = (*RATIOS, "F1", "Len")


class _Sums:
    """Numerator and denominator of each ratio."""

    def __init__(self) -> None:
        self.pairs = {name: [0, 0] for name in SUMMED}

    def add(self, name: str, top: int, bottom: int) -> None:
        pair = self.pairs[name]
        pair[0] += top
        pair[1] += bottom

    def metrics(self, warnings: list[str], prefix: str = "") -> dict[str, float | None]:
        found = {name: divide(*self.pairs[name], prefix + name, warnings) for name in RATIOS}
        recall, precision = found["Recall"], found["Precision"]
        if recall is None or precision is None:
            found["F1"] = None
        else:
            found["F1"] = divide(2 * (recall * precision), precision + recall, prefix + "F1", warnings)
        tokens, captions = self.pairs["Len"]
        found["Len"] = 0.01 * tokens / captions if captions else None
        return found


class ChairScorer(Scorer):
    """Captions of COCO images against :mod:`~hacl.evaluation.scorers.chair_truth`.

    Predictions: ``image_id`` (number or text) and ``caption``; several captions of one image are legal. Items:
    ``generated`` (head word of every mention, in order), ``hallucinated`` (those not in the image),
    ``hallucinated_words`` (pairs of the word as read and its head), ``gt`` (sorted), ``length`` (tokens).
    """

    benchmark: ClassVar[str] = "chair"
    version: ClassVar[int] = 1
    options: ClassVar[tuple[Option, ...]] = (
        Option("dialect", "how words are reduced: pattern (first script) or wordnet (OPERA, PAI)", "pattern", DIALECTS),
        Option("nltk_data", "wordnet: folder with tagger and WordNet data in NLTK's layout"),
        Option("tags", "wordnet: JSONL of tokens and Penn tags, one row per prediction, in place of a tagger"),
        Option("max_words", "also score captions cut after so many words (group length_matched)", kind=int),
        Option("match", "also score captions cut to the length of another run's, image by image"),
    )

    def __init__(self, references: Any, **options: Any) -> None:
        super().__init__(references, **options)
        settings = self.settings
        self.dialect = settings["dialect"]
        self.tags = settings["tags"]
        if self.tags is not None and self.dialect != "wordnet":
            raise ValueError("chair: --tags is for --dialect wordnet; the pattern dialect uses no tags")
        if settings["max_words"] is not None and settings["match"] is not None:
            raise ValueError("chair: give --max-words or --match, not both")
        if settings["max_words"] is not None and settings["max_words"] < 1:
            raise ValueError(f"chair: --max-words {settings['max_words']}; use 1 or more")
        self.cuts = settings["max_words"] is not None or settings["match"] is not None
        if self.cuts and self.tags is not None:
            raise ValueError("chair: cut captions need new tags, so --max-words and --match do not go with --tags")
        self.extractor, self.notes = make_extractor(self.dialect, settings["nltk_data"], tagged=self.tags is not None)
        self.truth = load_truth(references, self.extractor, self.dialect)
        if self.tags is not None:
            # Predictions bring their tags; what the extractor guesses matters for reference captions alone.
            self.notes = [f"reference captions: {note}" for note in self.notes] if self.truth.captions else []
        self.match = _lengths(settings["match"]) if settings["match"] is not None else {}
        self._reset()

    def _reset(self) -> None:
        self.whole, self.cut = _Sums(), _Sums()
        self.sums = ImageSums(SUMMED)
        self.counts = dict.fromkeys(
            ("captions", "mentions", "hallucinated_mentions", "captions_without_object", "empty_captions"), 0
        )
        self.seen: dict[str, int] = {}  # captions per image
        self.first_index: int | None = None
        self._tag_rows = iter_rows(self.tags, "tags row") if self.tags is not None else None

    def again(self) -> ChairScorer | None:
        sources = (self.settings["tags"], self.settings["match"])
        if any(source is not None and not is_path(source) for source in sources):
            return None
        other = copy.copy(self)
        other._reset()
        return other

    def input_files(self) -> list[Path]:
        options = (self.settings[name] for name in ("tags", "match"))
        return [*self.truth.paths, *(Path(path) for path in options if path is not None and is_path(path))]

    def add(self, row: Mapping[str, Any], where: object) -> dict[str, Any]:
        image_id = require(row, "image_id", where, (int, str))
        caption = require(row, "caption", where, str)
        name = str(image_id)
        objects = self.truth.objects.get(name)
        if objects is None:
            raise InputError(
                f"{where}: image_id {image_id!r} is not in the references ({len(self.truth.objects)} images, such as "
                f"{next(iter(self.truth.objects))}); use COCO's image ids, and the annotations of their split"
            )
        number = self.seen.get(name, 0)
        self.seen[name] = number + 1
        mentions = self._mentions(caption, where)
        wrong = [number for number, found in enumerate(mentions.objects) if found not in objects]
        self._count(self.whole, mentions, objects, len(wrong), name)
        counts = self.counts
        counts["captions"] += 1
        counts["mentions"] += len(mentions.objects)
        counts["hallucinated_mentions"] += len(wrong)
        counts["captions_without_object"] += not mentions.objects
        counts["empty_captions"] += not caption.strip()
        if self.cuts:
            short = self.extractor.mentions(self._shortened(caption, name, number, where))
            self._count(self.cut, short, objects, sum(found not in objects for found in short.objects))
        return {
            "image_id": image_id,
            "generated": mentions.objects,
            "hallucinated": [mentions.objects[number] for number in wrong],
            "hallucinated_words": [[mentions.words[number], mentions.objects[number]] for number in wrong],
            "gt": sorted(objects),
            "length": mentions.length,
        }

    def _count(self, sums: _Sums, mentions: Mentions, objects: frozenset[str], wrong: int, name: str = "") -> None:
        named = set(mentions.objects)
        right = len(named & objects)
        for metric, top, bottom in (
            ("CHAIRs", int(wrong > 0), 1),
            ("CHAIRi", wrong, len(mentions.objects)),
            ("Recall", right, len(objects)),
            ("Precision", right, len(named)),
            ("F1", 2 * right, len(named) + len(objects)),
            ("Len", mentions.length, 1),
        ):
            sums.add(metric, top, bottom)
            if name:
                self.sums.add(name, metric, 0.01 * top if metric == "Len" else top, bottom)

    def _mentions(self, caption: str, where: object) -> Mentions:
        if self._tag_rows is None:
            return self.extractor.mentions(caption)
        place, row = next(self._tag_rows, (None, None))
        if row is None:
            raise InputError(f"{where}: {self.tags} has no more rows; it needs one for every prediction")
        tokens, tags = require(row, "tokens", place, list), require(row, "tags", place, list)
        index = require(row, "index", place, int)
        if self.first_index is None:
            self.first_index = index
        if index != self.first_index + self.counts["captions"] or self.first_index not in (0, 1):
            raise InputError(f"{place}: index {index}; rows are numbered from 0 (or 1) in the order of the predictions")
        if len(tokens) != len(tags) or not all(isinstance(word, str) for word in (*tokens, *tags)):
            raise InputError(f"{place}: {len(tokens)} tokens and {len(tags)} tags; one text each is needed")
        tokens = [token.lower() for token in tokens]
        check_tokens(tokens, caption, place)
        return find_objects(WordnetExtractor(lemmatizer=self.extractor.lemmatizer).with_tags(tokens, tags))

    def _shortened(self, caption: str, name: str, number: int, where: object) -> str:
        words = caption.split()
        if self.settings["max_words"] is not None:
            return " ".join(words[: self.settings["max_words"]])
        lengths = self.match.get(name, [])
        if number >= len(lengths):
            raise InputError(
                f"{where}: the run in --match has {len(lengths)} captions of image {name}, this run more; "
                "match runs over the same images"
            )
        return " ".join(words[: min(len(words), lengths[number])])

    def finish(self, *, allow_missing: bool = False) -> Totals:
        warnings = [*self.notes, *self.truth.warnings]
        totals = Totals(metrics=self.whole.metrics(warnings), counts=dict(self.counts), warnings=warnings)
        if self.cuts:
            totals.groups["length_matched"] = self.cut.metrics(warnings, "length_matched ")
        if self.counts["empty_captions"]:
            warnings.append(f"{self.counts['empty_captions']} captions are empty and count as clean")
        missing = [name for name in self.truth.objects if name not in self.seen]
        # COCO's annotations cover far more images than a run; few left over look like an accident.
        if missing and (allow_missing or len(missing) < len(self.seen)):
            warnings.append(f"{len(missing)} images of the references have no caption: {listed(missing)}")
        if self._tag_rows is not None and next(self._tag_rows, None) is not None:
            raise InputError(f"{self.tags}: more rows than the {self.counts['captions']} predictions")
        totals.sums = self.sums
        return totals


def _lengths(source: Any) -> dict[str, list[int]]:
    """Words per caption of every image of another run, in order."""
    lengths: dict[str, list[int]] = {}
    rows: Iterator[tuple[Place, dict[str, Any]]] = iter_rows(source, "match row")
    for where, row in rows:
        image_id = require(row, "image_id", where, (int, str))
        lengths.setdefault(str(image_id), []).append(len(require(row, "caption", where, str).split()))
    return lengths
