"""MME scores: accuracy over questions plus accuracy over images with both questions right, per subtask and in total.

Fu et al., 2023, arXiv 2306.13394. Arithmetic, parser and order of summation follow eval_tool/calculation.py as copied
in zjunlp/Deco@fee8d757. Upstream pairs the two questions of an image by line order; here by id.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hacl.evaluation.scorers import pope
from hacl.evaluation.scorers.base import ImageSums, InputError, Option, Scorer, Totals, divide, listed
from hacl.evaluation.scorers.reading import require

# In upstream's order, in which the floating-point sums are taken.
PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
TOTALS = {"perception": PERCEPTION, "cognition": COGNITION, "hallucination": PERCEPTION[:4]}
CATEGORIES = {name.lower(): name for name in PERCEPTION + COGNITION}


def parse_official(reply: str) -> str:
    """ "yes" or "no" if it occurs in the first four characters of the lower-cased reply, yes first; else "other"."""
    start = reply.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def parse_strict(reply: str) -> str:
    """ "yes" or "no" if that is the first whole word of the reply; else "other"."""
    return pope.parse_strict(reply) or "other"


PARSERS = {"official": parse_official, "strict": parse_strict}


@dataclass
class Image:
    """Answers about one image of a subtask."""

    texts: list[str] = field(default_factory=list)
    golds: list[str] = field(default_factory=list)
    right: int = 0


class MMEScorer(Scorer):
    """Predictions ``category``, ``question_id``, ``answer`` (gold), ``prediction``; no references.

    The two questions of an image share ``question_id`` (the image's name), or carry the same ``image`` if ids are one
    to a question. Metrics ``perception`` (of 2000), ``cognition`` (of 800) and ``hallucination`` (existence, count,
    position and color, of 800) are sums over the subtasks that are there; groups have ``score`` (of 200), ``acc``,
    ``acc_plus`` and, without replies that are neither yes nor no, ``precision`` and ``recall``.
    """

    benchmark = "mme"
    needs_references = False
    options = (Option("parser", "how a reply is read as yes, no or other", "official", tuple(PARSERS)),)

    def __init__(self, references: Any = None, **options: Any) -> None:
        super().__init__(None, **options)  # the predictions hold everything; references are not read
        self._parse = PARSERS[self.settings["parser"]]
        self._images: dict[str, dict[Any, Image]] = {}
        self._confusion: dict[str, dict[tuple[str, str], int]] = {}

    def add(self, row: Mapping[str, Any], where: object) -> dict[str, Any]:
        """Item: ``category``, ``question_id``, ``image_id``, ``answer``, ``parsed`` and ``right``."""
        given = require(row, "category", where)
        category = CATEGORIES.get(given.lower())
        if category is None:
            near = difflib.get_close_matches(given.lower(), CATEGORIES, 1)
            hint = f"did you mean {CATEGORIES[near[0]]!r}?" if near else f"use one of {', '.join(CATEGORIES.values())}"
            raise InputError(f"{where}: category {given!r} is no MME subtask; {hint}")
        key = require(row, "question_id", where, (str, int))
        gold = require(row, "answer", where).strip().lower()
        if gold not in ("yes", "no"):
            raise InputError(
                f"{where}: the gold answer of question_id {key!r} is {row['answer']!r}; it must be yes or no"
            )
        parsed = self._parse(require(row, "prediction", where))
        image_id = str(row.get("image", row.get("image_id", key)))
        image = self._images.setdefault(category, {}).setdefault(image_id, Image())
        text = str(row.get("question", row.get("text", "")))
        if len(image.golds) == 2 or (text and text in image.texts):
            raise InputError(f"{where}: {category} image {image_id!r} has this answer already, or two others; keep two")
        image.golds.append(gold)
        image.texts.append(text)
        image.right += parsed == gold
        confusion = self._confusion.setdefault(category, {})
        confusion[gold, parsed] = confusion.get((gold, parsed), 0) + 1
        found = {"category": category, "question_id": key, "image_id": f"{category}/{image_id}", "answer": gold}
        return found | {"parsed": parsed, "right": parsed == gold}

    def finish(self, *, allow_missing: bool = False) -> Totals:
        totals = Totals()
        warnings = totals.warnings
        present = [name for name in CATEGORIES.values() if name in self._images]
        single = [
            f"{name}/{key}" for name in present for key, image in self._images[name].items() if len(image.golds) < 2
        ]
        if single:
            message = f"{len(single)} images have one answer in place of two: {listed(single)}"
            if not allow_missing:
                raise InputError(f"{message}; give both (same question_id or same image), or allow missing ones")
            warnings.append(f"{message}; they count in acc and are left out of acc_plus")
        same = [f"{n}/{key}" for n in present for key, i in self._images[n].items() if len(i.golds) - len(set(i.golds))]
        if same:
            warnings.append(f"{len(same)} images have the same gold answer twice, which MME never has: {listed(same)}")
        for name in present:
            totals.groups[name] = self._category(name, warnings)
        for name, members in TOTALS.items():
            there = [member for member in members if member in self._images]
            if len(there) < len(members):
                absent = [member for member in members if member not in there]
                end = f"the sum of the other {len(there)}" if there else "null"
                warnings.append(f"{name} lacks {', '.join(absent)} and is {end}")
            scores = [totals.groups[member]["score"] for member in there]
            totals.metrics[name] = None if not scores or None in scores else sum(scores)
        totals.counts = {
            "questions": sum(count for table in self._confusion.values() for count in table.values()),
            "images": sum(len(images) for images in self._images.values()),
            "other": sum(
                n for table in self._confusion.values() for (_, parsed), n in table.items() if parsed == "other"
            ),
        }
        totals.sums = self._evidence(present)
        return totals

    def _category(self, name: str, warnings: list[str]) -> dict[str, float | None]:
        images, confusion = self._images[name].values(), self._confusion[name]
        both = [image.right == 2 for image in images if len(image.golds) == 2]
        acc = sum(image.right for image in images) / sum(len(image.golds) for image in images)
        plus = divide(sum(both), len(both), f"acc_plus of {name}", warnings)
        yes = confusion.get(("yes", "yes"), 0)
        return {
            "score": None if plus is None else acc * 100 + plus * 100,
            "acc": acc,
            "acc_plus": plus,
            "precision": divide(yes, yes + confusion.get(("no", "yes"), 0), f"precision of {name}", warnings),
            "recall": divide(yes, yes + confusion.get(("yes", "no"), 0), f"recall of {name}", warnings),
        }

    def _evidence(self, present: list[str]) -> ImageSums:
        """A score is a sum of means, so each image carries its share of every mean, times the number of images."""
        sums = ImageSums([*(name for name, members in TOTALS.items() if set(members) & set(present)), *present])
        for name in sums.names:
            members = [member for member in TOTALS.get(name, (name,)) if member in self._images]
            number = sum(len(self._images[member]) for member in members)
            for member in members:
                images = self._images[member]
                questions = sum(len(image.golds) for image in images.values())
                pairs = max(1, sum(len(image.golds) == 2 for image in images.values()))
                for key, image in images.items():
                    share = 100 * (image.right / questions + (image.right == 2) / pairs)
                    sums.add(f"{member}/{key}", name, share * number, 1)
        return sums
