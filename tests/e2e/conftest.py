"""Fixtures of the end-to-end tests: tiny records, and the training command with a tiny configuration."""

import json

import pytest

import train
from tests.tiny import write_tiny_records


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return write_tiny_records(tmp_path_factory.mktemp("records"), 16, text_only=4)


@pytest.fixture
def command(tiny_llava, records, tmp_path):
    """main([...]) with a tiny configuration; overrides are appended. Returns the exit status."""
    settings = {
        "model": {"path": str(tiny_llava)},
        "data": {"path": [str(records)]},
        "train": {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 4,
            "per_device_batch_size": 4,
            "save_steps": 2,
            "scheduler": "constant",
            "warmup": 0,
        },
        "log": {"steps": 1},
    }
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(settings), encoding="utf-8")

    def call(*overrides):
        return train.main([str(path), *overrides])

    call.run = tmp_path / "run"
    return call
