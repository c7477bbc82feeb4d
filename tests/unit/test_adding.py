"""Promises of docs/adding_a_method.md: its code runs and does what the page says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding_a_method.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def page():
    """The names that the page's code defines; every block is a file of its own."""
    found: dict = {}
    for block in BLOCKS:
        names = {"__name__": "adding"}
        exec(compile(block, str(PAGE), "exec"), names)
        found |= names
    return found


def test_the_loss_is_a_sum_and_a_count_with_a_gradient(page):
    image, caption = torch.eye(3, requires_grad=True), torch.eye(3)[[0, 2, 2]]
    total, count = page["alignment"](image, caption, torch.tensor([True, True, False]))
    assert (total.item(), count.item()) == (1.0, 2)
    assert torch.autograd.grad(total, image)[0][2].abs().sum() == 0
    assert page["alignment"](image[:0], caption[:0], torch.ones(0, dtype=torch.bool))[0].requires_grad


def test_the_benchmark_asks_and_scores(page, tmp_path, monkeypatch):
    from PIL import Image

    from hacl.evaluation import scorers
    from hacl.evaluation.runner.places import Place

    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    rows = [{"id": n, "image": "0.png", "question": "what colour?", "colour": "red"} for n in range(3)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (part,) = page["colour_plan"](Place(tmp_path, (tmp_path,)), 2).parts
    assert [item.fields["colour"] for item in part.items] == ["red", "red"]
    monkeypatch.setattr(scorers, "scorer_class", lambda name: page["ColourScorer"])
    predictions = [
        item.fields | {"answer": answer} for item, answer in zip(part.items, ("it is Red", "blue"), strict=True)
    ]
    assert scorers.score("colour", predictions).metrics["accuracy"] == 0.5
    with pytest.raises(ValueError, match="answered twice"):
        scorers.score("colour", [predictions[0]] * 2)


def test_the_source_gives_the_same_rows_from_any_row_on(page, tmp_path):
    from hacl.data.stream import RecordStream

    path = tmp_path / "captions.csv"
    path.write_text("image,caption\n" + "".join(f"{n}.png,a dog {n}\n" for n in range(5)))
    source = page["CsvSource"](path)
    assert list(source.rows(3)) == list(source.rows())[3:]
    assert [record.captions for record in source.records(4)] == [("a dog 4",)]
    stream = iter(RecordStream(source, batch_size=2, seed=0, rank=0, ranks=1))
    assert len(next(stream)) == 2


def test_the_generator_is_found_by_its_name_and_is_a_function_of_the_record(page, monkeypatch):
    import sys
    from types import SimpleNamespace

    from hacl.data.records import parse_record
    from hacl.hallucinate import generators

    monkeypatch.setitem(sys.modules, "adding", SimpleNamespace(MirrorBackend=page["MirrorBackend"]))
    monkeypatch.setitem(generators.BACKENDS, "mirror", "adding:MirrorBackend")
    record = parse_record({"id": "1", "image": "1.png", "captions": ["a dog left of a cat", "a dog"]}, where="test")
    backend = generators.make_hallucinator("mirror", seed=3)
    (made,), nothing = backend.propose_batch([(record, 0), (record, 1)], 2)
    assert (made.text, made.text[slice(*made.span)], nothing) == ("a dog right of a cat", "right", [])
    assert backend.rejections == {"no direction": 1}
