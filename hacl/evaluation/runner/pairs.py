"""Benchmarks of a true and a false text for one image, by log-likelihood: SugarCrepe and the caption margin.

A text is scored by its sum over tokens, by its mean per token, and relative to its likelihood without any image
(log p(text | image) - log p(text)), which takes out what the language model prefers by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hacl.evaluation.runner.places import Place, data_files, find_image
from hacl.evaluation.runner.plan import Request, request_key
from hacl.evaluation.scorers.reading import InputError, load_json, require

SCORINGS = ("sum", "mean", "relative")
Answers = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Pair:
    """One SugarCrepe item: the caption and its hard negative for one image."""

    subset: str
    index: Any
    image: Path
    name: str
    texts: tuple[str, str]
    where: str


class SugarCrepe:
    """The JSON files of RAIVNLab/sugar-crepe (one per subset: index -> filename, caption, negative_caption)."""

    benchmark = "sugarcrepe"

    def __init__(self, place: Place, limit: int | None = None):
        self.files = data_files(place, ("*.json",), "SugarCrepe subset")
        self.pairs = [pair for path in self.files for pair in _subset(path, place, limit)]
        self.meta: dict[str, Any] = {"pairs": len(self.pairs)}

    def requests(self, prompt: str) -> list[Request]:
        """Both texts of every pair, with the image and without one."""
        return [
            _request(image, prompt, text, pair.where)
            for pair in self.pairs
            for text in pair.texts
            for image in (pair.image, None)
        ]

    def predictions(self, prompt: str, answers: Answers, scoring: str) -> list[dict[str, Any]]:
        """Rows as the scorer reads them, one per pair, for a scoring of `SCORINGS`."""
        rows = []
        for pair in self.pairs:
            positive, negative = (_score(pair.image, prompt, text, answers, scoring) for text in pair.texts)
            row = {"subset": pair.subset, "index": pair.index, "image_id": pair.name}
            rows.append(row | {"pos_score": positive, "neg_score": negative})
        return rows


class CaptionMargin:
    """Project records with captions and hallucinated captions."""

    benchmark = "caption_margin"

    def __init__(self, place: Place, limit: int | None = None, seed: int = 0):
        from hacl.data.records import read_records
        from hacl.evaluation.likelihood import plan_margins

        self.files = data_files(place, ("records.jsonl", "*.jsonl"), "records file")
        if len(self.files) != 1:
            raise ValueError(f"{place.data}: {len(self.files)} records files; give --data caption_margin=FILE")
        records = read_records(self.files[0], limit=limit)
        first = next((record for record in records if record.images), None)
        if first is None:
            raise ValueError(f"{self.files[0]}: no record with an image, a caption and a hallucinated caption")
        find_image(place.images, first.images[0], f"{self.files[0]}, record {first.id!r}")
        root = next(root for root in place.images if (root / first.images[0]).is_file())
        for record in records:
            for name in record.images:
                find_image((root,), name, f"{self.files[0]}, record {record.id!r}")
        self.plan = plan_margins(records, root, seed)
        self.meta: dict[str, Any] = {"records": len(self.plan.records), "wrong_image_seed": seed}

    def requests(self, prompt: str) -> list[Request]:
        """Every text with its image, with none, and with another record's."""
        return [
            _request(image, prompt, text, f"{self.files[0]}, record {self.plan.records[i].id!r}")
            for images in self.plan.shown.values()
            for image, (i, text) in zip(images, self.plan.rows, strict=True)
        ]

    def report(self, prompt: str, answers: Answers):
        """The report of `hacl.evaluation.likelihood.caption_margins`."""
        import numpy as np

        from hacl.evaluation.likelihood import LogLikelihoods, margin_report

        scores = {}
        for condition, images in self.plan.shown.items():
            rows = [answers[_key(image, prompt, text)] for image, (_, text) in zip(images, self.plan.rows, strict=True)]
            total = np.array([row["total"] for row in rows], dtype=np.float64)
            scores[condition] = LogLikelihoods(total, np.array([row["tokens"] for row in rows]))
        return margin_report(self.plan, scores)


def _subset(path: Path, place: Place, limit: int | None) -> list[Pair]:
    content = load_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected an object of index -> item, as in the data folder of sugar-crepe")
    pairs = []
    for index, row in list(content.items())[:limit]:
        where = f"{path}, item {index}"
        name = require(row, "filename", where)
        texts = (require(row, "caption", where), require(row, "negative_caption", where))
        image = find_image(place.images, name, where)
        pairs.append(Pair(path.stem, int(index) if index.isdigit() else index, image, name, texts, where))
    return pairs


def _key(image: Path | None, prompt: str, text: str) -> str:
    return request_key(image, prompt, text, kind="log p")


def _request(image: Path | None, prompt: str, text: str, where: str) -> Request:
    return Request(_key(image, prompt, text), image, prompt, where, text=text)


def _score(image: Path, prompt: str, text: str, answers: Answers, scoring: str) -> float:
    seen = answers[_key(image, prompt, text)]
    if scoring == "mean":
        return seen["total"] / max(seen["tokens"], 1)
    if scoring == "sum":
        return seen["total"]
    return seen["total"] - answers[_key(None, prompt, text)]["total"]
