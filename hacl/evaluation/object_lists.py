"""Which objects each image of an annotated collection shows: the input of POPE questions for any data.

Reads COCO instances, collections like coco-mini (``file_name``, ``instances``), and this project's records
(``image``, ``objects``), among them those of drawn scenes. An image without annotation is left out and counted; "not
annotated" never means "no objects".
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hacl.data.json_stream import first_character, iter_json_members
from hacl.data.records import iter_raw
from hacl.evaluation.scorers.chair_extract import PatternExtractor, WordnetExtractor


@dataclass
class ObjectLists:
    """Objects of every annotated image.

    Attributes:
        objects: image file name -> its objects, in the order of the annotation, none twice.
        ids: image file name -> the identity that captions of it carry (COCO id, record's image id).
        unannotated: images without annotation, left out.
        mentioned: image file name -> COCO objects that its captions name (empty where there are no captions).
            Annotators leave out tables and cups that captions speak of.
    """

    objects: dict[str, list[str]] = field(default_factory=dict)
    ids: dict[str, Any] = field(default_factory=dict)
    unannotated: int = 0
    mentioned: dict[str, set[str]] = field(default_factory=dict)

    def add(self, image: str, image_id: Any, names: Iterable[str]) -> None:
        """Unite with what is known of the image (several records may share one)."""
        known = dict.fromkeys(self.objects.get(image, ()))
        known.update(dict.fromkeys(names))
        self.objects[image] = list(known)
        self.ids.setdefault(image, image_id)

    def add_captions(self, path: Path) -> None:
        """Objects mentioned in the captions of a COCO ``captions_*.json``.

        Raises:
            FileNotFoundError: no such file. ValueError: it is of another kind.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; give COCO's captions of the same images")
        images = {image_id: image for image, image_id in self.ids.items()}
        named_in = _Mentions()
        try:
            for key, entry in iter_json_members(path):
                if key == "annotations" and entry["image_id"] in images:
                    named = self.mentioned.setdefault(images[entry["image_id"]], set())
                    named.update(named_in(entry["caption"]))
        except (json.JSONDecodeError, KeyError) as error:
            raise ValueError(f"{path}: no captions as COCO has them ({error})") from error


class _Mentions:
    """COCO objects that a caption names by either dialect of CHAIR: the one misses "bus", the other "men"."""

    def __init__(self) -> None:
        self.extractors = (PatternExtractor(), WordnetExtractor())

    def __call__(self, caption: str) -> set[str]:
        return {name for extractor in self.extractors for name in extractor.mentions(caption).objects}


def read_object_lists(path: Path) -> ObjectLists:
    """Objects per image of one file.

    Args:
        path: COCO ``instances_*.json`` (one JSON object; streamed), or JSONL or a JSON list of rows.

    Raises:
        FileNotFoundError: no such file. ValueError: no image with objects, or a row of another kind.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give COCO instances, coco-mini's annotations, or records")
    lists = _coco(path) if _is_coco(path) else _rows(path)
    if not any(lists.objects.values()):
        raise ValueError(f"{path}: no image with an object ({lists.unannotated} images without annotation)")
    return lists


def _is_coco(path: Path) -> bool:
    """One JSON object over several lines or longer than a row; rows of JSONL end with their line."""
    if first_character(path) != "{":
        return False
    with path.open(encoding="utf-8-sig") as file:
        start = file.read(4096).lstrip()
    try:
        key, _ = json.JSONDecoder().raw_decode(start[1:].lstrip())
    except json.JSONDecodeError:
        return False
    return key in ("info", "images", "licenses", "annotations", "categories", "type")


def _coco(path: Path) -> ObjectLists:
    files: dict[Any, str] = {}
    names: dict[Any, str] = {}
    found: dict[Any, dict[Any, None]] = {}
    try:
        for key, entry in iter_json_members(path):
            if key == "images":
                files[entry["id"]] = entry["file_name"]
            elif key == "categories":
                names[entry["id"]] = entry["name"]
            elif key == "annotations":
                found.setdefault(entry["image_id"], {})[entry["category_id"]] = None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error.msg}); fetch the file again") from error
    except KeyError as error:
        raise ValueError(f"{path}: an entry has no {error}; COCO's instances files have it in every entry") from error
    lists = ObjectLists()
    for image_id, file_name in files.items():
        unknown = [category for category in found.get(image_id, ()) if category not in names]
        if unknown:
            raise ValueError(f"{path}: image {image_id} has category_id {unknown[0]}, which is not listed")
        lists.add(file_name, image_id, [names[category] for category in found.get(image_id, ())])
    return lists


def _rows(path: Path) -> ObjectLists:
    lists, named_in = ObjectLists(), _Mentions()
    for where, row in iter_raw(path):
        if not isinstance(row, dict):
            raise ValueError(f"{where}: {type(row).__name__} in place of an object")
        image = row.get("file_name", row.get("image"))
        if not isinstance(image, str):
            raise ValueError(f"{where}: no file_name and no image; each row names one image file")
        if "instances" not in row and "objects" not in row:
            raise ValueError(f"{where}: neither instances nor objects; annotate the images, or leave the file out")
        objects = row.get("instances", row.get("objects"))
        if objects is None:
            lists.unannotated += 1
            continue
        if not isinstance(objects, dict | list) or not all(isinstance(name, str) for name in objects):
            raise ValueError(f"{where}: objects must be a list of names or name -> count")
        # A count of zero says that the object was looked for and is not there.
        present = objects if isinstance(objects, list) else [name for name, count in objects.items() if count]
        lists.add(image, row.get("coco_id", row.get("image_id", image)), present)
        for caption in row.get("captions") or ():
            lists.mentioned.setdefault(image, set()).update(named_in(caption))
    return lists
