"""Promises of the comparison on human sentences: the same sentence on both sides, likelier where it is true."""

import json

import numpy as np
import pytest

from hacl.evaluation.likelihood import LogLikelihoods
from hacl.smol.nlvr import compare, find_nlvr, measure, read_pairs

ROWS = [
    ("a.png", "There is a box.", True),
    ("b.png", "There is a box.", True),
    ("c.png", "There is a box.", False),
    ("d.png", "All are blue.", False),
    ("e.png", "No circle.", False),
    ("f.png", "No circle.", True),
]


@pytest.fixture
def folder(tmp_path):
    lines = [json.dumps({"file_name": name, "sentence": text, "label": label}) for name, text, label in ROWS]
    (tmp_path / "annotations.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_every_sentence_with_both_labels_gives_one_pair(folder):
    pairs = read_pairs(folder)
    assert [(pair.sentence, pair.true_image, pair.false_image) for pair in pairs] == [
        ("There is a box.", "a.png", "c.png"),
        ("No circle.", "f.png", "e.png"),
    ]
    assert read_pairs(folder, 1) == pairs[:1]


def test_a_sentence_counts_where_it_is_likelier_with_the_drawing_it_is_true_of(folder, monkeypatch):
    asked = []

    def scored(_model, _processor, images, texts, **_options):
        asked.extend(zip([image.name for image in images], texts, strict=True))
        return LogLikelihoods(np.array([-4.0, -6.0, -3.0, -3.0]), np.full(4, 2))

    monkeypatch.setattr("hacl.evaluation.likelihood.log_likelihoods", scored)
    report = measure(None, None, read_pairs(folder), folder)
    assert asked == [("a.png", "There is a box."), ("c.png", "There is a box."), ("f.png", "No circle."),
                     ("e.png", "No circle.")]  # fmt: skip
    assert report.metrics == {"nlvr_accuracy": 0.5, "nlvr_margin": 0.5}, "a tie is wrong"


def test_arms_are_compared_with_the_control_of_the_same_seeds():
    def run(arm, seed, right):
        table = {str(n): [float(n < right), 1.0] for n in range(60)}
        return {"arm": arm, "seed": seed, "items": {"nlvr_accuracy": table}}

    lines = compare([run("control", 0, 30), run("control", 1, 30), run("hacl", 1, 60)], ["control", "hacl", "other"])
    assert len(lines) == 2
    assert lines[0].startswith("control: 2 seed(s), accuracy 0.500 [")
    assert "accuracy 1.000" in lines[1] and "minus control +0.500 [+" in lines[1]


def test_without_the_data_folder_the_error_names_the_variable(monkeypatch):
    monkeypatch.delenv("HACL_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="HACL_DATA"):
        find_nlvr()
