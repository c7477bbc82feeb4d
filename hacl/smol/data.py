"""coco-mini as records: read, split by photograph, and given hallucinated captions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hacl.data.records import Record
from hacl.hallucinate.cooccurrence import cooccurrence
from hacl.hallucinate.lexical import LexicalHallucinator

ANNOTATIONS = "annotations.jsonl"
SPLITS = {"test": 109, "validation": 24}  # the rest trains


def read_coco_mini(folder: Path) -> list[Record]:
    """One record per photograph of the coco-mini folder; `extra` keeps licence, attribution and CHAIR objects.

    Raises FileNotFoundError naming the folder, ValueError naming file, line and key.
    """
    path = folder / ANNOTATIONS
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; set HACL_DATA to the folder that holds coco-mini")
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        row = json.loads(line)
        missing = {"coco_id", "file_name", "captions", "instances", "chair_objects", "license", "flickr_url"} - set(row)
        if missing:
            raise ValueError(f"{path}:{number}: missing keys {sorted(missing)}")
        records.append(
            Record(
                id=f"coco-{row['coco_id']}",
                images=(f"images/{row['file_name']}",),
                image_id=str(row["coco_id"]),
                captions=tuple(text.strip() for text in row["captions"]),
                objects=row["instances"],
                extra={key: row[key] for key in ("chair_objects", "license", "flickr_url")},
            )
        )
    return records


def split_by_photograph(records: Sequence[Record]) -> dict[str, list[Record]]:
    """train, validation and test, by the order of a hash of the photograph's id: the same wherever it is computed."""
    order = sorted(records, key=lambda r: hashlib.blake2b(r.image_id.encode(), digest_size=8).digest())
    found, start = {}, 0
    for name, count in SPLITS.items():
        found[name] = order[start : start + count]
        start += count
    return {"train": order[start:], **found}


def hallucinate(records: Sequence[Record], *, per_caption: int, seed: int, knowledge: Sequence[Record]) -> list[Record]:
    """Add up to `per_caption` lexical edits of every caption; `knowledge`: records that tell which objects go together.

    Photographs whose captions offer no edit are left out: they could be no hard negative.
    """
    generator = LexicalHallucinator(seed=seed, cooccurrence=cooccurrence(knowledge))
    edited = []
    for record in records:
        proposals = [p for i in range(len(record.captions)) for p in generator.propose(record, i, per_caption)]
        if proposals:
            edited.append(replace(record, hallucinated=tuple(proposals)))
    return edited


def with_edits_only(record: Record) -> Record:
    """The record with the captions that have an edit, renumbered: what a caption margin needs and no more."""
    kept = sorted({h.of for h in record.hallucinated})
    place = {old: new for new, old in enumerate(kept)}
    return replace(
        record,
        captions=tuple(record.captions[i] for i in kept),
        hallucinated=tuple(replace(h, of=place[h.of]) for h in record.hallucinated),
    )
