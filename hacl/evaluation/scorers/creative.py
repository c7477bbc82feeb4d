"""The creative side of a model: variety of texts, association diversity, and a pairwise judge's reward.

Every measure here rises when a model stops making sense, so they stand beside each other, with the lengths, the empty
replies and the invalid lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from hacl.evaluation.scorers.base import ImageSums, InputError, Option, Scorer, Totals, divide
from hacl.evaluation.scorers.creative_embedders import open_embedder
from hacl.evaluation.scorers.creative_nouns import associations, parse_list
from hacl.evaluation.scorers.creative_reward import METRICS as REWARDS
from hacl.evaluation.scorers.creative_reward import Verdicts, reward_metrics
from hacl.evaluation.scorers.creative_text import distinct, repetition, self_bleu, words_of
from hacl.evaluation.scorers.reading import is_path, require

DISTANCES = ("association_diversity_noun_noun", "association_diversity_image_noun")
DISTINCT = (1, 2, 3)


class CreativeScorer(Scorer):
    """Rows ``id`` and ``response``; optionally ``group``, ``nouns``, ``image_id``, ``image``.

    metrics ``distinct_1`` to ``distinct_3`` and ``self_bleu`` (0 to 1; over the responses of one ``group``, such as
    the samples of one prompt, or over all if rows name none, pooled), ``repetition_rate`` (4-grams), ``mean_words``,
    ``empty_rate``; with an embedder ``association_diversity_noun_noun`` and ``_image_noun`` (0 to 200),
    ``invalid_list_rate`` and ``repeated_noun_rate``; with verdicts ``reward`` (-100 to 100), the same per order,
    ``win_rate``, ``parse_rate`` and ``order_agreement``. Measures that were not asked for are absent.

    Args:
        references: none.
        options: from Python, ``embedder`` may be an object with ``name``, ``text`` and ``image``, and ``verdicts`` may
            be rows.
    """

    benchmark: ClassVar[str] = "creative"
    version: ClassVar[int] = 1
    needs_references: ClassVar[bool] = False
    options: ClassVar[tuple[Option, ...]] = (
        Option("embedder", "for association diversity: table:FILE or open_clip:FOLDER"),
        Option("images", "folder of the images that rows name, for an open_clip embedder"),
        Option("device", "torch device of an open_clip embedder", "cpu"),
        Option("parse_nouns", "responses are lists of nouns: read them from the text", False, kind=bool),
        Option("noun_count", "use the first N valid nouns; a response with fewer is invalid", 7, kind=int),
        Option("verdicts", "JSONL of a pairwise judge: id, order, verdict"),
    )

    def __init__(self, references: Any = None, **options: Any) -> None:
        super().__init__(references, **options)
        settings = self.settings
        if references is not None:
            raise ValueError("creative takes no references; name the verdicts with --verdicts")
        if settings["noun_count"] < 2:
            raise ValueError(f"creative: noun_count={settings['noun_count']}; a distance needs two nouns or more")
        self.embedder, self._files = open_embedder(
            settings["embedder"], images=settings["images"], device=settings["device"]
        )
        self.verdicts = None
        if settings["verdicts"] is not None:
            self.verdicts = Verdicts(settings["verdicts"])
            self._files += [Path(settings["verdicts"])] if is_path(settings["verdicts"]) else []
        self.images: dict[str, str] = {}
        self.texts: dict[str, list[tuple[str, list[str]]]] = {}
        self.words = self.empty = self.lists = self.invalid = self.nouns = self.repeated = self.unknown = 0
        self.repetitions: list[float] = []
        self.distances: dict[str, list[float]] = {name: [] for name in DISTANCES}
        names = ["repetition_rate", "mean_words", "empty_rate", "self_bleu"]
        names += [*DISTANCES, "invalid_list_rate"] if self.embedder else []
        self.sums = ImageSums([*names, *(REWARDS if self.verdicts else ())])

    def input_files(self) -> list[Path]:
        return self._files

    def add(self, row: Mapping[str, Any], where: object) -> dict[str, Any]:
        identifier, response = require(row, "id", where, (str, int)), require(row, "response", where)
        key = str(identifier)
        if key in self.images:
            raise InputError(f"{where}: id {identifier!r} came before; give samples of one prompt ids and a `group`")
        image_id = self.images[key] = str(row.get("image_id", row.get("image", identifier)))
        words = words_of(response)
        self.texts.setdefault(str(row.get("group", "")), []).append((image_id, words))
        self.words += len(words)
        self.empty += not words
        self.sums.add(image_id, "mean_words", len(words), 1)
        self.sums.add(image_id, "empty_rate", not words, 1)
        repeats = repetition(words)
        if repeats is not None:
            self.repetitions.append(repeats)
            self.sums.add(image_id, "repetition_rate", repeats, 1)
        item = {"id": identifier, "image_id": image_id, "words": len(words), "repetition": repeats}
        if self.embedder is not None:
            item |= self._add_nouns(row, response, image_id, where)
        if self.verdicts is not None:
            item["rewards"] = self.verdicts.of(key)
        return item

    def _add_nouns(self, row: Mapping[str, Any], response: str, image_id: str, where: object) -> dict[str, Any]:
        listed = parse_list(response) if self.settings["parse_nouns"] else require(row, "nouns", where, list)
        if not all(isinstance(noun, str) for noun in listed):
            raise InputError(f"{where}: `nouns` must be a list of words")
        found = associations(listed, row, self.embedder, self.settings["noun_count"])
        self.lists += 1
        self.nouns += len(listed)
        self.invalid += found.noun_noun is None
        self.repeated += found.repeated
        self.unknown += len(found.unknown)
        self.sums.add(image_id, "invalid_list_rate", found.noun_noun is None, 1)
        for name, distance in zip(DISTANCES, (found.noun_noun, found.image_noun), strict=True):
            if distance is not None:
                self.distances[name].append(distance)
                self.sums.add(image_id, name, distance, 1)
        return {
            "nouns": list(found.nouns),
            "unknown_nouns": list(found.unknown),
            "noun_noun": found.noun_noun,
            "image_noun": found.image_noun,
        }

    def finish(self, *, allow_missing: bool = False) -> Totals:
        warnings: list[str] = []
        count = len(self.images)
        metrics: dict[str, float | None] = {
            "mean_words": divide(self.words, count, "mean_words", warnings),
            "empty_rate": divide(self.empty, count, "empty_rate", warnings),
            "repetition_rate": divide(sum(self.repetitions), len(self.repetitions), "repetition_rate", warnings),
        }
        metrics |= self._variety(warnings)
        counts = {"responses": count, "groups": len(self.texts), "empty": self.empty}
        if self.embedder is not None:
            metrics |= self._association(warnings)
            counts |= {"lists": self.lists, "invalid_lists": self.invalid, "unknown_nouns": self.unknown}
        if self.verdicts is not None:
            rewards, judged = reward_metrics(self.images, self.verdicts, self.sums, allow_missing, warnings)
            metrics |= rewards
            counts |= judged
        return Totals(metrics=metrics, counts=counts, warnings=warnings, sums=self.sums)

    def _variety(self, warnings: list[str]) -> dict[str, float | None]:
        metrics = {}
        for order in DISTINCT:
            pairs = [distinct([words for _, words in texts], order) for texts in self.texts.values()]
            different, everything = (sum(column) for column in zip(*pairs, strict=True)) if pairs else (0, 0)
            metrics[f"distinct_{order}"] = divide(different, everything, f"distinct_{order}", warnings)
        scores: list[float] = []
        alone = 0
        for texts in self.texts.values():
            spoken = [(image_id, words) for image_id, words in texts if words]
            if len(spoken) < 2:
                alone += 1
                continue
            for (image_id, _), bleu in zip(spoken, self_bleu([words for _, words in spoken]), strict=True):
                scores.append(bleu)
                self.sums.add(image_id, "self_bleu", bleu, 1)
        if alone:
            warnings.append(f"{alone} of {len(self.texts)} groups have fewer than two texts and no self-BLEU")
        return metrics | {"self_bleu": divide(sum(scores), len(scores), "self_bleu", warnings)}

    def _association(self, warnings: list[str]) -> dict[str, float | None]:
        metrics = {name: divide(sum(found), len(found), name, warnings) for name, found in self.distances.items()}
        metrics["invalid_list_rate"] = divide(self.invalid, self.lists, "invalid_list_rate", warnings)
        metrics["repeated_noun_rate"] = divide(self.repeated, self.nouns, "repeated_noun_rate", warnings)
        warnings.append(f"association diversity by {self.embedder.name}; compare only with the same embedder")
        if self.invalid:
            warnings.append(f"{self.invalid} of {self.lists} lists are invalid and not in the distances")
        return metrics
