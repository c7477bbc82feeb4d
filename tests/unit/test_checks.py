"""Promises of what is verified before training."""

import json

import pytest

from hacl.config import load_config
from hacl.training import checks
from hacl.training.run import read_inputs
from tests.tiny import write_tiny_records


@pytest.fixture
def read(tiny_llava, tmp_path):
    """read(change, *overrides): read_inputs of eight tiny records after `change(list of raw records)`."""

    def call(change, *overrides):
        path = write_tiny_records(tmp_path / "records", 8)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        change(lines)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return read_inputs(load_config(None, [f"model.path={tiny_llava}", f"data.path={path}", *overrides]))

    call.images = tmp_path / "records/images"
    return call


def nothing(lines):
    pass


def cut(path):
    path.write_bytes(path.read_bytes()[:60])


def test_a_damaged_image_is_named_before_anything_is_loaded(read):
    read(nothing)

    def damage(lines):
        cut(read.images / "7.png")

    with pytest.raises(ValueError, match=r"record 'sample-7'.*7\.png"):
        read(damage)


def test_beyond_the_bound_only_headers_are_read(read, monkeypatch):
    monkeypatch.setattr(checks, "DECODED", 3)
    read(lambda lines: cut(read.images / "7.png"))
    with pytest.raises(ValueError, match=r"record 'sample-6'.*web page"):
        read(lambda lines: (read.images / "6.png").write_text("<html>not found</html>"))


def test_image_marks_that_do_not_fit_the_images_are_found_before_training(read):
    def change(lines):
        turns = [{"from": "human", "value": "<image> <image> what ?"}, {"from": "gpt", "value": "red"}]
        lines[6]["conversations"] = turns

    with pytest.raises(ValueError, match=r"record 'sample-6': 1 image"):
        read(change, "data.template=chat")


def test_a_length_that_would_cut_an_image_is_found_before_training(read):
    with pytest.raises(ValueError, match=r"data\.max_length=10 would cut an image"):
        read(nothing, "data.max_length=10")


def test_records_without_a_token_to_learn_are_refused_above_a_share_and_counted_below_it(read, capsys, monkeypatch):
    def change(lines):
        words = "a red square on the left " * 10
        lines[5].pop("captions")
        lines[5].pop("hallucinated")
        lines[5]["conversations"] = [{"from": "human", "value": f"<image> {words}"}, {"from": "gpt", "value": "red"}]

    how = ["data.template=chat", "data.max_length=40"]
    with pytest.raises(ValueError, match=r"1 of 8 record\(s\) yield no token to learn, first \['sample-5'\]"):
        read(change, *how)
    monkeypatch.setattr(checks, "UNLABELLED", 0.2)
    read(change, *how)
    assert "1 of 8 record(s) yield no token to learn" in capsys.readouterr().out


def test_records_without_hallucinated_caption_are_permitted_up_to_a_share_and_counted(read, capsys):
    def change(lines):
        lines[2]["hallucinated"] = []

    with pytest.raises(ValueError, match=r"'sample-2'.*data\.allow_missing_hallucinated"):
        read(change)
    with pytest.raises(ValueError, match="allow_missing"):
        read(change, "data.allow_missing_hallucinated=0.1")
    read(change, "data.allow_missing_hallucinated=0.125")
    assert "1 of 8 captioned record(s) train without a hallucinated caption" in capsys.readouterr().out
