"""Training from streamed sources, as a user would call it: the losses of an in-memory run, resumed exactly, refused by
name where records would have to be held."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import train
from hacl.data.parquet import write_parquet
from hacl.data.records import read_records, write_records
from hacl.data.webdataset import write_shards
from hacl.training.sampler import plan_epoch
from tests.e2e.helpers import losses, refuses

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
STREAM = ["data.stream=true", "train.cache_text_states=false"]


@pytest.fixture
def as_form(records, tmp_path):
    """The records as a file of some form, with the image root; `order` rearranges them."""

    def write(form, order=None):
        rows = read_records(records)
        rows = rows if order is None else [rows[i] for i in order]
        path = tmp_path / f"streamed.{form}"
        (write_parquet if form == "parquet" else write_records)(path, rows)
        return [f"data.path={path}", f"data.image_root={records.parent}", *STREAM]

    return write


@pytest.mark.parametrize("form", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_in_the_order_of_the_plan_has_the_losses_of_records_in_memory(command, as_form, form, workers):
    assert command("train.cache_text_states=false") == 0
    expected = losses(command.run)
    order = [i for batch in plan_epoch(20, 4, seed=0, epoch=0) for i in batch]
    how = [*as_form(form, order), "data.shuffle_buffer=1", f"train.num_workers={workers}"]
    assert command(*how, f"train.output_dir={command.run}-stream") == 0
    assert losses(command.run.with_name("run-stream")) == expected


def test_shards_train_like_the_files_they_hold(command, as_form, records):
    """Images are read inside the tar files, of which there are three, and epochs go over all of them."""
    how = ["train.max_steps=7", "data.shuffle_buffer=8", "train.save_steps=0"]
    assert command(*as_form("jsonl"), *how) == 0
    folder = command.run.parent / "shards"
    assert write_shards(folder / "a.tar", read_records(records), records.parent, per_shard=7) == 20
    nothing = folder / "none"
    nothing.mkdir()
    shards = [f"data.path={folder}/a-*.tar", f"data.image_root={nothing}", *STREAM]
    assert command(*shards, *how, "train.num_workers=2", f"train.output_dir={command.run}-shards") == 0
    assert losses(command.run.with_name("run-shards")) == losses(command.run)
    assert train.main([str(command.run.parent / "run.yaml"), "--dry-run", *shards]) == 0


def test_a_known_and_an_unknown_length_give_the_same_batches(command, as_form, monkeypatch):
    how = [*as_form("jsonl"), "data.shuffle_buffer=8", "train.max_steps=12", "train.save_steps=0"]
    assert command(*how) == 0
    monkeypatch.setattr("hacl.data.sources.JsonSource.count", lambda source: None)
    assert command(*how, f"train.output_dir={command.run}-unknown") == 0
    assert losses(command.run.with_name("run-unknown")) == losses(command.run)


@pytest.mark.parametrize("length", ["known", "unknown"])
@pytest.mark.parametrize("step", [2, 5, 7])
def test_a_resumed_stream_has_the_losses_of_an_unbroken_one(command, as_form, monkeypatch, length, step):
    """Epochs of five batches, shuffled within eight records; the second run has other workers and starts in between."""
    if length == "unknown":
        monkeypatch.setattr("hacl.data.sources.JsonSource.count", lambda source: None)
    how = [*as_form("jsonl"), "data.shuffle_buffer=8", "train.max_steps=12", "train.save_steps=1"]
    how += ["train.save_total_limit=null", "train.per_device_batch_size=4"]
    assert command(*how) == 0
    before = losses(command.run)
    assert len(before) == 12 and len(set(before.values())) > 8
    assert command(*how, f"train.resume={command.run / f'checkpoint-{step}'}", "train.num_workers=2") == 0
    assert losses(command.run) == before


def test_a_killed_stream_goes_on_with_the_losses_of_an_unbroken_one(command, as_form):
    how = [*as_form("parquet"), "data.shuffle_buffer=8", "train.max_steps=40", "train.save_steps=3"]
    assert command(*how) == 0
    expected = losses(command.run)
    killed = command.run.with_name("run-killed")
    words = [sys.executable, "train.py", str(command.run.parent / "run.yaml"), *how, f"train.output_dir={killed}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(killed.glob("checkpoint-*/manifest.json")):
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "killed before its end"
    assert command(*how, f"train.output_dir={killed}", "train.num_workers=1") == 0
    assert losses(killed) == expected


def test_gradient_accumulation_and_epochs_of_a_stream_are_those_of_records_in_memory(command, as_form):
    how = ["train.max_steps=null", "train.epochs=2", "train.gradient_accumulation_steps=2", "train.save_steps=0"]
    how += ["train.per_device_batch_size=5"]  # of 20 records: two steps per epoch, nothing left over
    assert command(*how, "train.cache_text_states=false") == 0
    memory = losses(command.run)
    assert command(*how, *as_form("jsonl"), f"train.output_dir={command.run}-stream") == 0
    assert list(losses(command.run.with_name("run-stream"))) == list(memory) == [1, 2, 3, 4]


def test_two_ranks_share_each_batch_of_a_stream(command, as_form):
    """Two ranks of two records with a data-loader worker each have the losses of one rank of four."""
    how = [*as_form("jsonl"), "data.shuffle_buffer=8", "train.max_steps=6", "train.save_steps=0"]
    assert command(*how) == 0
    two = command.run.with_name("run-two")
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py"]
    words += [str(command.run.parent / "run.yaml"), *how, f"train.output_dir={two}"]
    words += ["train.per_device_batch_size=2", "train.num_workers=1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert losses(two) == pytest.approx(losses(command.run), rel=1e-4)


def test_a_stream_trains_from_text_states_made_beforehand(command, as_form, tiny_llava):
    from hacl.config import load_config
    from hacl.training.cache_text import cache_texts

    how = [*as_form("parquet"), "train.max_steps=6", "train.save_steps=0"]
    assert command(*how) == 0
    texts = command.run.parent / "texts"
    report = cache_texts(load_config(None, [f"model.path={tiny_llava}", how[0]]), texts)
    assert report.computed > 10
    cached = [*how, f"train.text_cache={texts}", f"train.output_dir={command.run}-cached"]
    assert command(*cached, "train.cache_text_states=true", "train.num_workers=1") == 0
    assert losses(command.run.with_name("run-cached")) == pytest.approx(losses(command.run), rel=1e-5)


def test_a_dry_run_of_a_stream_builds_a_batch_and_writes_nothing(command, as_form, capsys):
    config = str(command.run.parent / "run.yaml")
    assert train.main([config, "--dry-run", *as_form("parquet")]) == 0
    assert "every trained parameter received a gradient" in capsys.readouterr().out
    assert not command.run.exists()


def test_validation_and_samples_work_beside_a_stream(command, as_form, records):
    how = [f"data.eval_path={records}", "train.eval_steps=2", "log.sample_steps=4", "log.sample_count=1"]
    assert command(*as_form("jsonl"), *how, "log.sample_max_new_tokens=2") == 0
    lines = [json.loads(line) for line in (command.run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval_loss" in line] == [2, 4]


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("train.grouping=length", "train.grouping"),
        ("train.cache_vision_features=true", "train.cache_vision_features"),
        ("train.cache_text_states=true", "train.text_cache"),
        ("data.shuffle_buffer=0", "data.shuffle_buffer must be at least 1"),
    ],
)
def test_what_needs_all_records_is_refused_by_name(command, as_form, capsys, setting, named):
    assert named in refuses(command, capsys, *as_form("jsonl"), setting)


def test_settings_of_a_stream_are_refused_without_one(command, as_form, capsys):
    path = as_form("parquet")[0]
    assert "data.stream=true" in refuses(command, capsys, "data.shuffle_buffer=4")
    assert "data.stream=true" in refuses(command, capsys, path)


def test_a_source_of_unknown_length_needs_a_number_of_steps(command, monkeypatch, capsys):
    how = ["data.path=hub:someone/captions?columns=captions:sentence", *STREAM, "train.max_steps=null"]
    error = refuses(command, capsys, *how)
    assert "set train.max_steps" in error and "hub:someone/captions" in error


def test_a_bad_record_beyond_those_checked_ends_the_run_with_its_place_and_a_checkpoint(
    command, as_form, monkeypatch, capsys
):
    monkeypatch.setattr("hacl.training.checks.STREAMED", 12)
    how = as_form("jsonl")
    path = Path(how[0].removeprefix("data.path="))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:14], '{"captions": ["cut', *lines[15:]]))
    error = refuses(command, capsys, *how, "data.shuffle_buffer=1", "train.save_steps=0")
    assert f"{path}:15" in error and "step 3 is saved" in error


def test_fixed_images_inside_shards_are_refused_for_the_logs(command, records, capsys):
    folder = command.run.parent / "shards"
    write_shards(folder / "a.tar", read_records(records), records.parent)
    error = refuses(command, capsys, f"data.path={folder}/a-000000.tar", *STREAM, "log.sample_steps=2")
    assert "log.sample_steps" in error and "data.eval_path" in error


def test_other_records_or_another_shuffle_are_refused_on_resuming(command, as_form, capsys):
    how = as_form("jsonl")
    assert command(*how, "train.max_steps=2") == 0
    assert "data.shuffle_buffer" in refuses(command, capsys, *how, "data.shuffle_buffer=4")
    assert "other records" in refuses(command, capsys, *as_form("jsonl", order=range(19, -1, -1)))
