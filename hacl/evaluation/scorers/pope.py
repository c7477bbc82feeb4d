"""POPE scores from free-form replies: accuracy, precision, recall, F1 and yes-ratio, yes being the positive class.

Li et al., 2023, arXiv 2305.10355. The parser "official" and the arithmetic follow evaluate.py of RUCAIBox/POPE
(AoiDragon/POPE@3df3ba1b); "opera" follows pope_eval.py of shikiw/OPERA@61426efe, whose descendants (PAI and others)
read replies the same way. Both scripts pair by line order; here answers are joined by ``question_id``.
"""

from __future__ import annotations

import copy
import re
from array import array
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hacl.evaluation.scorers.base import ImageSums, InputError, Option, Scorer, Totals, divide, listed
from hacl.evaluation.scorers.reading import as_paths, iter_rows, require

FIRST_WORD = re.compile(r"\w+(?:[-'’]\w+)*")
MISSING, YES, NO, UNPARSED = 0, 1, 2, 3
CODES = {"yes": YES, "no": NO, None: UNPARSED}
SPLITS = ("random", "popular", "adversarial")


def parse_official(reply: str) -> str:
    """The published script: up to the first full stop, commas dropped, split on blanks; "no" if a word is No, no or
    not, otherwise yes (so an empty reply is yes, and so are "cannot", "isn't", "NO" and "no!")."""
    words = reply.split(".", 1)[0].replace(",", "").split(" ")
    return "no" if "No" in words or "no" in words or "not" in words else "yes"


def parse_opera(reply: str) -> str:
    """OPERA, PAI and others: the whole reply without full stops and commas; "no" also for NO and words in n't."""
    words = reply.replace(".", "").replace(",", "").split(" ")
    if not {"No", "not", "no", "NO"}.isdisjoint(words):
        return "no"
    return "no" if any(word.endswith("n't") for word in words) else "yes"


def parse_strict(reply: str) -> str | None:
    """ "yes" or "no" if that is the first whole word of the reply, in any case; otherwise None (unparsed)."""
    first = FIRST_WORD.search(reply)
    word = first.group().lower() if first else ""
    return word if word in ("yes", "no") else None


PARSERS: dict[str, Callable[[str], str | None]] = {
    "official": parse_official,
    "opera": parse_opera,
    "strict": parse_strict,
}


