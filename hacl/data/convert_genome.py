"""Records from Visual Genome (regions, objects, questions) and GQA (questions, scene graphs).

Questions and regions are streamed; annotations of a second file are kept by image as names with counts, which are
numbers of boxes: the annotators of Visual Genome drew several for some things and none for others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from hacl.data.convert_coco import members, taken
from hacl.data.records import Record, iter_raw, parse_record


def genome_records(path: Path, objects: Path | None = None) -> Iterator[Record]:
    """One record per image of `region_descriptions.json`; captions are its distinct region phrases.

    objects: `objects.json` of the same images. Image paths are "ID.jpg": the two parts of the collection belong in one
    folder.
    """
    counts = _genome_objects(objects) if objects is not None else {}
    for where, raw in iter_raw(path):
        (regions,) = taken(raw, ("regions",), where)
        phrases = [taken(region, ("phrase",), where)[0] for region in regions]
        name = str(raw["id"] if "id" in raw else taken(regions[0] if regions else {}, ("image_id",), where)[0])
        captions = list({" ".join(text.lower().split()): text for text in phrases if text.strip()}.values())
        if captions:
            row = {"id": name, "image": f"{name}.jpg", "image_id": name, "captions": captions}
            yield parse_record(row | ({"objects": counts[name]} if name in counts else {}), where=where)


def genome_qa_records(path: Path) -> Iterator[Record]:
    """One record per image of `question_answers.json`, whose questions and answers are the turns."""
    for where, raw in iter_raw(path):
        name, pairs = taken(raw, ("id", "qas"), where)
        asked = [taken(pair, ("question", "answer"), where) for pair in pairs]
        if asked:
            yield parse_record(_conversation(str(name), str(name), asked), where=where)


def gqa_records(path: Path, scenes: Path | None = None) -> Iterator[Record]:
    """One record per question of a GQA questions file; runs of questions on one image become turns of one record.

    scenes: scene graphs, whose objects and relations' names are kept with counts.
    """
    counts = _gqa_objects(scenes) if scenes is not None else {}

    def rows() -> Iterator[tuple[str, str, tuple[str, str]]]:
        for name, row in members(path):
            image, question, answer = taken(row, ("imageId", "question", "answer"), f"{path}:{name}")
            yield str(image), name, (question, answer)

    for image, group in groupby(rows(), key=lambda row: row[0]):
        found = list(group)
        record = _conversation(found[0][1], image, [pair for _, _, pair in found])
        record["questions"] = [name for _, name, _ in found]
        if image in counts:
            record["objects"] = counts[image]
        yield parse_record(record, where=f"{path}:{found[0][1]}")


def _conversation(name: str, image: str, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    turns = []
    for index, (question, answer) in enumerate(pairs):
        turns.append({"role": "user", "content": f"<image>\n{question}" if index == 0 else question})
        turns.append({"role": "assistant", "content": answer})
    return {"id": name, "image": f"{image}.jpg", "image_id": image, "conversations": turns}


def _genome_objects(path: Path) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for where, raw in iter_raw(path):
        image = raw["image_id"] if isinstance(raw, dict) and "image_id" in raw else taken(raw, ("id",), where)[0]
        (things,) = taken(raw, ("objects",), where)
        names = (taken(thing, ("names",), where)[0] for thing in things)
        found[str(image)] = dict(Counter(name[0].strip().lower() for name in names if name and name[0].strip()))
    return found


def _gqa_objects(path: Path) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for image, scene in members(path):
        (things,) = taken(scene, ("objects",), f"{path}:{image}")
        found[str(image)] = dict(Counter(taken(t, ("name",), f"{path}:{image}")[0] for t in things.values()))
    return found
