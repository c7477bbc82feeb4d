"""Training over records of which some cannot be read, as a user would call it: replaced, counted, resumed exactly."""

import json
import shutil

import pytest
from safetensors.torch import load_file

from tests.e2e.helpers import edited, losses, refuses

pytestmark = pytest.mark.slow
SHARE = "data.max_bad_fraction=0.2"


@pytest.fixture
def spoilt(records, tmp_path):
    """The records with a truncated image, a missing one and one text with too many image marks."""

    def change(lines):
        lines[16]["conversations"][0]["value"] = "<image> <image> ?"

    path = edited(records, tmp_path, change)
    image = path.parent / "images/7.png"
    image.write_bytes(image.read_bytes()[:60])
    (path.parent / "images/3.png").unlink()
    return path


def skipped(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        line["step"]: {name: value for name, value in line.items() if name.startswith("skipped/")}
        for line in lines
        if "loss" in line
    }


@pytest.mark.parametrize("stream", [False, True], ids=["in memory", "streamed"])
def test_bad_samples_are_counted_and_a_resumed_run_is_the_uninterrupted_one(command, spoilt, capsys, stream):
    how = [f"data.path={spoilt}", SHARE, "data.template=chat", "train.cache_text_states=false"]
    how += ["train.max_steps=8", "train.save_steps=3", *(["data.stream=true"] if stream else [])]
    assert command(*how) == 0
    whole, counted = losses(command.run), skipped(command.run)
    assert sum(counted[5].values()) == len(counted[5]) == 3, "each once in an epoch"
    assert sum(counted[8].values()) > 3
    weights = load_file(command.run / "checkpoint-8/trained.safetensors")
    for step in (6, 8):
        shutil.rmtree(command.run / f"checkpoint-{step}")
    (command.run / "result.json").unlink()
    assert command(*how, "train.num_workers=2") == 0
    assert "resuming" in capsys.readouterr().out
    assert losses(command.run) == whole and skipped(command.run) == counted
    again = load_file(command.run / "checkpoint-8/trained.safetensors")
    assert all((again[name] == tensor).all() for name, tensor in weights.items())


def test_a_dry_run_passes_over_what_training_would_replace(command, spoilt, capsys):
    how = [f"data.path={spoilt}", "data.template=chat", "train.cache_text_states=false", "--dry-run"]
    assert command(*how, SHARE) == 0
    assert "every trained parameter received a gradient" in capsys.readouterr().out
    assert command(*how) == 2


def test_too_many_bad_samples_stop_a_run_whose_checkpoint_goes_on_with_a_larger_share(
    command, spoilt, capsys, monkeypatch
):
    """Images that were there when the run was checked and are damaged when they are read."""
    monkeypatch.setattr("hacl.training.checks.check_images", lambda *args, **kwargs: None)
    how = [f"data.path={spoilt}", "train.cache_text_states=false", "data.template=chat", "train.save_steps=0"]
    message = refuses(command, capsys, *how, "data.max_bad_fraction=0.12", "train.max_steps=10")
    assert "3 sample(s) could not be read" in message and "data.max_bad_fraction=0.12 of 20" in message
    assert "is saved in" in message
    assert command(*how, SHARE, "train.max_steps=10") == 0
    counted = skipped(command.run)
    assert counted[10] == {"skipped/missing_image": 2, "skipped/damaged_image": 2, "skipped/bad_text": 2}


def test_samples_without_a_token_to_learn_train_on_below_their_share_and_stop_a_run_above_it(
    command, records, tmp_path, capsys, monkeypatch
):
    """One of 20 rows of a stream, behind those that are looked at before training; its answer is cut off."""
    monkeypatch.setattr("hacl.training.checks.STREAMED", 10)

    def change(lines):
        lines[17]["conversations"][0]["value"] = "a red square on the left " * 10

    how = [f"data.path={edited(records, tmp_path, change)}", "data.stream=true", "data.template=chat"]
    how += ["data.max_length=40", "train.cache_text_states=false", "train.max_steps=8", "train.save_steps=0"]
    message = refuses(command, capsys, *how, "data.max_unlabelled_fraction=0.04")
    assert "1 sample(s) have no token to learn" in message and "cuts off the whole answer" in message
    assert command(*how, "data.max_unlabelled_fraction=0.05") == 0
    result = json.loads((command.run / "result.json").read_text())
    assert 1 <= result["metrics"]["unlabelled"] <= 2 and "unlabelled" in capsys.readouterr().out
