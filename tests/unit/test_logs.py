"""Promises of what the first rank writes alone: a failed write is said once, and neither hides nor ends anything."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from hacl.training import callbacks, nonfinite, weights


class Cut:
    """A file that takes some letters of what is written and then has no space."""

    def __init__(self, stream):
        self.stream = stream

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.stream.close()

    def write(self, text):
        self.stream.write(text[:5])
        self.stream.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_line_that_cannot_be_written_is_lost_as_a_whole_and_said_once(tmp_path, monkeypatch, capsys):
    log, original = callbacks.Log(tmp_path / "metrics.jsonl"), Path.open
    log.append([{"step": 1}])
    with monkeypatch.context() as full:
        full.setattr(Path, "open", lambda self, *how, **options: Cut(original(self, *how, **options)))
        log.append([{"step": 2}])
        log.append([{"step": 3}])
    said = capsys.readouterr().err
    assert said.count("cannot write metrics.jsonl") == 1 and "No space left" in said and "free space" in said
    log.append([{"step": 4}])
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [1, 4]


def test_what_is_no_failed_write_passes_as_it_is(tmp_path):
    with pytest.raises(KeyError), callbacks.Log(tmp_path / "metrics.jsonl").writing():
        raise KeyError("step")


def bad_step(folder, ids):
    guard = nonfinite.NonFiniteGuard("raise", 10, folder)
    guard.begin([ids], step=2)
    guard.note(torch.tensor(float("nan")))
    with pytest.raises(nonfinite.NonFiniteError) as error:
        guard.refuse("the loss is not finite")
    return str(error.value)


def test_a_report_that_cannot_be_written_does_not_hide_the_step_it_is_about(tmp_path, capsys):
    message = bad_step(tmp_path / "gone", ["a", "b"])
    assert "not finite at step 2" in message and "with records a, b" in message
    assert "nonfinite-2.json could not be written" in capsys.readouterr().err


def test_records_of_a_bad_step_are_named_briefly_and_on_one_line(tmp_path):
    message = bad_step(tmp_path, ["a\nerror: no", "b" * 500])
    assert "\n" not in message and "a error: no" in message and "b" * 100 not in message
    assert "b" * 500 in (tmp_path / "nonfinite-2.json").read_text()


def test_a_checkpoint_of_deepspeed_takes_masters_and_computed_weights_too():
    model = nn.Linear(10, 10)
    model.weight.requires_grad_(False)
    assert weights.checkpoint_bytes(model) == 120 and weights.checkpoint_bytes(model, deepspeed=True) == 180
