"""Promises of the POPE builder and of the object lists it reads."""

import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from hacl.evaluation import score
from hacl.evaluation.object_lists import read_object_lists
from hacl.evaluation.pope import build_questions
from hacl.evaluation.pope_files import choose_images, make_questions, write_files

ROOT = Path(__file__).parents[2]
ROWS = [
    {"file_name": "a.jpg", "coco_id": 1, "instances": {"dog": 1, "cat": 2, "cup": 1}, "captions": ["A dog, a bus."]},
    {"file_name": "b.jpg", "coco_id": 2, "instances": {"dog": 1, "cat": 1, "bed": 1}},
    {"file_name": "c.jpg", "coco_id": 3, "instances": {"dog": 1, "bus": 1, "car": 1}},
    {"file_name": "d.jpg", "coco_id": 4, "instances": {"dog": 1}},
    {"file_name": "e.jpg", "coco_id": 5, "instances": None, "captions": ["A dog."]},
    {"file_name": "f.jpg", "coco_id": 6, "instances": {"bus": 1, "car": 1, "apple": 2, "truck": 0}},
]


@pytest.fixture
def annotations(tmp_path):
    path = tmp_path / "annotations.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_rows_give_objects_and_an_image_without_annotation_is_left_out(annotations):
    lists = read_object_lists(annotations)
    assert list(lists.objects) == ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "f.jpg"] and lists.unannotated == 1
    assert lists.objects["f.jpg"] == ["bus", "car", "apple"]
    assert lists.ids["b.jpg"] == 2 and lists.mentioned == {"a.jpg": {"dog", "bus"}}


def test_coco_instances_and_records_give_the_same_lists(tmp_path, annotations):
    expected = read_object_lists(annotations).objects
    names = sorted({name for row in ROWS for name in row["instances"] or ()})
    coco = {
        "info": {},
        "images": [{"id": r["coco_id"], "file_name": r["file_name"]} for r in ROWS if r["instances"] is not None],
        "annotations": [
            {"image_id": r["coco_id"], "category_id": names.index(name), "bbox": [0, 0, 1, 1]}
            for r in ROWS
            for name, count in (r["instances"] or {}).items()
            for _ in range(count)
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
    }
    (tmp_path / "instances.json").write_text(json.dumps(coco))
    lists = read_object_lists(tmp_path / "instances.json")
    assert lists.objects == expected and lists.ids["f.jpg"] == 6
    (tmp_path / "captions.json").write_text(
        json.dumps({"annotations": [{"image_id": 1, "caption": "a bus"}, {"image_id": 9, "caption": "a cat"}]})
    )
    lists.add_captions(tmp_path / "captions.json")
    assert lists.mentioned == {"a.jpg": {"bus"}}
    records = [{"image": r["file_name"], "objects": r["instances"], "captions": ["x"]} for r in ROWS]
    (tmp_path / "records.json").write_text(json.dumps(records))
    assert read_object_lists(tmp_path / "records.json").objects == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"file_name": "a.jpg"}', "neither instances nor objects"),
        ('{"instances": {"dog": 1}}', "no file_name and no image"),
        ('{"file_name": "a.jpg", "instances": 3}', "names or name -> count"),
        ('{"file_name": "a.jpg", "instances": null}', "1 images without annotation"),
        ('{"images": [{"id": 1}]}', "file_name"),
        (
            '{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "category_id": 5}]}',
            "category_id 5",
        ),
    ],
)
def test_annotations_of_another_kind_are_named(tmp_path, text, message):
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_object_lists(path)


def test_an_image_is_asked_about_if_it_has_enough_objects_present_and_absent(annotations):
    lists = read_object_lists(annotations)
    assert list(choose_images(lists, None, 6, seed=0)) == ["a.jpg", "b.jpg", "c.jpg", "f.jpg"]
    assert list(choose_images(lists, None, 2, seed=0)) == list(lists.objects)
    drawn = choose_images(lists, 2, 6, seed=0)
    assert len(drawn) == 2 and drawn == choose_images(lists, 2, 6, seed=0)
    with pytest.raises(ValueError, match="4 of 5 annotated images"):
        choose_images(lists, 5, 6, seed=0)


def test_splits_are_balanced_true_interleaved_and_share_their_yes_questions(annotations):
    lists = read_object_lists(annotations)
    truth = choose_images(lists, None, 6, seed=0)
    splits = make_questions(truth, seed=0, per_image=6)
    for questions in splits.values():
        assert [q.label for q in questions] == ["yes", "no"] * 12
        assert all((q.object in truth[q.image_id]) == (q.label == "yes") for q in questions)
        assert len({q.question_id for q in questions}) == len(questions)
    yes = [[q.object for q in questions if q.label == "yes"] for questions in splits.values()]
    assert yes[0] == yes[1] == yes[2]
    assert splits == make_questions(truth, seed=0, per_image=6) != make_questions(truth, seed=1, per_image=6)


