"""Diagnostics during a training run: written at their steps, once, and without a trace in the losses."""

import json
import shutil

import pytest

from tests.e2e.helpers import edited, losses, refuses

pytestmark = pytest.mark.slow
HOW = ["log.diagnostic_steps=2", "log.diagnostic_count=3", "model.preset=stage1-llm"]


def rows(run):
    return [json.loads(line) for line in (run / "diagnostics.jsonl").read_text().splitlines()]


def test_diagnostics_are_written_before_and_during_training_and_change_nothing(command):
    assert command(HOW[-1]) == 0
    before = losses(command.run)
    shutil.rmtree(command.run)
    assert command(*HOW) == 0
    assert losses(command.run) == before
    found = rows(command.run)
    assert [row["step"] for row in found] == [0, 2, 4]
    assert {"pre/relative_gap", "post/matched_cosine", "post/state_margin_accuracy", "caption_margin"} <= set(found[0])
    assert found[0]["post/relative_gap"] != found[-1]["post/relative_gap"]


def test_diagnostics_of_repeated_steps_are_written_once(command):
    assert command(*HOW, "log.diagnostic_steps=1") == 0
    shutil.rmtree(command.run / "checkpoint-4")
    before = rows(command.run)
    assert command(*HOW, "log.diagnostic_steps=1") == 0
    assert [row["step"] for row in rows(command.run)] == [0, 1, 2, 3, 4]
    assert rows(command.run) == before


def test_records_without_hallucinated_captions_are_refused_before_training(command, capsys, records, tmp_path):
    path = edited(records, tmp_path, lambda lines: [line.pop("hallucinated", None) for line in lines])
    said = refuses(command, capsys, "log.diagnostic_steps=1", "model.preset=stage2", f"data.path={path}")
    assert "log.diagnostic_steps" in said and not command.run.exists()
