"""Turn caption collections of other forms into records, and split them by photograph."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from hacl.data.records import Record, RecordError, iter_raw, parse_record

FORMATS = ("coco-mini", "llava", "hacl")


def convert(path: Path, form: str | None = None, *, answers_are_captions: bool | None = None) -> list[Record]:
    """Records of a file.

    form: one of `FORMATS`, or None to tell it from the first record. answers_are_captions (LLaVA): whether the answer
    of a record with one image and two turns is a caption; None says yes if every record of the file is of that shape,
    as in LLaVA's pre-training file. Repeated ids get "#2", "#3" at their end. Raises RecordError.
    """
    rows = list(iter_raw(path))
    if not rows:
        raise RecordError(f"{path}: no records; check the file")
    form = detect(rows[0][1]) if form is None else form
    read = {"coco-mini": _coco, "llava": parse_record, "hacl": parse_record}[form]
    records = [read(raw, where=where) for where, raw in rows]
    if form == "llava":
        if answers_are_captions is None:
            answers_are_captions = all(map(_is_captioned, records))
        if answers_are_captions:
            records = [_with_caption(record) for record in records]
    return list(_unique(records))


def detect(raw: Any) -> str:
    """The form of a file, told from one of its records."""
    keys = raw.keys() if isinstance(raw, dict) else ()
    if "file_name" in keys and "captions" in keys:
        return "coco-mini"
    return "hacl" if "Hallucination caption" in keys else "llava"


def split_by_image(records: Sequence[Record], shares: dict[str, float], seed: int) -> dict[str, list[Record]]:
    """Records by part, all records of one image in one part; shares: part -> share of the images, adding up to 1.

    Which part an image goes to is a function of its id, the ids of the others and the seed, not of the order.
    """
    if abs(sum(shares.values()) - 1) > 1e-6 or min(shares.values()) < 0:
        raise ValueError(f"shares {shares} must not be negative and must add up to 1")
    images = sorted({record.image_id for record in records})
    random.Random(seed).shuffle(images)
    part_of: dict[str, str] = {}
    given, upto = 0, 0.0
    rest = iter(images)
    for part, share in shares.items():
        upto += share
        count = round(upto * len(images)) - given
        part_of |= dict.fromkeys(islice(rest, count), part)
        given += count
    parts: dict[str, list[Record]] = {part: [] for part in shares}
    for record in records:
        parts[part_of[record.image_id]].append(record)
    return parts


def _coco(raw: Any, *, where: str) -> Record:
    """A row of the mini collection: instances may be null (not annotated); attribution stays in `extra`."""
    needed = ("file_name", "coco_id", "captions", "instances")
    missing = [key for key in needed if not isinstance(raw, dict) or key not in raw]
    if missing:
        raise RecordError(f"{where}: keys {missing} are missing; expected {', '.join(needed)}")
    rest = {key: value for key, value in raw.items() if key not in needed}
    row = {
        "id": str(raw["coco_id"]),
        "image": f"images/{raw['file_name']}",
        "image_id": str(raw["coco_id"]),
        "captions": _distinct(raw["captions"]),
        "objects": raw["instances"],
    }
    return parse_record({**rest, **row}, where=where)


def _distinct(captions: Any) -> Any:
    """Captions without those that repeat an earlier one up to case and punctuation."""
    if not isinstance(captions, list):
        return captions
    return list({" ".join(re.findall(r"\w+", str(text).lower())): text for text in reversed(captions)}.values())[::-1]


def _is_captioned(record: Record) -> bool:
    return len(record.images) == 1 and [turn.role for turn in record.conversation] == ["user", "assistant"]


def _with_caption(record: Record) -> Record:
    if record.captions or not _is_captioned(record):
        return record
    return replace(record, captions=(record.conversation[1].text.strip(),))


def _unique(records: Sequence[Record]) -> Iterator[Record]:
    seen: Counter[str] = Counter()
    for record in records:
        seen[record.id] += 1
        yield record if seen[record.id] == 1 else replace(record, id=f"{record.id}#{seen[record.id]}")
