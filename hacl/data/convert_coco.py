"""Records from COCO captions with instances, from Karpathy's split files, and from Flickr30k's token file.

Memory: COCO annotations are joined by image, which takes about 1 kB per image of the file (0.2 GB for train2017); the
other two are read one image at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from hacl.data.json_stream import iter_json_members
from hacl.data.records import Record, RecordError, parse_record


def members(path: Path) -> Iterator[tuple[str, Any]]:
    """`iter_json_members` with errors that name the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        yield from iter_json_members(path)
    except ValueError as error:
        raise RecordError(f"{path}: not a readable JSON object ({error}); download the file again") from error


def taken(row: Any, keys: tuple[str, ...], where: str) -> tuple:
    """The values of some keys. Raises RecordError naming one that is missing."""
    missing = [key for key in keys if not isinstance(row, dict) or key not in row]
    if missing:
        raise RecordError(f"{where}: key {missing[0]!r} is missing; see whether --format fits the file")
    return tuple(row[key] for key in keys)


def coco_records(path: Path, instances: Path | None = None) -> Iterator[Record]:
    """One record per image of a COCO captions file, in the order of its images.

    instances: the instances file of the same images. An image it lists without an instance has `objects` {}, one it
    does not list has none; names of crowd regions, which count one each, are also kept in `crowds`.
    """
    images: dict[Any, tuple[str, list[str]]] = {}
    waiting: list[tuple[Any, str]] = []
    for key, row in members(path):
        if key == "images":
            name, number = taken(row, ("file_name", "id"), f"{path}:images")
            images[number] = (name, [])
        elif key == "annotations":
            number, caption = taken(row, ("image_id", "caption"), f"{path}:annotations")
            if number in images:
                images[number][1].append(caption)
            else:
                waiting.append((number, caption))  # the annotations may come first
    for number, caption in waiting:
        if number not in images:
            raise RecordError(f"{path}: a caption of image {number!r}, which `images` does not list")
        images[number][1].append(caption)
    objects = _coco_objects(instances) if instances is not None else {}
    for number, (name, captions) in images.items():
        row = {"id": str(number), "image": name, "image_id": str(number), "captions": captions}
        if number in objects:
            row["objects"], crowds = objects[number]
            if crowds:
                row["crowds"] = crowds
        if captions:
            yield parse_record(row, where=f"{path}:image {number}")


def _coco_objects(path: Path) -> dict[Any, tuple[dict[str, int], list[str]]]:
    """Image id -> names with counts, names of crowds."""
    names: dict[Any, str] = {}
    counts: dict[Any, Counter] = {}
    crowds: dict[Any, set] = {}
    for key, row in members(path):
        if key == "categories":
            number, name = taken(row, ("id", "name"), f"{path}:categories")
            names[number] = name
        elif key == "images":
            (number,) = taken(row, ("id",), f"{path}:images")
            counts.setdefault(number, Counter())
        elif key == "annotations":
            number, category = taken(row, ("image_id", "category_id"), f"{path}:annotations")
            counts.setdefault(number, Counter())[category] += 1
            if row.get("iscrowd"):
                crowds.setdefault(number, set()).add(category)
    unknown = {category for found in counts.values() for category in found} - names.keys()
    if unknown:
        raise RecordError(f"{path}: category {min(unknown, key=str)!r} has no name in `categories`")
    return {
        number: (
            {names[category]: count for category, count in found.items()},
            sorted(names[category] for category in crowds.get(number, ())),
        )
        for number, found in counts.items()
    }


def karpathy_records(path: Path) -> Iterator[Record]:
    """One record per image of a `dataset_*.json` (Karpathy and Fei-Fei, 2015: Flickr8k, Flickr30k, COCO)."""
    for key, row in members(path):
        if key != "images":
            continue
        name, sentences = taken(row, ("filename", "sentences"), f"{path}:images")
        where = f"{path}:{name}"
        record = {
            "id": str(row.get("cocoid", Path(name).stem)),
            "image": f"{row['filepath']}/{name}" if row.get("filepath") else name,
            "image_id": str(row.get("cocoid", Path(name).stem)),
            "captions": [taken(sentence, ("raw",), where)[0] for sentence in sentences],
        }
        if row.get("split"):
            record["split"] = row["split"]
        yield parse_record(record, where=where)


def token_records(path: Path) -> Iterator[Record]:
    """One record per image of `results.token`: lines of image name, "#", number, tab, caption."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")

    def lines() -> Iterator[tuple[str, str, int]]:
        with path.open(encoding="utf-8-sig", newline="") as file:
            try:
                for number, line in enumerate(file, start=1):
                    if not line.strip():
                        continue
                    name, tab, caption = line.rstrip("\r\n").partition("\t")
                    if not tab or "#" not in name:
                        raise RecordError(f"{path}:{number}: expected NAME.jpg#0, a tab and a caption")
                    yield name.rpartition("#")[0], caption, number
            except UnicodeDecodeError as error:
                raise RecordError(f"{path}: not UTF-8 ({error})") from error

    for name, group in groupby(lines(), key=lambda line: line[0]):
        found = list(group)
        row = {"id": Path(name).stem, "image": name, "image_id": Path(name).stem, "captions": [c for _, c, _ in found]}
        yield parse_record(row, where=f"{path}:{found[0][2]}")
