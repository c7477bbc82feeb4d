"""Turn caption collections of other forms into records, one at a time, and split them by photograph."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from hacl.data.convert_coco import coco_records, karpathy_records, token_records
from hacl.data.convert_genome import genome_qa_records, genome_records, gqa_records
from hacl.data.hashes import HashSet, hash64
from hacl.data.json_stream import first_character
from hacl.data.records import Record, RecordError, iter_raw, parse_record

FORMATS = (
    "records", "llava", "hacl", "coco-mini", "coco", "karpathy", "flickr-token", "visual-genome", "visual-genome-qa",
    "gqa",
)  # fmt: skip
INSTANCE_FORMATS = ("coco", "visual-genome", "gqa")  # those that take annotations from a second file


def iter_converted(
    path: Path, form: str | None = None, *, answers_are_captions: bool | None = None, instances: Path | None = None
) -> Iterator[Record]:
    """The records of a file, one at a time.

    form: one of `FORMATS`, or None to tell it from the beginning of the file. answers_are_captions (LLaVA): whether the
    answer of a record with one image and two turns is a caption; None says yes if every record of the file is of that
    shape, as in LLaVA's pre-training file, for which the file is read twice. instances: COCO instances, Visual Genome
    objects or GQA scene graphs of the same images. Repeated ids get "#2", "#3" at their end. Raises RecordError.
    """
    form = tell(path) if form is None else form
    if instances is not None and form not in INSTANCE_FORMATS:
        raise ValueError(f"{instances}: annotations of another file go with {', '.join(INSTANCE_FORMATS)}, not {form}")
    if form in ("coco", "visual-genome", "gqa"):
        read = {"coco": coco_records, "visual-genome": genome_records, "gqa": gqa_records}[form]
        records = read(path, instances)
    elif form in _WHOLE_FILE:
        records = _WHOLE_FILE[form](path)
    else:
        read_row = _coco_mini if form == "coco-mini" else parse_record
        records = (read_row(raw, where=where) for where, raw in iter_raw(path))
        if form == "llava":
            if answers_are_captions is None:
                rows = iter_raw(path)
                answers_are_captions = all(_is_captioned(parse_record(raw, where=where)) for where, raw in rows)
            if answers_are_captions:
                records = map(_with_caption, records)
    yield from _some(path, _unique(records))


def convert(path: Path, form: str | None = None, **options: Any) -> list[Record]:
    """The records of a small file; options as those of `iter_converted`."""
    return list(iter_converted(path, form, **options))


def detect(raw: Any) -> str:
    """The form of a file of rows, told from one of them."""
    keys = raw.keys() if isinstance(raw, dict) else ()
    if "file_name" in keys and "captions" in keys:
        return "coco-mini"
    if "regions" in keys:
        return "visual-genome"
    if "qas" in keys:
        return "visual-genome-qa"
    if "Hallucination caption" in keys:
        return "hacl"
    return "records" if keys & {"captions", "hallucinated"} else "llava"


def tell(path: Path) -> str:
    """The form of a file, told from its beginning. Raises RecordError for one without a record."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if first_character(path) not in ("[", "{"):
        return "flickr-token"
    with path.open("rb") as file:
        start = file.read(1 << 16).decode("utf-8-sig", "replace")
    if first_character(path) == "{" and not re.search(r"\}\s*\n\s*\{", start):  # one object, not lines of them
        if re.search(r'"(sentids|sentences|imgid)"\s*:', start):
            return "karpathy"
        if re.search(r'"imageId"\s*:', start):
            return "gqa"
        if re.search(r'"(annotations|info|licenses)"\s*:|"images"\s*:\s*\[\s*\{', start):
            return "coco"
    for _, raw in islice(iter_raw(path), 1):
        return detect(raw)
    raise RecordError(f"{path}: no records; check the file")


def parts_of(images: Iterable[str], shares: dict[str, float], seed: int) -> dict[str, str]:
    """Image id -> part; shares: part -> share of the images, adding up to 1.

    Which part an image goes to is a function of its id, the ids of the others and the seed, not of the order.
    """
    if abs(sum(shares.values()) - 1) > 1e-6 or min(shares.values()) < 0:
        raise ValueError(f"shares {shares} must not be negative and must add up to 1")
    ordered = sorted(set(images))
    random.Random(seed).shuffle(ordered)
    part_of: dict[str, str] = {}
    given, upto = 0, 0.0
    rest = iter(ordered)
    for part, share in shares.items():
        upto += share
        count = round(upto * len(ordered)) - given
        part_of |= dict.fromkeys(islice(rest, count), part)
        given += count
    return part_of


def split_by_image(records: Sequence[Record], shares: dict[str, float], seed: int) -> dict[str, list[Record]]:
    """Records by part, all records of one image in one part; see `parts_of`."""
    part_of = parts_of((record.image_id for record in records), shares, seed)
    parts: dict[str, list[Record]] = {part: [] for part in shares}
    for record in records:
        parts[part_of[record.image_id]].append(record)
    return parts


_WHOLE_FILE: dict[str, Callable[[Path], Iterator[Record]]] = {
    "karpathy": karpathy_records,
    "flickr-token": token_records,
    "visual-genome-qa": genome_qa_records,
}


def _coco_mini(raw: Any, *, where: str) -> Record:
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


def _unique(records: Iterable[Record]) -> Iterator[Record]:
    """Ids made different; memory: 16 to 32 bytes per id, and the ids that repeat."""
    seen, repeats = HashSet(), Counter[str]()
    for record in records:
        if seen.add(hash64(record.id)):
            yield record
        else:
            repeats[record.id] += 1
            yield replace(record, id=f"{record.id}#{repeats[record.id] + 1}")


def _some(path: Path, records: Iterator[Record]) -> Iterator[Record]:
    empty = True
    for record in records:
        empty = False
        yield record
    if empty:
        raise RecordError(f"{path}: no records; check the file")
