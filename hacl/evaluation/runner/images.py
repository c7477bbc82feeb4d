"""Which images CHAIR captions: those of a records file, or a fixed, versioned list drawn from a COCO folder.

No torch here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hacl.evaluation.runner.places import Place, find_image
from hacl.evaluation.runner.plan import Item, Part, Plan
from hacl.evaluation.runner.questions import LONG
from hacl.evaluation.scorers.reading import InputError, iter_rows, load_json

# The usual protocol captions 500 images of val2014, each project drawing its own; this list is drawn by hash, so that
# it depends on nothing but its name and the image ids.
COCO_LIST, COCO_COUNT = "hacl-coco-500-v1", 500
INSTANCES = ("instances_val2014.json", "instances_val2017.json")
VOCABULARY, TRUTH = "vocabulary.json", "truth.json"


def chair_plan(place: Place, limit: int | None = None) -> Plan:
    """Images to caption and what CHAIR compares the captions with.

    A records file (or the one .jsonl of a folder) is captioned whole. Its truth is ``truth.json`` beside it, or the
    records' own objects; with ``vocabulary.json`` (word -> object) beside it the exact-words scorer of that vocabulary
    is used. A folder of COCO annotations is captioned by the list `COCO_LIST`.
    """
    instances = _coco_instances(place)
    if instances is not None:
        return _coco_plan(place, instances, limit)
    path = _records_file(place)
    items: dict[str, Item] = {}
    objects: dict[str, Any] = {}
    for where, row in iter_rows(path):
        if limit is not None and len(items) >= limit:
            break
        item = _row_item(row, str(where), place)
        items.setdefault(item.id, item)  # several records may show one image; it is captioned once
        objects.setdefault(item.id, row.get("objects"))
    meta = {"image_list": path.name, "image_list_sha256": list_digest(list(items)), "images": len(items)}
    vocabulary, truth = place.folder / VOCABULARY, place.folder / TRUTH
    chosen = list(items.values())
    if vocabulary.is_file():
        for item in chosen:
            if not isinstance(objects[item.id], Mapping | list):
                raise InputError(f"{item.where}: no 'objects'; {vocabulary} scores by the objects of every record")
        part = Part("", chosen, "chair_words", (load_json(vocabulary), objects))
        return Plan("chair", [part], [path, vocabulary], meta)
    if truth.is_file():
        return Plan("chair", [Part("", chosen, "chair", truth)], [path, truth], meta)
    raise FileNotFoundError(
        f"{place.folder}: neither {TRUTH} (data_prep/make_chair_truth.py writes it) nor {VOCABULARY} (word -> object, "
        "for records with their own objects) is there; CHAIR needs one of them beside the images to caption"
    )


def coco_list(image_ids: list[int], count: int = COCO_COUNT) -> list[int]:
    """The `count` ids whose SHA-256 of "hacl-coco-500-v1/ID" is smallest, in ascending order of id."""
    ranked = sorted(image_ids, key=lambda i: hashlib.sha256(f"{COCO_LIST}/{i}".encode()).hexdigest())
    return sorted(ranked[:count])


def list_digest(names: list[Any]) -> str:
    """SHA-256 of the ids, one a line: two runs with one digest captioned the same images."""
    return hashlib.sha256("".join(f"{name}\n" for name in names).encode()).hexdigest()


def _coco_instances(place: Place) -> Path | None:
    if place.data.is_file():
        return place.data if place.data.name in INSTANCES else None
    folders = (place.data, place.data / "annotations")
    return next((f / name for f in folders for name in INSTANCES if (f / name).is_file()), None)


def _coco_plan(place: Place, instances: Path, limit: int | None) -> Plan:
    with instances.open(encoding="utf-8") as stream:
        images = {entry["id"]: entry["file_name"] for entry in json.load(stream)["images"]}
    chosen = coco_list(list(images))[:limit]
    split = instances.stem.removeprefix("instances_")
    roots = [folder for root in place.images for folder in (root / split, root) if folder.is_dir()]
    items = []
    for image_id in chosen:
        where = f"{instances}, image {image_id}"
        image = find_image(roots, images[image_id], where)
        items.append(Item(str(image_id), image, "", {"image_id": image_id}, "caption", LONG, where))
    meta = {"image_list": COCO_LIST, "image_list_sha256": list_digest(chosen), "images": len(chosen)}
    return Plan("chair", [Part("", items, "chair", instances.parent)], [instances], meta)


def _records_file(place: Place) -> Path:
    if place.data.is_file():
        return place.data
    named = [place.data / f"{stem}.jsonl" for stem in ("records", "images", "annotations", "chair")]
    found = [path for path in named if path.is_file()] or sorted(place.data.glob("*.jsonl"))
    if len(found) != 1:
        raise FileNotFoundError(
            f"{place.data}: {len(found)} files could be the images to caption; give --data chair=FILE (records with "
            f"'image'), or a folder with {INSTANCES[0]}"
        )
    return found[0]


def _row_item(row: Mapping[str, Any], where: str, place: Place) -> Item:
    names = row.get("image", row.get("file_name"))
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise InputError(f"{where}: 'image' (or 'file_name') must name exactly one image, found {names!r}")
    identity = next((row[key] for key in ("image_id", "coco_id") if row.get(key) is not None), Path(names[0]).stem)
    image = find_image(place.images, names[0], f"{where}, image {identity!r}")
    return Item(str(identity), image, "", {"image_id": identity}, "caption", LONG, where)
