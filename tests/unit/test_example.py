"""Promises of the example that data_prep/validate.py shows: what a model reads, what it learns, how that was found."""

import json

import pytest

from hacl.config import load_config
from hacl.data.example import CLOSE, COLOUR, OPEN, PLAIN, first_example
from tests.tiny import write_tiny_records
from tests.unit.test_validate import command


@pytest.fixture
def records(tmp_path):
    path = write_tiny_records(tmp_path, 3)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["conversations"] = [{"role": "user", "content": "<image> <image>"}, {"role": "assistant", "content": "red"}]
    rows[1]["conversations"] = [
        {"role": "user", "content": "what colour ?\n<image>"}, {"role": "assistant", "content": "red"},
        {"role": "user", "content": "where ?"}, {"role": "assistant", "content": "left"},
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def example_of(model, records, template, *overrides, **options):
    config = load_config(None, [f"model.path={model}", f"data.template={template}", *overrides])
    return first_example(records, config, records.parent, **options)


def test_labels_are_marked_image_tokens_counted_and_the_way_is_told(tiny_llava, records):
    found = example_of(tiny_llava, records, "chat")
    assert (found.record_id, found.family, found.images) == ("sample-1", "Llava", (16,)), "the first cannot be read"
    assert found.text.startswith("<s> USER :<image>x16what colour") and found.image_moved
    assert found.text.count(OPEN) == found.text.count(CLOSE) == 2 and found.text.endswith("left </s>]]")
    said = "<s> USER : what colour ? ASSISTANT : red </s> USER : where ? ASSISTANT : left </s>"
    assert found.labels == 4 and found.tokens == 16 + len(said.split())
    assert "what each answer adds" in found.way and len(found.roots) == 2 and found.roots[0].endswith("</s>")
    plain = example_of(tiny_llava, records, "plain", record_id="sample-2")
    assert plain.text.startswith("<s><image>x16[[") and plain.record_id == "sample-2" and not plain.image_moved
    assert plain.labels == plain.tokens - 17


def test_a_cut_shows_and_colours_are_for_terminals(tiny_llava, records):
    cut = example_of(tiny_llava, records, "plain", "data.max_length=20", record_id="sample-2")
    assert cut.tokens == 20 and cut.labels == 3 and not cut.text.endswith("</s>]]")
    assert not any(COLOUR in line for line in cut.lines())
    coloured = "\n".join(cut.lines(colour=True))
    assert f"{COLOUR}{OPEN}" in coloured and f"{CLOSE}{PLAIN}" in coloured


def test_a_file_without_a_sample_or_the_named_record_says_why(tiny_llava, records):
    with pytest.raises(ValueError, match="no example to show: no record 'x'"):
        example_of(tiny_llava, records, "chat", record_id="x")
    with pytest.raises(ValueError, match="no example to show: record 'sample-0': 1 image"):
        example_of(tiny_llava, records, "chat", record_id="sample-0")


def test_the_command_shows_it_for_a_model_and_still_reports_what_is_wrong(tiny_llava, records):
    done = command("validate", records, "--model", tiny_llava, "--template", "chat", "--example", "sample-1")
    assert done.returncode == 1 and "sample-0" in done.stdout and "record 'sample-1' as Llava reads it" in done.stdout
    assert "\033" not in done.stdout and "notes: image moved 1" in done.stdout
    named = command("validate", records, "--model", tiny_llava, "--example", "x")
    assert named.returncode == 2 and "no file has a record 'x'" in named.stderr
    alone = command("validate", records, "--example", "x")
    assert alone.returncode == 2 and "--model or --config" in alone.stderr