class PopeScorer(Scorer):
    """Predictions ``question_id``, ``answer``; references ``question_id``, ``image``, ``text``, ``label``.

    references: a JSONL or JSON file, a folder with the upstream files (``split`` names which, if there are several), or
    rows. With the parsers "official" and "opera" every label other than "no" counts as yes, as upstream; with "strict"
    it must be yes or no, and an unparsed reply is wrong: it costs accuracy, and recall where yes was right.
    """

    benchmark = "pope"
    options = (
        Option("parser", "how a reply is read as yes or no", "official", tuple(PARSERS)),
        Option("split", "which file of a references folder", None, SPLITS),
    )

    def __init__(self, references: Any = None, **options: Any) -> None:
        super().__init__(references, **options)
        self._parse = PARSERS[self.settings["parser"]]
        self._files = [_question_file(path, self.settings["split"]) for path in as_paths(references)]
        self._index: dict[Any, int] = {}
        self._positive = bytearray()
        self._image_of = array("i")
        images: dict[Any, int] = {}
        for source in self._files or [references]:
            for where, row in iter_rows(source, "question"):
                self._add_question(row, where, images)
        self._images = list(images)
        self._answers = bytearray(len(self._index))

    def _add_question(self, row: Mapping[str, Any], where: object, images: dict[Any, int]) -> None:
        key = require(row, "question_id", where, (int, str))
        label = require(row, "label", where)
        if self._index.setdefault(key, len(self._index)) != len(self._positive):
            raise InputError(f"{where}: question_id {key!r} is asked twice; score each split by itself")
        if self.settings["parser"] == "strict":
            label = label.strip().lower()
            if label not in ("yes", "no"):
                raise InputError(f"{where}: label {row['label']!r} of question_id {key!r}; strict needs yes or no")
        self._positive.append(label != "no")
        image = row.get("image", row.get("image_id", key))
        self._image_of.append(images.setdefault(image, len(images)))

    def input_files(self) -> list[Path]:
        return self._files

    def again(self) -> PopeScorer:
        twin = copy.copy(self)
        twin._answers = bytearray(len(self._index))
        return twin

    def add(self, row: Mapping[str, Any], where: object) -> dict[str, Any]:
        """Item: ``question_id``, ``image_id``, ``label``, ``parsed`` ("yes", "no", or None) and ``right``."""
        try:
            key, answer = row["question_id"], row["answer"]
            index = self._index.get(key)
        except (KeyError, TypeError):
            key, answer = require(row, "question_id", where, (int, str)), require(row, "answer", where)
            raise
        if index is None:
            index = self._find(key, where)
        if self._answers[index]:
            raise InputError(f"{where}: question_id {key!r} is answered twice; keep one answer")
        if type(answer) is not str:
            require(row, "answer", where)
        parsed = self._parse(answer)
        self._answers[index] = CODES[parsed]
        label = "yes" if self._positive[index] else "no"
        image = self._images[self._image_of[index]]
        return {"question_id": key, "image_id": image, "label": label, "parsed": parsed, "right": parsed == label}

    def _find(self, key: Any, where: object) -> int:
        """Ids written as a number in one file and as text in the other are the same id."""
        if isinstance(key, int):
            index = self._index.get(str(key))
        else:
            index = self._index.get(int(key)) if isinstance(key, str) and key.strip().isdecimal() else None
        if index is None:
            require({"question_id": key}, "question_id", where, (int, str))
            raise InputError(f"{where}: question_id {key!r} is not in the references ({len(self._index)} questions)")
        return index

    def finish(self, *, allow_missing: bool = False) -> Totals:
        answers = np.frombuffer(self._answers, dtype=np.uint8)
        totals = Totals()
        missing = np.flatnonzero(answers == MISSING)
        if len(missing):
            unanswered = set(missing.tolist())
            ids = [key for key, index in self._index.items() if index in unanswered]
            message = f"{len(ids)} of {len(answers)} questions have no answer: question_id {listed(ids)}"
            if not allow_missing:
                raise InputError(f"{message}; answer them, or allow missing ones to score the rest")
            totals.warnings.append(f"{message}; they are left out")
        there = answers != MISSING
        positive = np.frombuffer(self._positive, dtype=np.uint8).astype(bool)
        yes, no = answers == YES, answers == NO
        masks = {"TP": yes & positive, "FP": yes & ~positive, "TN": no & ~positive, "FN": there & ~yes & positive}
        tp, fp, tn, fn = (int(mask.sum()) for mask in masks.values())
        scored, said_yes, unparsed = int(there.sum()), tp + fp, int((answers == UNPARSED).sum())
        warnings = totals.warnings
        precision, recall = divide(tp, tp + fp, "precision", warnings), divide(tp, tp + fn, "recall", warnings)
        # Written as upstream writes it: the shorter 2 TP / (2 TP + FP + FN) may differ in the last digit.
        f1 = None
        if precision is not None and recall is not None:
            f1 = divide(2 * precision * recall, precision + recall, "f1", warnings)
        elif self.settings["parser"] == "strict":  # one ratio of counts, defined where upstream's form is not
            f1 = divide(2 * tp, 2 * tp + fp + fn, "f1", warnings)
        else:
            warnings.append("f1 is undefined without precision and recall, and reported as null")
        totals.metrics = {
            "accuracy": divide(tp + tn, scored, "accuracy", warnings),
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "yes_ratio": divide(said_yes, scored, "yes_ratio", warnings),
            **{"TP": tp, "FP": fp, "TN": tn, "FN": fn},
        }
        columns = {
            "accuracy": (masks["TP"] | masks["TN"], there),
            "precision": (masks["TP"], yes),
            "recall": (masks["TP"], there & positive),
            "f1": (2.0 * masks["TP"], 1.0 * yes + (there & positive)),
            "yes_ratio": (yes, there),
        }
        if self.settings["parser"] == "strict":
            totals.metrics["unparsed"] = divide(unparsed, scored, "unparsed", warnings)
            columns["unparsed"] = (answers == UNPARSED, there)
            if unparsed:
                warnings.append(f"{unparsed} replies are neither yes nor no and count as wrong")
        totals.counts = {"questions": len(answers), "scored": scored, "unparsed": unparsed}
        totals.sums = self._by_image(columns, there)
        return totals

    def _by_image(self, columns: Mapping[str, tuple[np.ndarray, np.ndarray]], there: np.ndarray) -> ImageSums:
        image_of = np.frombuffer(self._image_of, dtype=f"i{self._image_of.itemsize}")
        size = len(self._images)
        seen = np.bincount(image_of, weights=there, minlength=size) > 0

        def added(values: np.ndarray) -> np.ndarray:
            return np.bincount(image_of, weights=values, minlength=size)[seen]

        images = [image for image, kept in zip(self._images, seen, strict=True) if kept]
        return ImageSums.from_arrays(images, {name: (added(a), added(b)) for name, (a, b) in columns.items()})


def _question_file(path: Path, split: str | None) -> Path:
    """The file with questions: ``path`` itself, or the one file of a folder that ``split`` names.

    Raises:
        InputError: the folder has no such file, or several.
    """
    if path.is_file():
        return path
    files = sorted(file for file in path.iterdir() if file.suffix in (".json", ".jsonl"))
    chosen = [file for file in files if split is None or split in file.name]
    if len(chosen) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise InputError(f"{path}: {len(chosen)} files with questions fit (there: {names}); give the file, or a split")
    return chosen[0]
