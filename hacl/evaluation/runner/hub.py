"""Benchmarks from the Hub, only where ``--data NAME=hub:OWNER/DATASET`` asks for one: fetched once, then local files.

The rows are written in the benchmark's own layout, images beside them, so that everything after is as with local data.
Needs the package `datasets` and a network; nothing is fetched otherwise.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from hacl.data.images import check_relative
from hacl.evaluation.runner.places import HUB
from hacl.evaluation.runner.store import write_json, write_lines
from hacl.plain_text import file_part

Row = Mapping[str, Any]
DONE = "source.json"


def fetch(benchmark: str, source: str, folder: Path, load: Callable[[str], Iterable[Row]] | None = None) -> Path:
    """The folder of a Hub data set in the benchmark's local layout, written at the first call.

    source: ``hub:owner/name``; its test split is read (columns as lmms-lab publishes them). load: gives the rows of a
    name, by default `datasets.load_dataset`.

    Raises:
        ValueError: the benchmark is not offered from the Hub, a column is missing, or `datasets` is not installed.
    """
    if benchmark not in WRITERS:
        raise ValueError(f"--data {benchmark}={source}: from the Hub there are {', '.join(WRITERS)}; give local files")
    name = source.removeprefix(HUB)
    target = folder / name.replace("/", "--")
    if (target / DONE).is_file():
        return target
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(f"--data {benchmark}={source}: fetch it in one process first, for example with --dry-run")
    rows = (load or _load)(name)
    (target / "images").mkdir(parents=True, exist_ok=True)
    count = WRITERS[benchmark](rows, target)
    write_json(target / DONE, {"dataset": name, "split": "test", "rows": count})
    return target


def _load(name: str) -> Iterable[Row]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ValueError(f"--data hub:{name} needs the package datasets: pip install datasets") from error
    return load_dataset(name, split="test")


def _pope(rows: Iterable[Row], target: Path) -> int:
    """lmms-lab/POPE: question_id, question, answer, image_source, image, category (the split)."""
    splits: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        image = _save(_column(row, "image"), target, str(_column(row, "image_source")))
        question = {"question_id": _column(row, "question_id"), "image": image}
        question |= {"text": _column(row, "question"), "label": _column(row, "answer")}
        splits.setdefault(_safe(str(row.get("category", "all"))), []).append(question)
    for name, questions in splits.items():
        write_lines(target / f"pope_{name}.jsonl", questions)
    return sum(map(len, splits.values()))


def _mme(rows: Iterable[Row], target: Path) -> int:
    """lmms-lab/MME: question_id (category/image), image, question, answer, category."""
    tables: dict[str, list[str]] = {}
    for row in rows:
        category = _safe(str(_column(row, "category")))
        folder = target / "images" / category
        folder.mkdir(exist_ok=True)
        stem = Path(str(_column(row, "question_id"))).stem
        image = _save(_column(row, "image"), target, f"{category}/{stem}")
        cells = (Path(image).name, _column(row, "question"), _column(row, "answer"))
        tables.setdefault(category, []).append("\t".join(" ".join(str(cell).split()) for cell in cells) + "\n")
    for category, lines in tables.items():
        (target / f"{category}.txt").write_text("".join(lines), encoding="utf-8")
    return sum(map(len, tables.values()))


WRITERS: dict[str, Callable[[Iterable[Row], Path], int]] = {"pope": _pope, "mme": _mme}


def _save(image: Any, target: Path, stem: str) -> str:
    """Write a PIL image once as PNG; its name below the image root."""
    name = f"{stem}.png"
    check_relative(name)
    path = target / "images" / name
    if not path.is_file():
        image.convert("RGB").save(path)
    return name


def _safe(name: str) -> str:
    """A category that becomes part of a file name. Raises ValueError where it cannot."""
    return file_part(name, "the Hub data set's category")


def _column(row: Row, key: str) -> Any:
    if key not in row:
        raise ValueError(f"the Hub data set has no column {key!r}, but {json.dumps(sorted(row))}; give local files")
    return row[key]