def test_an_adversarial_object_is_the_one_most_often_together_with_the_object_just_asked():
    counts = {f"n{n}": names for n, names in enumerate([("a", "x")] * 2 + [("b", "y")] * 9 + [("c", "z"), ("a", "y")])}
    truth = {"i": ["a", "b", "c"]}
    questions = make_questions(truth, seed=0, per_image=6, counts_from=counts)["adversarial"]
    partners = {yes.object: no.object for yes, no in zip(questions[::2], questions[1::2], strict=True)}
    assert partners["c"] == "z" and partners["b"] == "y"
    # "a" was seen with "x" most; summed over the image "y" comes first for all.
    assert partners["a"] == "x"
    summed = build_questions(truth, "adversarial", per_image=2, counts_from=counts)
    assert [q.object for q in summed if q.label == "no"] == ["y"]


def test_popular_takes_the_most_frequent_absent_objects(annotations):
    lists = read_object_lists(annotations)
    popular = make_questions(choose_images(lists, None, 6, seed=0), seed=0, per_image=6)["popular"]
    asked = {q.object for q in popular if q.image_id == "f.jpg" and q.label == "no"}
    assert {"dog", "cat"} < asked


def test_articles_follow_the_object_in_question(annotations):
    lists = read_object_lists(annotations)
    questions = make_questions(choose_images(lists, None, 6, seed=0), seed=0, per_image=6)["random"]
    assert "Is there an apple in the image?" in {q.text for q in questions}
    assert "Is there a bus in the image?" in {q.text for q in questions}


def test_files_have_the_upstream_layout_and_the_manifest_tells_how_they_were_made(tmp_path, annotations):
    lists = read_object_lists(annotations)
    splits = make_questions(choose_images(lists, None, 6, seed=0), seed=0, per_image=6)
    manifest = write_files(tmp_path / "pope", "own", splits, lists, {"seed": 0})
    assert json.loads((tmp_path / "pope" / "own_pope_manifest.json").read_text()) == manifest
    for split, counts in manifest["splits"].items():
        path = tmp_path / "pope" / f"own_pope_{split}.json"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["question_id"] for row in rows] == list(range(1, 25)) and rows[0]["image"] == "a.jpg"
        assert list(rows[0])[:4] == ["question_id", "image", "text", "label"]
        assert Counter(row["label"] for row in rows) == {"yes": counts["yes"], "no": counts["no"]}
        assert manifest["files"][path.name] == hashlib.sha256(path.read_bytes()).hexdigest()
        answers = [{"question_id": row["question_id"], "answer": row["label"].title()} for row in rows]
        assert score("pope", answers, path).metrics["accuracy"] == 1
    with pytest.raises(ValueError, match="there already"):
        write_files(tmp_path / "pope", "own", splits, lists, {})


def _run(script, *arguments):
    command = [sys.executable, str(ROOT / "data_prep" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_counts_absent_objects_that_captions_name_and_can_avoid_them(tmp_path, annotations):
    first = _run("make_pope.py", "--annotations", annotations, "--output", tmp_path / "one", "--per-image", 6)
    assert first.returncode == 0, first.stderr
    assert "of the 12 no-questions ask for what a caption" in first.stdout
    second = _run("make_pope.py", "--annotations", annotations, "--output", tmp_path / "two", "--skip-mentioned")
    assert second.returncode == 0 and "no-questions" not in second.stdout
    rows = [json.loads(line) for line in (tmp_path / "two" / "own_pope_popular.json").read_text().splitlines()]
    assert not any(row["image"] == "a.jpg" and row["object"] == "bus" for row in rows)
    again = _run("make_pope.py", "--annotations", annotations, "--output", tmp_path / "two")
    assert again.returncode == 1 and "there already" in again.stderr
    assert "Traceback" not in again.stderr


def test_the_chair_cache_command_writes_what_the_scorer_reads(tmp_path, annotations):
    cache = tmp_path / "cache.json"
    done = _run("make_chair_truth.py", "--annotations", annotations, "--output", cache)
    assert done.returncode == 0 and "5 images" in done.stdout, done.stderr
    content = json.loads(cache.read_text())
    assert content["dialect"] == "pattern" and content["objects"]["1"] == ["cat", "cup", "dog"]
    assert list(content["source"]["inputs"]) == [str(annotations)]
    report = score("chair", [{"image_id": 1, "caption": "a dog and a car"}], cache)
    assert report.metrics["CHAIRi"] == 0.5
    missing = _run("make_chair_truth.py", "--annotations", tmp_path / "none", "--output", cache)
    assert missing.returncode == 1 and "does not exist" in missing.stderr and "Traceback" not in missing.stderr
