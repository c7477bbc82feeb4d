"""Promises of making hallucinated captions for a file: ordered, resumable, the same bytes on any number of workers."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from hacl.data.records import HallucinatedCaption, Record, read_records, write_records
from hacl.hallucinate.annotate import AnnotationReport, annotate
from hacl.hallucinate.first_pass import take_balance, take_survey
from hacl.hallucinate.lexical import LexicalHallucinator
from hacl.hallucinate.survey import Survey

ROOT = Path(__file__).parents[2]
MAKE = [sys.executable, "data_prep/make_hallucinations.py"]


def command(script, *arguments, **options):
    words = [sys.executable, f"data_prep/{script}.py", *map(str, arguments)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, **options)


def captioned(count):
    return [
        Record(
            f"r{n}", ("a.jpg",), f"i{n}", ("A dog sitting on a couch.", "a brown dog"), objects={"dog": 1, "couch": 1}
        )
        for n in range(count)
    ]


def make(source, output, **options):
    settings = {"seed": 0, **options.pop("settings", {})}
    return annotate(source, output, LexicalHallucinator, num_hallucinated=2, settings=settings, **options)


def varied(count):
    """Records of many kinds: unicode, several captions, annotations, conversations without captions, no image."""
    texts = ("A dog sitting on a couch.", "zwei Hunde — 犬 🐕 on a red couch", "Two men\u2028ride horses")
    rows = []
    for n in range(count):
        row = {"id": f"r{n} ü", "image": f"{n % 7}.jpg", "captions": [texts[n % 3], f"{n} people near a blue bus"]}
        if n % 2:
            row["objects"] = {"dog": 1, "couch": 1 + n % 3}
        if n % 5 == 4:
            row = {"id": n, "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "a dog"}]}
        rows.append(row)
    return rows


def write_rows(path, rows, end="\n"):
    path.write_bytes("".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode())


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("hacl.hallucinate.annotate.CHUNK", 2)
    source = tmp_path / "in.jsonl"
    write_records(source, captioned(9))
    make(source, tmp_path / "whole.jsonl")

    def interrupt(counts, done):
        for number, count in enumerate(counts):
            yield count
            if number == 1:
                raise KeyboardInterrupt

    first = make(source, tmp_path / "parts.jsonl", progress=interrupt)
    assert (first.stopped, first.records) == (True, 4)
    with (tmp_path / "parts.jsonl").open("a") as out:
        out.write('{"id": "r4", "capt')
    second = make(source, tmp_path / "parts.jsonl")
    assert (second.stopped, second.records, second.resumed) == (False, 5, 4)
    assert (tmp_path / "parts.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert make(source, tmp_path / "parts.jsonl").records == 0


def test_one_worker_and_three_write_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("hacl.hallucinate.annotate.CHUNK", 7)
    source = tmp_path / "in.jsonl"
    write_rows(source, varied(60))
    for workers in (1, 3):
        summary = take_survey(source, workers=workers)
        recipe = partial(LexicalHallucinator, survey=summary.survey)
        report = annotate(source, tmp_path / f"{workers}.jsonl", recipe, num_hallucinated=3, settings={},
                          workers=workers)  # fmt: skip
        assert report.records == 60
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "3.jsonl").read_bytes()
    assert len((tmp_path / "1.jsonl").read_bytes().splitlines()) == 60


def test_a_survey_is_the_same_for_any_number_of_workers_and_is_kept_with_its_input(tmp_path, monkeypatch):
    monkeypatch.setattr("hacl.hallucinate.first_pass.CHUNK", 3)
    source, beside = tmp_path / "in.jsonl", tmp_path / "out.survey.json"
    write_rows(source, varied(40))
    alone, shared = take_survey(source), take_survey(source, workers=3, beside=beside)
    assert alone == shared == take_survey(source, beside=beside)
    assert json.dumps(alone.survey.to_json()) == json.dumps(shared.survey.to_json())
    assert alone.survey.images["dog"] == 7, "each of the seven images counts once"
    write_rows(source, varied(41))
    assert take_survey(source, beside=beside).records == 41


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_a_survey_of_chunks_is_that_of_a_plain_loop(tmp_path, monkeypatch, chunk):
    """Images whose first records lie in other chunks, and a sample that is smaller than the collection."""
    for module in ("first_pass", "survey"):
        monkeypatch.setattr(f"hacl.hallucinate.{module}.SAMPLE_RECORDS", 5)
    monkeypatch.setattr("hacl.hallucinate.first_pass.CHUNK", chunk)
    source = tmp_path / "in.jsonl"
    write_rows(source, varied(40))
    plain, images = Survey(), set()
    for record in read_records(source):
        plain.add(record, new_image=record.objects is not None and record.image_id not in images)
        images |= {record.image_id} if record.objects is not None else set()
    assert take_survey(source).survey.to_json() == plain.to_json()
    assert len(plain.sample) == 5


@pytest.mark.parametrize("cut", [1, 40, 200, 10**9])
def test_an_output_cut_anywhere_is_completed_without_duplicate_or_hole(tmp_path, cut):
    source, whole, parts = tmp_path / "in.jsonl", tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    write_rows(source, varied(12), end="\r\n")
    for output in (whole, parts):
        make(source, output)
    size = parts.stat().st_size
    with parts.open("r+b") as file:
        file.truncate(max(0, size - cut))
    report = make(source, parts)
    assert report.records + report.resumed == 12 and report.records >= 1
    assert parts.read_bytes() == whole.read_bytes()


def test_an_output_that_is_no_prefix_of_the_input_is_refused(tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_rows(source, varied(6))
    make(source, output)
    lines = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(b"".join(lines[:2] + lines[3:]))
    with pytest.raises(ValueError, match=r"out\.jsonl:3.*'r2 ü' \("):
        make(source, output)
    output.write_bytes(b"".join(lines + lines[-1:]))
    with pytest.raises(ValueError, match="more records than the input"):
        make(source, output)


def test_no_records_give_an_empty_output(tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n")
    assert take_survey(source, workers=2).records == 0
    assert make(source, output).records == 0 and output.read_bytes() == b""


def test_a_balance_is_fitted_once_and_kept_for_the_same_input_and_settings(tmp_path, monkeypatch):
    source, beside = tmp_path / "in.jsonl", tmp_path / "out.balance.json"
    write_rows(source, varied(8))
    summary = take_survey(source)
    wanted = {"k": 2, "candidates": 6, "seed": 0, "beside": beside}
    fitted = take_balance(LexicalHallucinator(survey=summary.survey), summary, **wanted)
    monkeypatch.setattr("hacl.hallucinate.first_pass.fit_balance", lambda *a, **k: pytest.fail("fitted again"))
    assert take_balance(LexicalHallucinator(survey=summary.survey), summary, **wanted) == fitted
    with pytest.raises(pytest.fail.Exception):
        take_balance(LexicalHallucinator(survey=summary.survey), summary, **{**wanted, "k": 3})
    beside.write_text("{}")
    with pytest.raises(pytest.fail.Exception):
        take_balance(LexicalHallucinator(survey=summary.survey), summary, **wanted)


def test_a_killed_command_goes_on_to_the_same_bytes_with_another_number_of_workers(tmp_path):
    source = tmp_path / "in.jsonl"
    write_rows(source, varied(900))
    outputs = [tmp_path / name for name in ("whole.jsonl", "killed.jsonl")]
    words = [[*MAKE, "--select", "first", "--input", str(source), "--output", str(output)] for output in outputs]
    assert subprocess.run([*words[0], "--workers", "1"], cwd=ROOT, capture_output=True).returncode == 0
    process = subprocess.Popen([*words[1], "--workers", "2"], cwd=ROOT, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (outputs[1].exists() and outputs[1].stat().st_size):
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert 0 < outputs[1].stat().st_size < outputs[0].stat().st_size
    done = subprocess.run([*words[1], "--workers", "3"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and " were there already" in done.stdout
    assert outputs[1].read_bytes() == outputs[0].read_bytes()


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

    rejections = Counter()
    is_local_cpu = True

    def propose_batch(self, items, k):
        texts = [(record.captions[index], index) for record, index in items]
        return [[HallucinatedCaption(f"{text} {n}", of=i) for n in range(k)] if "dog" in text else []
                for text, i in texts]  # fmt: skip


def annotate_scripted(tmp_path, captions, **options):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_records(source, [Record(str(n), captions=texts) for n, texts in enumerate(captions)])
    report = annotate(source, output, Scripted, num_hallucinated=1, settings={}, **options)
    return report, [[h.of for h in record.hallucinated] for record in read_records(output)]


@pytest.mark.parametrize(("wanted", "edited"), [(1, [1]), (2, [1, 3]), (None, [1, 3, 4]), (9, [1, 3, 4])])
def test_a_caption_that_offers_no_edit_is_passed_over_for_the_next(tmp_path, wanted, edited):
    captions = ("a room", "a dog", "a hall", "a black dog", "an old dog")
    report, found = annotate_scripted(tmp_path, [captions], captions_per_image=wanted)
    assert found == [edited]
    assert report.without == 0


class Alike:
    """Edits every caption of a record into the same texts."""

    rejections = Counter()

    def __init__(self, local):
        self.is_local_cpu = local

    def propose_batch(self, items, k):
        return [[HallucinatedCaption(f"edit {n}", type="object", of=i) for n in range(k)] for _, i in items]


@pytest.mark.parametrize(("local", "kept"), [(True, 2), (False, 0)])
def test_a_text_that_another_caption_has_taken_makes_room_for_the_next_best(tmp_path, local, kept):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_records(source, [Record("0", captions=("a dog", "a cat"))])
    report = annotate(source, output, lambda: Alike(local), num_hallucinated=2, settings={})
    (made,) = read_records(output)
    assert [h.of for h in made.hallucinated] == [0, 0] + [1] * kept
    assert len({h.text for h in made.hallucinated}) == 2 + kept
    assert report.fewer == ({} if local else {0: 1}) and report.types == {"object": 2 + kept}


def test_records_left_without_any_are_counted_over_all_runs(tmp_path):
    captions = [("a room", "a hall"), ("a dog",), ("a field",), ("a dog", "a sky")]
    report, found = annotate_scripted(tmp_path, captions, captions_per_image=1, limit=1)
    assert (report.without, found) == (1, [[]])
    report, found = annotate_scripted(tmp_path, captions, captions_per_image=1)
    assert (report.resumed, report.without) == (1, 2)
    assert found == [[], [0], [], [0]]


@pytest.mark.parametrize("chunk", [1, 2, 64])
def test_repeated_ids_stop_the_run_before_it_starts(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("hacl.hallucinate.first_pass.CHUNK", chunk)
    source = tmp_path / "in.jsonl"
    write_records(source, captioned(2) + captioned(1))
    with pytest.raises(ValueError, match=r"in\.jsonl:3.*in\.jsonl:1"):
        take_survey(source)


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
    write_records(source, captioned(2_000))
    words = [
        sys.executable,
        "data_prep/make_hallucinations.py",
        "--select",
        "first",
        "--input",
        str(source),
        "--output",
        str(output),
    ]
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
