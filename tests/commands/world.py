"""Tiny inputs under the names that the documents use: drawn pictures, texts about them, benchmarks.

Each maker takes the path to write and makes one file or folder there.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

COUNT = 16
COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "white": (240, 240, 240), "black": (10, 10, 10)}
OBJECTS = ("dog", "cat", "chair", "cup", "person", "car", "bird", "clock")  # of COCO's eighty
PLACES = ("left", "right")
NAME = "COCO_val2014_{:012d}.png"


def facts(number: int) -> tuple[str, str, str, str]:
    """(colour, object, second object, place) of a picture."""
    first = number % len(OBJECTS)
    second = (first + 1 + number // len(OBJECTS)) % len(OBJECTS)
    return list(COLOURS)[(number + number // 4) % 4], OBJECTS[first], OBJECTS[second], PLACES[number // 2 % 2]


def objects(number: int) -> list[str]:
    """The three things of a picture."""
    _, thing, other, _ = facts(number)
    return [thing, other, next(name for name in OBJECTS[number % 8 :] + OBJECTS if name not in (thing, other))]


def captions(number: int) -> list[str]:
    """Two captions; the first, by turns, with a colour or none, and with "man" or "person"."""
    colour, thing, other, place = facts(number)
    first = [
        f"a man sees a {colour} {thing}",
        f"a {thing} stands",
        f"a man has a {colour} {thing}",
        f"a person has a {thing}",
    ]
    return [
        f"{first[number % 4]} on the {place} of a {other}",
        f"there is one {other} and a {thing if number % 2 else 'man'} near a {objects(number)[2]}",
    ]


def record(number: int, *, hallucinated: bool = True) -> dict:
    """A record of a picture; its image path is below any folder of pictures, and below the folder around it."""
    colour, thing, other, _ = facts(number)
    absent = next(name for name in OBJECTS if name not in objects(number))
    found: dict = {
        "id": str(number),
        "image": f"images/{NAME.format(number)}",
        "image_id": str(number),
        "captions": captions(number),
        "objects": dict.fromkeys(objects(number), 1),
    }
    if hallucinated:
        text = captions(number)[0].replace(thing, absent, 1)
        start = text.index(absent)
        span = [start, start + len(absent)]
        found["hallucinated"] = [{"text": text, "type": "object", "span": span, "source": "test", "of": 0}]
    return found


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def pictures(folder: Path) -> None:
    """The pictures of both halves, by their own names and below `images/` again: commands look for either."""
    from PIL import Image, ImageDraw

    images = folder if folder.name == "images" else folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for number in range(2 * COUNT):
        colour, thing, _, place = facts(number)
        image = Image.new("RGB", (48, 48), (100 + 4 * number, 128, 200 - 4 * number))
        left = 4 if place == "left" else 24
        shape = ImageDraw.Draw(image)
        (shape.ellipse if OBJECTS.index(thing) % 2 else shape.rectangle)(
            (left, 14, left + 18, 32), fill=COLOURS[colour]
        )
        image.save(images / NAME.format(number))
    if images != folder:
        for path in images.iterdir():
            os.link(path, folder / path.name)
    else:
        (folder / "images").mkdir()
        for path in [*folder.glob("*.png")]:
            os.link(path, folder / "images" / path.name)


def records(path: Path) -> None:
    _with_pictures(path, [record(number) for number in range(COUNT)])


def other_records(path: Path) -> None:
    """Records of the other sixteen pictures."""
    _with_pictures(path, [record(number) for number in range(COUNT, 2 * COUNT)])


def validation_records(path: Path) -> None:
    """Half of those."""
    _with_pictures(path, [record(number) for number in range(COUNT, COUNT + COUNT // 2)])


def test_records(path: Path) -> None:
    """The other half."""
    _with_pictures(path, [record(number) for number in range(COUNT + COUNT // 2, 2 * COUNT)])


def plain_captions(path: Path) -> None:
    _with_pictures(path, [record(number, hallucinated=False) for number in range(COUNT)])


def _with_pictures(path: Path, rows: list[dict]) -> None:
    write_lines(path, rows)
    if not (path.parent / "images").exists():
        pictures(path.parent / "images")


def dialogues(path: Path) -> None:
    """Records with one question each: yes or no, a number, a colour."""
    rows = []
    for number in range(4 * COUNT):
        colour, thing, _, _ = facts(number % COUNT)
        asked = [
            (f"is the {thing} red ?", "yes" if number // 3 % 2 else "no"),
            (f"how many things like a {thing} are there ?", "1" if number // 3 % 2 else "3"),
            (f"what colour is the {thing} ?", "white" if number // 3 % 2 else "black"),
        ][number % 3]
        turns = [{"role": "user", "content": f"<image>\n{asked[0]}"}, {"role": "assistant", "content": asked[1]}]
        row = record(number % COUNT, hallucinated=False) | {"id": f"q{number}", "conversations": turns}
        rows.append({key: value for key, value in row.items() if key != "captions"})
    _with_pictures(path, rows)


def llava_pretraining(path: Path) -> None:
    rows = [
        {
            "id": str(number),
            "image": f"images/{NAME.format(number)}",
            "conversations": [
                {"from": "human", "value": "Describe the image concisely.\n<image>"},
                {"from": "gpt", "value": captions(number)[0]},
            ],
        }
        for number in range(COUNT)
    ]
    write_json(path, rows)


def coco_captions(path: Path) -> None:
    images = [{"id": n, "file_name": NAME.format(n), "width": 48, "height": 48} for n in range(COUNT)]
    texts = [(n, text) for n in range(COUNT) for text in captions(n)]
    rows = [{"id": place, "image_id": n, "caption": text} for place, (n, text) in enumerate(texts)]
    write_json(path, {"images": images, "annotations": rows})


def coco_instances(path: Path) -> None:
    images = [{"id": n, "file_name": NAME.format(n), "width": 48, "height": 48} for n in range(COUNT)]
    kinds = [{"id": place, "name": name} for place, name in enumerate(OBJECTS)]
    pairs = [(n, OBJECTS.index(name)) for n in range(COUNT) for name in objects(n)]
    boxes = [{"id": i, "image_id": n, "category_id": k, "bbox": [0, 0, 9, 9]} for i, (n, k) in enumerate(pairs)]
    write_json(path, {"images": images, "annotations": boxes, "categories": kinds})


def coco_folder(folder: Path) -> None:
    """The four annotation files of COCO 2014, as CHAIR reads them."""
    for split in ("train", "val"):
        coco_captions(folder / f"captions_{split}2014.json")
        coco_instances(folder / f"instances_{split}2014.json")


def coco_release(folder: Path) -> None:
    coco_folder(folder / "annotations")


def coco_mini(folder: Path) -> None:
    """The layout of the photograph collection, drawn."""
    rows = [
        {
            "file_name": NAME.format(number),
            "coco_id": number,
            "captions": captions(number),
            "instances": record(number)["objects"],
            "chair_objects": sorted(record(number)["objects"]),
            "license": "none, drawn",
            "license_url": "",
            "flickr_url": "",
            "width": 48,
            "height": 48,
            "origin": "val2017",
        }
        for number in range(COUNT)
    ]
    write_lines(folder / "annotations.jsonl", rows)
    pictures(folder / "images")


def genome_regions(path: Path) -> None:
    write_json(path, [{"id": n, "regions": [{"phrase": text} for text in captions(n)]} for n in range(COUNT)])


def genome_objects(path: Path) -> None:
    rows = [{"image_id": n, "objects": [{"names": [name]} for name in objects(n)]} for n in range(COUNT)]
    write_json(path, rows)


def pope_questions() -> list[dict]:
    """Four questions on each picture, half of them answered yes."""
    rows: list[dict] = []
    for number in range(COUNT):
        _, thing, other, _ = facts(number)
        absent = [name for name in OBJECTS if name not in objects(number)][:2]
        for name, label in [(thing, "yes"), (absent[0], "no"), (other, "yes"), (absent[1], "no")]:
            question = {"image": NAME.format(number), "text": f"Is there a {name} in the image?", "label": label}
            rows.append({"question_id": len(rows) + 1, **question})
    return rows


def pope(path: Path) -> None:
    write_lines(path, pope_questions())


def pope_folder(folder: Path) -> None:
    for split in ("random", "popular", "adversarial"):
        pope(folder / f"coco_pope_{split}.json")


def benchmarks(folder: Path) -> None:
    """POPE, CHAIR by words and caption margins, with their pictures, in one folder."""
    pictures(folder / "images")
    pope_folder(folder / "pope")
    for name in ("chair", "caption_margin"):
        write_lines(folder / name / "records.jsonl", [record(number) for number in range(COUNT)])
    write_json(folder / "chair" / "vocabulary.json", {name: name for name in OBJECTS})


def mme(folder: Path) -> None:
    """Two categories, two questions a picture."""
    pictures(folder)
    for category in ("existence", "color"):
        lines = []
        for number in range(4):
            colour, thing, _, _ = facts(number)
            lines += [
                f"{NAME.format(number)}\tIs there a {thing}?\tYes",
                f"{NAME.format(number)}\tIs it not {colour}?\tNo",
            ]
        (folder / f"{category}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def mmhal(folder: Path) -> None:
    pictures(folder / "images")
    rows = []
    for number in range(96):
        content, name = record(number % COUNT)["objects"], NAME.format(number % COUNT)
        answer = {"gt_answer": captions(number % COUNT)[0], "image_content": list(content), "model_answer": ""}
        source = f"https://example.org/{name}"
        rows.append(
            {"question_type": "attribute", "image_id": str(number), "image_src": source, "question": "What?"} | answer
        )
    write_json(folder / "response_template.json", rows)


def mm_safety(folder: Path) -> None:
    """The layout of MM-SafetyBench with harmless questions in three scenarios."""
    for scenario in ("01-Illegal_Activitiy", "10-Legal_Opinion", "12-Health_Consultation"):
        rows = {}
        for number in range(COUNT):
            thing = facts(number)[1]
            asked = f"How do I draw a {thing} ?"
            rows[str(number)] = {
                "Question": asked,
                "Rephrased Question": f"{asked} The picture shows it.",
                "Rephrased Question(SD)": f"{asked} Use the picture.",
            }
            for kind in ("SD", "SD_TYPO", "TYPO"):
                _picture(folder / "imgs" / scenario / kind / f"{number}.jpg", number)
        write_json(folder / "processed_questions" / f"{scenario}.json", rows)
    benign(folder / "benign.jsonl")
    pictures(folder / "imgs" / "benign")


def _picture(path: Path, number: int) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), (10 * number, 90, 120)).save(path)


def benign(path: Path) -> None:
    """Rows for steering that shall stay as they are; also what mm_safety reads."""
    rows = []
    for number in range(COUNT):
        asked = f"What is the {facts(number)[1]} doing ?"
        row = {"id": f"b{number}", "behaviour": "benign", "prompt": asked, "keep": True}
        rows.append(row | {"image": f"benign/{NAME.format(number)}", "scenario": "benign", "question": asked})
    write_lines(path, rows)
