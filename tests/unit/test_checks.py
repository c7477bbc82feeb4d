"""Promises of what is verified before training."""

import json

import pytest

from hacl.config import ObjectiveConfig, load_config
from hacl.data.dataset import TrainingDataset
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


def test_records_without_a_token_to_learn_are_refused_above_a_share_and_counted_below_it(read, capsys):
    def change(lines):
        words = "a red square on the left " * 10
        lines[5].pop("captions")
        lines[5].pop("hallucinated")
        lines[5]["conversations"] = [{"from": "human", "value": f"<image> {words}"}, {"from": "gpt", "value": "red"}]

    how = ["data.template=chat", "data.max_length=40"]
    message = r"1 of 8 record\(s\) yield no token to learn, first record 'sample-5': data.max_length=40 cuts off"
    with pytest.raises(ValueError, match=message):
        read(change, *how)
    read(change, *how, "data.max_unlabelled_fraction=0.125")
    assert "1 of 8 record(s) yield no token to learn, first record 'sample-5'" in capsys.readouterr().out
    with pytest.raises(ValueError, match="1 of 8"):
        read(change, *how, "data.max_unlabelled_fraction=0.12")
    read(change, *how, "data.max_unlabelled_fraction=0", "objective.lm_weight=0")


def put_last(lines, number=5):
    turns = [{"from": "human", "value": "what is it ?\n<image>"}, {"from": "gpt", "value": "a red square"}]
    lines[number]["conversations"] = turns


def test_an_image_behind_its_question_is_moved_to_the_front_and_counted(read, capsys):
    inputs = read(put_last, "data.template=chat")
    assert "the image of 1 of 8 record(s) is moved to the front, first 'sample-5'" in capsys.readouterr().out
    dataset = TrainingDataset(
        inputs.records, inputs.encoder, image_root=None, objective=ObjectiveConfig(), seed=0, load_pixels=False
    )
    moved, others = dataset[5], dataset[4]
    assert moved.image_moved and not others.image_moved and moved.contrastive_image
    assert moved.generation.ids[: moved.generation.image_spans[0][0]] == inputs.encoder.image_prefix
    plain = read(put_last)
    assert "moved" not in capsys.readouterr().out and plain.encoder.image_prefix == plain.encoder.bos


def test_a_control_arm_reads_the_sequences_of_the_run_it_controls_and_uncaptioned_records_stay_as_they_are(read):
    def both(lines):
        put_last(lines)
        put_last(lines, 6)
        for key in ("captions", "hallucinated"):
            lines[6].pop(key)

    inputs = read(both, "data.template=chat")
    found = []
    for weight in (0.0, 1.0):
        objective = ObjectiveConfig(contrastive_weight=weight)
        dataset = TrainingDataset(
            inputs.records, inputs.encoder, image_root=None, objective=objective, seed=0, load_pixels=False
        )
        found.append([dataset[index].generation.ids for index in (5, 6)])
        assert not dataset[6].image_moved and dataset[6].generation.image_spans[0][0] > len(inputs.encoder.image_prefix)
    assert found[0] == found[1]


def test_text_that_must_stay_before_an_image_read_in_place_is_an_error_that_names_the_record(read):
    def change(lines):
        lines[5]["conversations"] = [
            {"from": "human", "value": "hello"}, {"from": "gpt", "value": "hello"},
            {"from": "human", "value": "<image> what ?"}, {"from": "gpt", "value": "a red square"},
        ]  # fmt: skip

    for form in ("in_place", "eos_branch"):
        with pytest.raises(ValueError, match=r"record 'sample-5': text of the conversation stands before the image"):
            read(change, "data.template=chat", f"objective.form={form}")
    read(change, "data.template=chat", "objective.form=strict")
    read(change, "data.template=chat", "objective.contrastive_weight=0")


def test_records_without_hallucinated_caption_are_permitted_up_to_a_share_and_counted(read, capsys):
    def change(lines):
        lines[2]["hallucinated"] = []

    with pytest.raises(ValueError, match=r"'sample-2'.*data\.allow_missing_hallucinated"):
        read(change)
    with pytest.raises(ValueError, match="allow_missing"):
        read(change, "data.allow_missing_hallucinated=0.1")
    read(change, "data.allow_missing_hallucinated=0.125")
    assert "1 of 8 captioned record(s) train without a hallucinated caption" in capsys.readouterr().out
