"""Promises of the checks on records: every bad record is named, with what to do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from hacl.data.records import read_records
from hacl.hallucinate.validate import Seen, validate_file
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
    return validate_file(path, **options)


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
    report = validate_file(tmp_path / "val.jsonl", image_root=coco_mini)
    assert report.problems == []


def numbered(count, **keys):
    return [
        {**GOOD, "id": str(n), "image": f"{n}.png", "captions": [f"a dog and {n} cats"], **keys} for n in range(count)
    ]


def test_a_report_does_not_depend_on_the_number_of_workers(tmp_path, monkeypatch):
    monkeypatch.setattr("hacl.hallucinate.validate.CHUNK", 5)
    rows = [*numbered(30), "{", {**GOOD, "id": "7"}, GOOD, {**GOOD, "id": "x", "captions": [" "]}]
    reports = [audit(tmp_path, *rows, workers=workers) for workers in (1, 3)]
    assert reports[0].to_json() == reports[1].to_json()
    assert [problem.kind for problem in reports[0].problems] == [
        "unreadable", "duplicate id", "duplicate id", "bad record",
    ]  # fmt: skip
    assert "x.jsonl:8;" in reports[0].problems[1].message and "x.jsonl:2;" in reports[0].problems[2].message


def test_records_captions_and_images_that_occur_twice_are_noted(tmp_path):
    Image.effect_noise((32, 32), 80).convert("RGB").save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    rows = [{**GOOD, "image": "a.png"}, {**GOOD, "id": "2", "image": "a.png"}, {**GOOD, "id": "3", "image": "b.png"}]
    report = audit(tmp_path, *rows, image_root=tmp_path)
    assert report.problems == [] and report.repeated_captions == 2 and report.images == 2
    assert {note.kind: note.id for note in report.notes} == {"duplicate record": "2", "duplicate image": "3"}


@pytest.mark.parametrize(
    ("change", "kind"),
    [("same", "leak"), ("copied", "leak"), ("smaller", "near leak"), ("other", None)],
)
def test_images_of_the_validation_file_are_found_in_the_training_file(tmp_path, change, kind):
    original = Image.effect_noise((9, 8), 90).resize((180, 160), Image.Resampling.BICUBIC).convert("RGB")
    original.save(tmp_path / "val.png")
    name = "val.png" if change == "same" else f"{change}.png"
    if change == "copied":
        (tmp_path / name).write_bytes((tmp_path / "val.png").read_bytes())
    elif change == "smaller":
        original.resize((90, 80)).save(tmp_path / name)
    elif change == "other":
        Image.effect_noise((9, 8), 90).resize((180, 160)).convert("RGB").save(tmp_path / name)
    (tmp_path / "val.jsonl").write_text(json.dumps({**GOOD, "image": "val.png"}) + "\n")
    held = Seen(tmp_path / "val.jsonl")
    validate_file(tmp_path / "val.jsonl", image_root=tmp_path, seen=held)
    report = audit(tmp_path, {**GOOD, "id": "2", "image": name}, image_root=tmp_path, against=held)
    assert [found.kind for found in [*report.problems, *report.notes]] == ([kind] if kind else [])


@pytest.mark.filterwarnings("ignore:Image size")
def test_a_huge_image_is_refused_before_it_is_decoded(tmp_path):
    Image.new("1", (60_000, 2_000)).save(tmp_path / "a.jpg", format="PNG")
    report = audit(tmp_path, GOOD, image_root=tmp_path)
    assert [p.kind for p in report.problems] == ["image"] and "pixels" in report.problems[0].message


def tiny_config(model, **data):
    from hacl.config import load_config

    return load_config(None, [f"model.path={model}", *(f"data.{key}={value}" for key, value in data.items())])


def test_tokens_are_measured_as_a_run_would_build_them(tmp_path, tiny_llava):
    edits = [{"text": "a red car on the left", "type": "object", "of": 0}]
    rows = [{**row, "hallucinated": edits, "captions": ["a red square on the left"]} for row in numbered(6)]
    report = audit(tmp_path, *rows, config=tiny_config(tiny_llava))
    assert report.problems == [] and report.unlabelled == 0
    generation = 1 + 16 + 6 + 1  # BOS, image, words, EOS
    assert report.histograms["tokens of the generation sequence"] == {generation: 6}
    assert report.histograms["tokens of a caption or hallucinated caption"] == {8: 12}
    assert report.sample_lengths == [[generation, 8, 8]] * 6


def test_what_the_limits_of_a_run_would_cut_is_said(tmp_path, tiny_llava):
    report = audit(tmp_path, *numbered(4), config=tiny_config(tiny_llava, max_length=17, max_caption_length=4))
    assert [p.kind for p in report.problems] == ["unlabelled"] and report.unlabelled == 4
    assert report.note_kinds == {"cut sequence": 4, "cut caption": 4, "no label": 4}
    assert report.sample_lengths[0] == [17, 4]
    report = audit(tmp_path, *numbered(2), config=tiny_config(tiny_llava, max_length=12))
    assert report.problem_kinds == {"sample": 2} and "cut an image" in report.problems[0].message


def test_a_conversation_without_its_image_mark_is_named_by_its_sample(tmp_path, tiny_llava):
    turns = [{"role": "user", "content": "what?"}, ANSWER]
    config = tiny_config(tiny_llava, template="chat")
    report = audit(tmp_path, {**GOOD, "conversations": turns}, config=config)
    assert report.problem_kinds == {"image marks": 1, "sample": 1}


def test_the_command_fails_on_a_leak_and_with_strict_on_a_note(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(json.dumps({**GOOD, "image": name[0] + ".jpg"}) + "\n")
    assert command("validate", tmp_path / "a.jsonl", "--eval", tmp_path / "b.jsonl").returncode == 0
    done = command("validate", tmp_path / "a.jsonl", "--eval", tmp_path / "a.jsonl")
    assert done.returncode == 1 and "leak 1" in done.stdout
    (tmp_path / "c.jsonl").write_text(json.dumps(GOOD) + "\n" + json.dumps({**GOOD, "id": "2"}) + "\n")
    assert command("validate", tmp_path / "c.jsonl").returncode == 0
    assert command("validate", tmp_path / "c.jsonl", "--strict").returncode == 1
    assert command("validate", tmp_path / "none.jsonl").returncode == 2
