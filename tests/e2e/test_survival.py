"""One process: resumed to the bit, stopped on request wherever it is, and no update from what is not finite."""

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hacl.training import build, checks, grad_cache, survival, trainer
from tests.e2e.helpers import losses, refuses
from tests.unit.test_grad_cache_chunks import BatchNormOfChannels

pytestmark = pytest.mark.slow
LORA = ["model.preset=stage1-llm", "model.lora.rank=4", "model.lora.dropout=0.2", "objective.learn_temperature=true"]
WINDOW = ["train.per_device_batch_size=2", "train.gradient_accumulation_steps=2"]
WAYS = {
    "full, accumulation, workers": ["model.preset=stage1-llm", *WINDOW, "train.num_workers=2"],
    "LoRA, GradCache, queue": [*LORA, *WINDOW, "train.grad_cache=true", "objective.queue_size=6"],
    "LoRA, stream, workers": [*LORA, "data.stream=true", "data.shuffle_buffer=8", "train.cache_text_states=false",
                              "train.num_workers=1", "log.steps=4"],
}  # fmt: skip


LOGGED = ("step", "loss", "grad_norm", "lm", "contrastive", "temperature")


def tensors_of(checkpoint):
    files = sorted(checkpoint.rglob("*.safetensors"))
    return {f"{file.name}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


@pytest.fixture
def seen(monkeypatch):
    """Record ids of every step, and what to do in one."""
    seen = {"ids": {}, "at": {}}
    begin = trainer.HaclTrainer.begin_step

    def begin_step(self, records):
        step = self.state.global_step + 1
        seen["ids"][step], seen["trainer"] = records, self
        begin(self, records)
        seen["at"].pop(step, lambda: None)()

    monkeypatch.setattr(trainer.HaclTrainer, "begin_step", begin_step)
    return seen


@pytest.mark.parametrize("way", WAYS)
def test_a_run_resumed_within_an_epoch_has_the_losses_weights_and_records_of_an_unbroken_one(command, seen, way):
    how = [*WAYS[way], "train.max_steps=8", "train.save_steps=3", "train.save_total_limit=null"]  # five steps per epoch
    assert command(*how) == 0
    log = [json.loads(line) for line in (command.run / "metrics.jsonl").read_text().splitlines()]
    before = [[repr(row.get(name)) for name in LOGGED] for row in log if "loss" in row]
    weights, ids = tensors_of(command.run / "checkpoint-8"), dict(seen["ids"])
    for step in (6, 8):
        shutil.rmtree(command.run / f"checkpoint-{step}")
    seen["ids"].clear()
    assert command(*how) == 0
    log = [json.loads(line) for line in (command.run / "metrics.jsonl").read_text().splitlines()]
    assert [[repr(row.get(name)) for name in LOGGED] for row in log if "loss" in row] == before
    after = tensors_of(command.run / "checkpoint-8")
    assert set(after) == set(weights) and all(torch.equal(after[name], weights[name]) for name in weights)
    assert seen["ids"] == {step: ids[step] for step in range(4, 9)}


def test_the_loss_of_a_run_is_that_of_all_its_steps_also_where_it_went_on_and_was_made_longer(command):
    def outcome():
        return json.loads((command.run / "result.json").read_text())["metrics"]["train_loss"]

    how = ["log.steps=4", "train.save_steps=0"]
    assert command(*how, "train.max_steps=7") == 0
    whole, first = outcome(), losses(command.run)
    shutil.rmtree(command.run)
    assert command(*how, "train.max_steps=6") == 0 and outcome() != whole
    assert command(*how, "train.max_steps=7") == 0
    assert outcome() == whole and losses(command.run) == first


def test_a_validation_does_not_change_what_dropout_draws(command, records):
    how = [*LORA, "train.max_steps=4", "train.save_steps=0"]
    assert command(*how) == 0
    without = losses(command.run)
    shutil.rmtree(command.run)
    assert command(*how, f"data.eval_path={records}", "train.eval_steps=1") == 0
    assert losses(command.run) == without


@pytest.mark.parametrize("phase", ["validation", "sampling", "diagnostics"])
def test_a_signal_in_a_long_phase_saves_the_step_and_leaves(command, records, monkeypatch, capsys, phase):
    beat, sent = survival.SurvivingTrainer.beat, []

    def noted(self, name, ids=None):
        beat(self, name, ids)
        if name == phase and self.state.global_step == 2 and not sent:
            sent.append(os.kill(os.getpid(), signal.SIGUSR1))

    monkeypatch.setattr(survival.SurvivingTrainer, "beat", noted)
    how = [f"data.eval_path={records}", "train.eval_steps=2", "log.sample_steps=2", "log.sample_count=1"]
    how += ["log.sample_max_new_tokens=4", "log.diagnostic_steps=2", "log.diagnostic_count=4", "train.save_steps=0"]
    assert command(*how, "train.preempt_exit_code=75") == 75
    assert "stopped by SIGUSR1 after step 2, which is saved" in capsys.readouterr().out
    assert [path.name for path in command.run.glob("checkpoint-*")] == ["checkpoint-2"]
    rows = {name: (command.run / f"{name}.jsonl").read_text() for name in ("metrics", "diagnostics")}
    assert "eval_loss" not in rows["metrics"], "the validation was left unfinished"
    assert ('"step": 2' in rows["diagnostics"]) == (phase == "validation"), "samples come before diagnostics"
    assert (command.run / "samples.jsonl").is_file() == (phase != "sampling")
    assert command(*how) == 0 and list(losses(command.run)) == [1, 2, 3, 4]


def test_a_signal_before_the_first_step_ends_the_start_and_leaves_nothing(command, monkeypatch, capsys):
    from hacl.training import build

    went_on = []

    def asked_to_stop(model):
        os.kill(os.getpid(), signal.SIGTERM)
        went_on.append(model)
        raise AssertionError("the start went on")

    monkeypatch.setattr(build, "load_backbone", asked_to_stop)
    assert command() == 0 and not went_on
    assert "stopped by SIGTERM after step 0" in capsys.readouterr().out
    assert not list(command.run.glob("*checkpoint*"))


def test_the_contrastive_loss_of_a_gradcache_window_is_checked_too(command, seen, monkeypatch, capsys):
    """Its micro-batches have finite losses here; the loss of the window has not."""
    open_window = grad_cache.Window.open

    def infinite(self, prepare):
        report = open_window(self, prepare)
        if seen["trainer"].state.global_step == 1:
            report = {name: (total * float("inf"), count) for name, (total, count) in report.items()}
        return report

    monkeypatch.setattr(grad_cache.Window, "open", infinite)
    how = [*WINDOW, "train.grad_cache=true", "log.steps=100", "train.save_steps=1"]
    message = refuses(command, capsys, *how)
    assert [len(ids) for ids in seen["ids"][2]] == [2, 2]
    assert "not finite at step 2" in message and all(name in message for ids in seen["ids"][2] for name in ids)
    report = json.loads((command.run / "nonfinite-2.json").read_text())
    assert [part["records"] for part in report["ranks"][0]["micro_batches"]] == seen["ids"][2]
    assert [path.name for path in command.run.glob("checkpoint-*")] == ["checkpoint-1"]


@pytest.mark.parametrize("bad", ["forward", "nothing"])
def test_a_skipped_step_leaves_no_trace_in_the_batch_norm_of_a_tower(command, seen, monkeypatch, bad):
    """A forward pass writes running statistics before anyone can know that its loss is not finite."""
    load, norm = build.load_backbone, BatchNormOfChannels(32)
    forward = norm.forward

    def load_with_batch_norm(model):
        backbone = load(model)
        backbone.model.vision_tower.pre_layrnorm = norm
        return backbone

    def forward_of_step_2(states):
        is_bad = bad == "forward" and seen["trainer"].state.global_step == 1
        return forward(states * float("nan") if is_bad else states)

    monkeypatch.setattr(build, "load_backbone", load_with_batch_norm)
    monkeypatch.setattr(checks, "check_image_tokens", lambda *_: None)  # which runs the tower before there is a step
    norm.forward = forward_of_step_2
    how = ["model.preset=stage1-vision", "train.on_nonfinite=skip", "train.save_steps=1", "train.max_steps=3"]
    assert command(*how) == 0
    assert (command.run / "nonfinite-2.json").is_file() == (bad == "forward")
    saved = [tensors_of(command.run / f"checkpoint-{step}") for step in (1, 2, 3)]
    names = [name for name in saved[0] if "running_" in name or "num_batches" in name]
    assert len(names) == 3
    for name in names:
        first, second, third = (tensors[name] for tensors in saved)
        assert torch.equal(first, second) == (bad == "forward") and third.isfinite().all()
        assert not torch.equal(second, third)


def test_after_the_allowed_number_of_skips_the_run_stops(command, monkeypatch, capsys):
    compose = trainer.compose
    monkeypatch.setattr(trainer, "compose", lambda *parts: compose(*parts) * float("nan"))
    message = refuses(command, capsys, "train.on_nonfinite=skip", "train.max_nonfinite_skips=2")
    assert "at step 3 after 2 skipped steps" in message
    assert {path.name for path in command.run.glob("nonfinite-*")} == {f"nonfinite-{step}.json" for step in (1, 2, 3)}


def test_the_losses_of_a_skipped_step_enter_no_mean(command, seen, monkeypatch):
    """Of the two micro-batches of step 2, the second has no finite loss."""
    compose, parts_of_step = trainer.compose, []

    def composed(*parts):
        parts_of_step.append(seen["trainer"].state.global_step)
        return compose(*parts) * (float("nan") if parts_of_step[-2:] == [1, 1] else 1.0)

    monkeypatch.setattr(trainer, "compose", composed)
    logged = []
    for every in (1, 3):
        parts_of_step.clear()
        run = command.run.with_name(f"every-{every}")
        how = [*WINDOW, "train.on_nonfinite=skip", "train.max_steps=3", f"train.output_dir={run}"]
        assert command(*how, f"log.steps={every}") == 0
        logged.append(losses(run))
    assert list(logged[0]) == [1, 3] and logged[1] == logged[0]


def test_a_log_that_cannot_be_written_is_named_and_ends_no_run(command, monkeypatch, capsys):
    original = Path.open

    def full(self, mode="r", *arguments, **options):
        if self.name == "metrics.jsonl" and mode == "a" and (command.run / "checkpoint-2").is_dir():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(self, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", full)
    assert command() == 0
    said = capsys.readouterr().err
    assert said.count("cannot write metrics.jsonl") == 1 and str(command.run) in said and "No space left" in said
    assert list(losses(command.run)) == [1, 2] and (command.run / "checkpoint-4/manifest.json").is_file()


def test_a_run_killed_after_its_last_checkpoint_still_names_the_best_one(command, records, capsys):
    """Here a greater loss is taken as better, so that the best checkpoint is not the last."""
    how = [f"data.eval_path={records}", "train.eval_steps=2", "train.best_metric=eval_loss"]
    assert command(*how, "train.best_is_greater=true") == 0
    result = json.loads((command.run / "result.json").read_text())
    assert result["checkpoint"] == "checkpoint-2"
    (command.run / "result.json").unlink()
    capsys.readouterr()
    assert command(*how, "train.best_is_greater=true") == 0
    assert f"done after step 4: {command.run / 'checkpoint-2'}" in capsys.readouterr().out
    again = json.loads((command.run / "result.json").read_text())["metrics"]
    assert again == {name: value for name, value in result["metrics"].items() if name in again}
    assert {"train_loss", "eval_loss"} <= set(again), "without the rates of a process that made no step"
