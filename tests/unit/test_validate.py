"""Promises of the checks on records: every bad record is named, with what to do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from hacl.data.records import read_records
from hacl.hallucinate.audit import audit_file
from tests.photographs import coco_mini  # noqa: F401 (a fixture)

ROOT = Path(__file__).parents[2]
GOOD = {"id": "1", "image": "a.jpg", "captions": ["a dog on a couch"], "objects": {"dog": 1, "couch": 1}}
QUESTION = {"role": "user", "content": "<image> what?"}
ANSWER = {"role": "assistant", "content": "a dog"}


def command(script, *arguments, **options):
    words = [sys.executable, f"data_prep/{script}.py", *map(str, arguments)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, **options)


def audit(tmp_path, *rows, **options):
    path = tmp_path / "x.jsonl"
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return audit_file(path, **options)


def test_a_good_file_has_no_problems(tmp_path):
    edits = [{"text": "a cat on a couch", "type": "object", "span": [2, 5], "of": 0}]
    report = audit(tmp_path, {**GOOD, "hallucinated": edits})
    assert report.problems == []
    assert (report.records, report.captions, report.hallucinated) == (1, 1, {"object": 1})


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"captions": [""]}, "bad record"),
        ({"captions": []}, "bad record"),
        ({"captions": ["a dog", "A dog."]}, "duplicate caption"),
        ({"hallucinated": [{"text": "A dog on a couch."}]}, "hallucinated is true"),
        ({"hallucinated": [{"text": "a cat"}, {"text": "a cat"}]}, "duplicate hallucinated"),
        ({"hallucinated": [{"text": "a cat", "type": "animal"}]}, "bad record"),
        (
            {"hallucinated": [{"text": "a cat on a couch", "type": "object", "span": [2, 5], "of": 0}],
             "objects": {"dog": 1, "cat": 1}},
            "object is present",
        ),
        ({"image": "../a.jpg"}, "image path"),
        ({"image": "/a.jpg"}, "image path"),
        ({"image": "https://example.org/a.jpg"}, "image path"),
        ({"conversations": [{"role": "user", "content": "what?"}, ANSWER]}, "image marks"),
        ({"image": ["a.jpg", "b.jpg"]}, "image marks"),
        ({"conversations": [QUESTION]}, "no answer"),
        ({"conversations": [QUESTION], "captions": []}, "no answer"),
        ({"conversations": [QUESTION, {"role": "user", "content": "well?"}, ANSWER]}, "turns"),
        ({"conversations": [QUESTION, ANSWER, ANSWER]}, "turns"),
        ({"conversations": [ANSWER, {**QUESTION, "content": "what?"}], "image": []}, "bad record"),
        ({"conversations": [QUESTION, {**ANSWER, "content": " "}]}, "bad record"),
    ],
)  # fmt: skip
def test_each_fault_is_found_in_its_record(tmp_path, change, kind):
    report = audit(tmp_path, GOOD, {**GOOD, "id": "2", **change}, {**GOOD, "id": "3"})
    assert [problem.kind for problem in report.problems] == [kind]
    assert "x.jsonl:2" in str(report.problems[0])
    assert "2" in str(report.problems[0])


def test_repeated_ids_and_unreadable_lines_are_named(tmp_path):
    report = audit(tmp_path, GOOD, "{", GOOD, "[1]")
    assert [(p.kind, "x.jsonl:" in str(p)) for p in report.problems] == [
        ("unreadable", True), ("duplicate id", True), ("bad record", True),
    ]  # fmt: skip
    assert "x.jsonl:1" in report.problems[1].message


def test_images_are_opened_only_when_asked(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_text("<html>")
    rows = [GOOD, {**GOOD, "id": "2", "image": "b.jpg"}, {**GOOD, "id": "3", "image": "c.jpg"}]
    assert audit(tmp_path, *rows).problems == []
    report = audit(tmp_path, *rows, image_root=tmp_path)
    assert [(p.kind, p.id) for p in report.problems] == [("image", "2"), ("image", "3")]
    assert "web page" in report.problems[0].message


def test_the_command_fails_on_a_bad_file_and_writes_its_report(tmp_path):
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text(json.dumps(GOOD) + "\n")
    bad.write_text("".join(json.dumps({**GOOD, "captions": [" "]}) + "\n" for _ in range(4)))
    assert command("validate", good).returncode == 0
    done = command("validate", bad, "--max-errors", 2, "--json", tmp_path / "report.json")
    assert done.returncode == 1
    assert done.stdout.count("captions[0]") == 2 and "2 more" in done.stdout
    (report,) = json.loads((tmp_path / "report.json").read_text())
    assert len(report["problems"]) == 4 and report["problem_kinds"] == {"bad record": 4}


def test_the_mini_collection_converts_splits_and_validates(coco_mini, tmp_path):  # noqa: F811
    annotations = coco_mini / "annotations.jsonl"
    done = command("convert", "--input", annotations, "--output", tmp_path, "--split", "0.8,0.1,0.1")
    assert done.returncode == 0, done.stderr
    parts = {name: read_records(tmp_path / f"{name}.jsonl") for name in ("train", "val", "test")}
    assert [len(part) for part in parts.values()] == [262, 33, 33]
    assert len({record.image_id for part in parts.values() for record in part}) == 328
    assert all(record.extra["flickr_url"] and record.extra["license"] for part in parts.values() for record in part)
    report = audit_file(tmp_path / "val.jsonl", image_root=coco_mini)
    assert report.problems == []
