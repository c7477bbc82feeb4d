"""CHAIR's ground truth: segmentation categories united with the objects that the reference captions name.

From a folder of COCO annotation files, read in a streaming way, or from an object cache: a JSON file that
data_prep/make_chair_truth.py writes once, so that later scoring needs neither the 500 MB of annotations nor language
data. Without the captions half scores come out too high (Rohrbach et al., 2018, section 3.1), so it is never left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hacl.data.json_stream import first_character, iter_json_members
from hacl.evaluation.scorers.base import InputError
from hacl.evaluation.scorers.chair_extract import Extractor
from hacl.evaluation.scorers.chair_words import HEADS, OBJECT_OF, closest_head
from hacl.evaluation.scorers.reading import as_paths, iter_rows, load_json

FORMAT = "hacl-chair-truth"
SPLITS, YEARS = ("train", "val"), (2014, 2017)
Members = Iterable[tuple[str, Any]]


@dataclass
class ChairTruth:
    """Objects of every image.

    Attributes:
        objects: image id as text -> head words.
        paths: files it was read from.
        dialect: the dialect that read the reference captions; None where the source does not say.
        warnings: what a reader of the scores should know.
        captions: reference captions read here (0 from a cache).
    """

    objects: dict[str, frozenset[str]]
    paths: list[Path] = field(default_factory=list)
    dialect: str | None = None
    warnings: list[str] = field(default_factory=list)
    captions: int = 0

    def to_json(self, source: Mapping[str, Any]) -> dict[str, Any]:
        """The object cache; ``source`` says what it was made from."""
        objects = {image_id: sorted(names) for image_id, names in sorted(self.objects.items())}
        return {"format": FORMAT, "version": 1, "dialect": self.dialect, "source": dict(source), "objects": objects}


class TruthBuilder:
    """Collects objects per image; equal sets are stored once."""

    def __init__(self, extractor: Extractor) -> None:
        self.extractor = extractor
        self.found: dict[str, set[str]] = {}
        self.captions = 0

    def add_image(self, image_id: object) -> set[str]:
        """An image that is known, even if nothing is in it."""
        return self.found.setdefault(str(image_id), set())

    def add_category(self, image_id: object, name: str, where: object) -> None:
        """A segmented object.

        Raises:
            InputError: the name is none of the list's words.
        """
        if name not in OBJECT_OF:
            near = closest_head(name)
            hint = f"; did you mean {near!r}?" if near else ""
            raise InputError(f"{where}: {name!r} is no object of CHAIR's list{hint}")
        self.add_image(image_id).add(OBJECT_OF[name])

    def add_caption(self, image_id: object, caption: str) -> None:
        """A reference caption."""
        self.captions += 1
        self.add_image(image_id).update(self.extractor.mentions(caption).objects)

    def finish(self, dialect: str, paths: list[Path]) -> ChairTruth:
        """What was collected."""
        shared: dict[frozenset[str], frozenset[str]] = {}
        objects = {}
        for image_id, names in self.found.items():
            key = frozenset(names)
            objects[image_id] = shared.setdefault(key, key)
        self.found = {}
        return ChairTruth(objects, paths, dialect, captions=self.captions)


def load_truth(references: Any, extractor: Extractor, dialect: str) -> ChairTruth:
    """Ground truth from whatever ``--references`` names.

    Args:
        references: a folder with ``instances_{train,val}2014.json`` and ``captions_{train,val}2014.json`` (2017 works
            too, a split may be left out), paths of such files, an object cache, rows (:func:`add_row`), or the content
            of any of these: a mapping from file name to content, a cache, image id to objects, a list of rows.

    Raises:
        FileNotFoundError: a file is missing, or a split has segmentation but no captions.
        InputError: it is something else, or a cache of the other dialect.
    """
    paths = as_paths(references)
    if not paths:
        if isinstance(references, list | tuple) and references:
            return _from_rows(references, extractor, dialect, [])
        if not isinstance(references, Mapping):
            raise InputError(f"chair references: {type(references).__name__}; give a folder, a file or a mapping")
        if any(_kind(str(name)) for name in references):
            contents = [(str(name), _given_members(content)) for name, content in references.items()]
            return _from_annotations(contents, extractor, dialect, [])
        return _from_cache(references, dialect, "references", [])
    if len(paths) == 1 and paths[0].is_dir():
        paths = _annotation_files(paths[0])
    if len(paths) == 1 and not _kind(paths[0].name):
        if _holds_rows(paths[0]):
            return _from_rows(paths[0], extractor, dialect, paths)
        return _from_cache(load_json(paths[0]), dialect, paths[0], paths)
    return _from_annotations([(str(path), _file_members(path)) for path in paths], extractor, dialect, paths)


def _kind(name: str) -> str:
    return next((kind for kind in ("instances", "captions") if Path(name).name.startswith(kind)), "")


def _annotation_files(folder: Path) -> list[Path]:
    for year in YEARS:
        paths = []
        for split in SPLITS:
            pair = [folder / f"{kind}_{split}{year}.json" for kind in ("instances", "captions")]
            there = [path for path in pair if path.is_file()]
            if len(there) == 1:
                missing = next(path for path in pair if path not in there)
                raise FileNotFoundError(f"{missing}: no such file; CHAIR needs segmentation and captions of a split")
            paths += there
        if paths:
            return paths
    caches = sorted(folder.glob("*.json"))
    if len(caches) == 1:
        return caches
    raise FileNotFoundError(
        f"{folder}: no instances_val2014.json and captions_val2014.json; unpack COCO's annotations_trainval2014.zip "
        "there, or give an object cache made by data_prep/make_chair_truth.py"
    )


def _file_members(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        yield from iter_json_members(path)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not JSON ({error.msg}); fetch the file again") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: the file is not UTF-8 ({error.reason} at byte {error.start})") from error


def _given_members(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, list):
            yield from ((key, element) for element in value)
        else:
            yield key, value


def _from_annotations(
    sources: Iterable[tuple[str, Members]], extractor: Extractor, dialect: str, paths: list[Path]
) -> ChairTruth:
    builder = TruthBuilder(extractor)
    kinds = set()
    for name, members in sources:
        kind = _kind(name)
        if not kind:
            raise InputError(f"{name}: neither instances_*.json nor captions_*.json")
        kinds.add(kind)
        names: dict[Any, str] = {}
        categories: dict[Any, set[Any]] = {}
        count = 0
        for key, entry in members:
            try:
                if key == "images":
                    builder.add_image(entry["id"])
                elif key == "categories":
                    names[entry["id"]] = entry["name"]
                elif key == "annotations":
                    count += 1
                    if kind == "captions":
                        builder.add_caption(entry["image_id"], entry["caption"])
                    else:
                        categories.setdefault(entry["image_id"], set()).add(entry["category_id"])
            except (KeyError, TypeError, AttributeError) as error:
                raise InputError(f"{name}: an entry of {key!r} is not as in COCO ({error!r})") from error
        if not count:
            raise InputError(f"{name}: no annotations; COCO's {kind} files have a list under that key")
        for image_id, found in categories.items():
            for category in found:
                if category not in names:
                    raise InputError(f"{name}: annotation of image {image_id} has category_id {category}, not listed")
                builder.add_category(image_id, names[category], name)
    if kinds != {"instances", "captions"}:
        raise InputError(f"chair references: only {', '.join(sorted(kinds))}; both instances and captions are needed")
    return builder.finish(dialect, paths)


def add_row(builder: TruthBuilder, row: Mapping[str, Any], where: object, id_key: str | None = None) -> bool:
    """Objects of one image from a row like those of coco-mini or of this project's records.

    The row names the image by ``id_key`` (default: coco_id, image_id, or the file name) and has ``instances`` or
    ``objects`` (names, or name -> count) and ``captions``. Where both of the first are null, ``chair_objects`` counts;
    without that the image is left out, since "not annotated" is not "no objects".

    Returns:
        whether the image is annotated.

    Raises:
        InputError: no id, or a field of another kind.
    """
    keys = (id_key,) if id_key else ("coco_id", "image_id", "file_name", "image")
    image_id = next((row[key] for key in keys if isinstance(row.get(key), int | str)), None)
    if image_id is None:
        raise InputError(f"{where}: no {' or '.join(map(repr, keys))}; each row names one image")
    captions = row.get("captions") or ()
    listed = next((row[key] for key in ("instances", "objects") if row.get(key) is not None), None)
    if listed is None:
        listed, captions = row.get("chair_objects"), ()
    if listed is None:
        return False
    if not isinstance(listed, list | Mapping) or not all(isinstance(name, str) for name in (*listed, *captions)):
        raise InputError(f"{where}: objects and captions must be texts")
    builder.add_image(image_id)
    for name in listed:
        # A count of zero says that the object was looked for and is not there.
        if not isinstance(listed, Mapping) or listed[name]:
            builder.add_category(image_id, name, where)
    for caption in captions:
        builder.add_caption(image_id, caption)
    return True


def _holds_rows(path: Path) -> bool:
    """Whether a file is JSONL or a JSON list, not one object."""
    return first_character(path) == "[" or path.suffix == ".jsonl"


def _from_rows(
    source: Path | Sequence[Mapping[str, Any]], extractor: Extractor, dialect: str, paths: list[Path]
) -> ChairTruth:
    builder = TruthBuilder(extractor)
    left_out = sum(not add_row(builder, row, where) for where, row in iter_rows(source, "references row"))
    if not builder.found:
        raise InputError(f"{source}: no annotated image; rows need instances or objects")
    truth = builder.finish(dialect, paths)
    if left_out:
        truth.warnings.append(f"{left_out} images of the references have no annotation and cannot be scored")
    return truth


def _from_cache(content: Any, dialect: str, where: object, paths: list[Path]) -> ChairTruth:
    """A cache as data_prep/make_chair_truth.py writes it, or a plain object image id -> objects."""
    if not isinstance(content, Mapping):
        raise InputError(f"{where}: {type(content).__name__}; an object cache is a JSON object, image id -> objects")
    made_for, warnings, objects = None, [], content
    if content.get("format") == FORMAT:
        made_for, objects = content.get("dialect"), content.get("objects")
        if made_for != dialect:
            raise InputError(
                f"{where}: its captions were read by dialect {made_for!r}, the scoring uses {dialect!r}; "
                f"pass --dialect {made_for}, or make a cache with data_prep/make_chair_truth.py --dialect {dialect}"
            )
    else:
        objects = content.get("objects", content)
        warnings.append(f"{where} does not say by which dialect its reference captions were read")
    if not isinstance(objects, Mapping) or not objects:
        raise InputError(f"{where}: no images; an object cache maps image ids to lists of objects")
    known, shared = set(HEADS), {}
    loaded = {}
    for image_id, names in objects.items():
        if not isinstance(names, list | tuple | set | frozenset | Mapping):
            raise InputError(f"{where}: image {image_id}: {type(names).__name__} in place of a list of objects")
        key = frozenset(names)
        if key not in shared:
            unknown = sorted(map(str, key - known))
            if unknown:
                near = closest_head(unknown[0])
                hint = f"; did you mean {near!r}?" if near else ""
                raise InputError(f"{where}: image {image_id}: {unknown[0]!r} is no head word of CHAIR's list{hint}")
            shared[key] = key
        loaded[str(image_id)] = shared[key]
    return ChairTruth(loaded, paths, made_for, warnings)
