"""Promises of the data commands: every bad record is named, and making hallucinated captions can stop and go on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from hacl.data.records import HallucinatedCaption, Record, read_records, write_records
from hacl.hallucinate.annotate import AnnotationReport, annotate, survey
from hacl.hallucinate.audit import audit_file
from hacl.hallucinate.lexical import LexicalHallucinator
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


def captioned(count):
    return [
        Record(
            f"r{n}", ("a.jpg",), f"i{n}", ("A dog sitting on a couch.", "a brown dog"), objects={"dog": 1, "couch": 1}
        )
        for n in range(count)
    ]


def make(source, output, **options):
    settings = {"seed": 0, **options.pop("settings", {})}
    return annotate(source, output, LexicalHallucinator(), num_hallucinated=2, settings=settings, **options)


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(tmp_path):
    source = tmp_path / "in.jsonl"
    write_records(source, captioned(9))
    make(source, tmp_path / "whole.jsonl")

    def interrupt(records, done):
        for number, record in enumerate(records):
            if number == 4:
                raise KeyboardInterrupt
            yield record

    first = make(source, tmp_path / "parts.jsonl", progress=interrupt)
    assert (first.stopped, first.records) == (True, 4)
    with (tmp_path / "parts.jsonl").open("a") as out:
        out.write('{"id": "r4", "capt')
    second = make(source, tmp_path / "parts.jsonl")
    assert (second.stopped, second.records, second.resumed) == (False, 5, 4)
    assert (tmp_path / "parts.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert make(source, tmp_path / "parts.jsonl").records == 0


def test_results_of_other_settings_are_not_mixed(tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_records(source, captioned(2))
    make(source, output)
    with pytest.raises(ValueError, match="seed"):
        make(source, output, settings={"seed": 1})
    assert make(source, output, settings={"seed": 1}, overwrite=True).records == 2
    with pytest.raises(ValueError, match="is the input"):
        make(source, source)


def test_hallucinated_captions_that_are_there_are_kept_and_not_repeated(tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    kept = HallucinatedCaption("a purple dog", "attribute", (2, 8), "hand", 1)
    (plain,) = captioned(1)
    write_records(source, [Record(**{**plain.__dict__, "hallucinated": (kept,)})])
    report = make(source, output)
    (made,) = read_records(output)
    assert made.hallucinated[0] == kept
    assert len({h.text for h in made.hallucinated}) == len(made.hallucinated) == 1 + sum(report.types.values())
    assert isinstance(report, AnnotationReport)


class Scripted:
    """Edits for the captions that say so, none for others."""

    def propose(self, record, caption_index, k):
        text = record.captions[caption_index]
        return [HallucinatedCaption(f"{text} {n}", of=caption_index) for n in range(k)] if "dog" in text else []


def annotate_scripted(tmp_path, captions, **options):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_records(source, [Record(str(n), captions=texts) for n, texts in enumerate(captions)])
    report = annotate(source, output, Scripted(), num_hallucinated=1, settings={}, **options)
    return report, [[h.of for h in record.hallucinated] for record in read_records(output)]


@pytest.mark.parametrize(("wanted", "edited"), [(1, [1]), (2, [1, 3]), (None, [1, 3, 4]), (9, [1, 3, 4])])
def test_a_caption_that_offers_no_edit_is_passed_over_for_the_next(tmp_path, wanted, edited):
    captions = ("a room", "a dog", "a hall", "a black dog", "an old dog")
    report, found = annotate_scripted(tmp_path, [captions], captions_per_image=wanted)
    assert found == [edited]
    assert report.without == 0


def test_records_left_without_any_are_counted_over_all_runs(tmp_path):
    captions = [("a room", "a hall"), ("a dog",), ("a field",), ("a dog", "a sky")]
    report, found = annotate_scripted(tmp_path, captions, captions_per_image=1, limit=1)
    assert (report.without, found) == (1, [[]])
    report, found = annotate_scripted(tmp_path, captions, captions_per_image=1)
    assert (report.resumed, report.without) == (1, 2)
    assert found == [[], [0], [], [0]]


def test_repeated_ids_stop_the_run_before_it_starts(tmp_path):
    source = tmp_path / "in.jsonl"
    write_records(source, captioned(2) + captioned(1))
    with pytest.raises(ValueError, match=r"in\.jsonl:3.*in\.jsonl:1"):
        survey(source)


def test_the_command_makes_what_validate_accepts(tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_records(source, captioned(3))
    done = command(
        "make_hallucinations", "--input", source, "--output", output, "--captions-per-image", 1, "--limit", 2
    )
    assert done.returncode == 0, done.stderr
    assert "by type:" in done.stdout and "rejected:" in done.stdout and "fewer than 3" in done.stdout
    records = read_records(output)
    assert [record.id for record in records] == ["r0", "r1"]
    assert all(h.of == 0 for record in records for h in record.hallucinated)
    assert command("validate", output).returncode == 0
    again = command("make_hallucinations", "--input", source, "--output", output, "--seed", 5)
    assert again.returncode == 1 and "--overwrite" in again.stderr


def test_the_command_says_what_to_do_about_records_left_without_any(tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_records(source, [*captioned(1), Record("bare", ("b.jpg",), "b", ("hmm",))])
    done = command("make_hallucinations", "--input", source, "--output", output)
    assert done.returncode == 0, done.stderr
    assert "captioned records without any: 1 of 2" in done.stdout
    assert "data.allow_missing_hallucinated=SHARE" in done.stdout


def test_ctrl_c_loses_no_written_line(tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_records(source, captioned(4_000))
    words = [sys.executable, "data_prep/make_hallucinations.py", "--input", str(source), "--output", str(output)]
    process = subprocess.Popen(
        words,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs of a shell ignore it
    )
    while process.poll() is None and not (output.exists() and output.stat().st_size):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130 and "run the same command again" in err
    assert f"{len(read_records(output))} records written" in out


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
