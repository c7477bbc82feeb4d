"""Where a run goes on, and what is the best checkpoint: validation between saves, other choices, branches, kills."""

import json
import multiprocessing
import shutil
import signal

import pytest

from hacl.training import manifest, run_folder, storage, trainer
from tests.e2e.helpers import losses, refuses

pytestmark = pytest.mark.slow


@pytest.fixture
def judged(command, records, monkeypatch):
    """The command with validations whose losses are given by step; `state(step)` is the state of a checkpoint."""
    scores = {}
    measured = trainer.HaclTrainer._evaluate_all

    def evaluate(self, *arguments):
        compose = trainer.compose
        trainer.compose = lambda objective, *parts: scores.get(self.state.global_step, compose(objective, *parts))
        try:
            return measured(self, *arguments)
        finally:
            trainer.compose = compose

    monkeypatch.setattr(trainer.HaclTrainer, "_evaluate_all", evaluate)

    def call(*overrides, best="eval_loss", by_step=None):
        scores.clear()
        scores.update(by_step or {})
        how = [f"data.eval_path={records}", f"train.best_metric={best}", "train.per_device_eval_batch_size=16"]
        return command(*how, *overrides)

    call.run = command.run
    call.result = lambda: json.loads((command.run / "result.json").read_text())
    call.state = lambda step: json.loads((command.run / f"checkpoint-{step}/trainer_state.json").read_text())
    return call


def held(run):
    return sorted(path.name for path in run.glob("*checkpoint-*"))


def test_only_a_step_that_is_saved_can_be_the_best_one(judged):
    how = ["train.max_steps=6", "train.eval_steps=1", "train.save_total_limit=1"]
    assert judged(*how, by_step={1: 1.0, 2: 2.0, 3: 0.5, 4: 4.0, 5: 5.0, 6: 9.0}) == 0
    assert held(judged.run) == ["checkpoint-2", "checkpoint-6"]
    assert judged.result()["checkpoint"] == "checkpoint-2" and judged.state(6)["best_metric"] == 2.0


def test_a_resume_that_chooses_the_best_otherwise_begins_the_choice_anew(judged, records):
    first = ["train.eval_steps=2", "train.max_steps=2"]
    more = ["train.eval_steps=2", "train.max_steps=4"]
    other = shutil.copytree(records.parent, judged.run.parent / "other")
    for change in (["train.best_is_greater=true"], [f"data.eval_path={other / records.name}"]):
        assert judged(*first, by_step={2: 1.0}) == 0 and judged.state(2)["best_global_step"] == 2
        assert judged(*more, *change, by_step={4: 3.0}) == 0
        assert judged.result()["checkpoint"] == "checkpoint-4", change
        shutil.rmtree(judged.run)


def test_a_resume_without_a_best_metric_saves_its_last_step_and_reports_that(judged):
    assert judged("train.eval_steps=2", "train.max_steps=2", by_step={2: 1.0}) == 0
    how = ["train.eval_steps=2", "train.max_steps=3", "train.save_steps=0"]
    assert judged(*how, best="null", by_step={3: 7.0}) == 0
    assert held(judged.run) == ["checkpoint-2", "checkpoint-3"]
    assert judged.result()["checkpoint"] == "checkpoint-3" and judged.result()["metrics"]["eval_loss"] == 7.0


def test_the_best_checkpoint_is_found_where_the_run_folder_has_moved_to(judged):
    how = ["train.eval_steps=2", "train.max_steps=2"]
    assert judged(*how, by_step={2: 1.0}) == 0
    moved = judged.run.rename(judged.run.with_name("moved"))
    assert judged(f"train.output_dir={moved}", "train.eval_steps=2", by_step={4: 3.0}) == 0
    assert json.loads((moved / "result.json").read_text())["checkpoint"] == "checkpoint-2"
    (moved / "result.json").unlink()
    again = moved.rename(moved.with_name("again"))
    assert judged(f"train.output_dir={again}", "train.eval_steps=2", by_step={4: 3.0}) == 0
    assert json.loads((again / "result.json").read_text())["checkpoint"] == "checkpoint-2"


def test_an_explicit_checkpoint_begins_a_branch_that_every_later_start_goes_on_with(command, capsys):
    how = ["train.save_steps=1", "train.save_total_limit=null", "train.scheduler=constant"]
    assert command(*how) == 0
    old = {step: manifest.read_manifest(command.run / f"checkpoint-{step}")["files"] for step in (3, 4)}
    back = [*how, f"train.resume={command.run / 'checkpoint-1'}"]
    capsys.readouterr()
    assert command(*back, "train.max_steps=2") == 0
    said = capsys.readouterr().err
    assert all(f"checkpoint-{step} is set aside as abandoned-checkpoint-{step}" in said for step in (2, 3, 4))
    assert held(command.run) == [*(f"abandoned-checkpoint-{i}" for i in (2, 3, 4)), "checkpoint-1", "checkpoint-2"]
    assert manifest.read_manifest(command.run / "abandoned-checkpoint-3")["files"] == old[3], "nothing is lost"
    assert command(*back, "train.max_steps=3") == 0, "the same command goes on, as after a preemption"
    captured = capsys.readouterr()
    assert "resuming" in captured.out and f"resuming {command.run / 'checkpoint-2'}" in captured.out
    assert "already went on from checkpoint-1" in captured.err and "branch.json" in captured.err
    assert command(*how, "train.resume=auto") == 0
    assert f"resuming {command.run / 'checkpoint-3'}" in capsys.readouterr().out
    (command.run / "branch.json").unlink()
    assert command(*back, "train.max_steps=2") == 0, "and once more from there, where that is asked for"
    assert {"abandoned-checkpoint-2", "abandoned-checkpoint-2.1"} <= set(held(command.run))


def test_a_damaged_later_checkpoint_that_was_passed_over_is_set_aside_and_not_counted(command):
    how = ["train.save_steps=1", "train.save_total_limit=2"]
    assert command(*how) == 0 and held(command.run) == ["checkpoint-3", "checkpoint-4"]
    damaged = command.run / "checkpoint-4"
    damaged.rename(command.run / "checkpoint-9")
    (command.run / "checkpoint-9/trained.safetensors").write_bytes(b"no")
    assert command(*how, "train.max_steps=5") == 0
    assert held(command.run) == ["abandoned-checkpoint-9", "checkpoint-4", "checkpoint-5"]


@pytest.mark.parametrize("left", ["", "{"])
def test_a_run_killed_before_its_result_is_finished_by_the_next_start(command, records, capsys, left):
    how = [f"data.eval_path={records}"]
    assert command(*how) == 0
    result, logged = command.run / "result.json", losses(command.run)
    whole = json.loads(result.read_text())
    result.unlink()
    if left:
        result.write_text(left)
    capsys.readouterr()
    assert command(*how) == 0
    again = json.loads(result.read_text())
    assert again["checkpoint"] == "checkpoint-4" and again["step"] == 4
    assert again["metrics"]["eval_loss"] == whole["metrics"]["eval_loss"]
    assert again["metrics"]["train_loss"] == whole["metrics"]["train_loss"], "kept with the checkpoint"
    assert losses(command.run) == logged and held(command.run) == ["checkpoint-2", "checkpoint-4"]
    assert command(*how) == 0 and "nothing left to do" in capsys.readouterr().out


def test_a_run_folder_in_which_another_process_trains_is_refused_and_left_alone(command, capsys):
    def hold(ready):
        with run_folder.held(command.run):
            ready.set()
            signal.pause()

    saving = command.run / ".tmp-checkpoint-2"
    saving.mkdir(parents=True)
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=(ready,))
    process.start()
    try:
        assert ready.wait(60)
        assert f"process {process.pid} on" in refuses(command, capsys) and saving.is_dir()
    finally:
        process.kill()
        process.join(60)
    assert command() == 0 and not saving.is_dir()


def test_a_run_folder_that_ranks_do_not_share_is_refused_before_training(command, capsys, monkeypatch):
    def not_shared(folder):
        raise storage.StorageError(f"{folder}: rank 1 cannot see it")

    monkeypatch.setattr(run_folder, "check_shared", not_shared)
    assert "rank 1 cannot see it" in refuses(command, capsys) and not held(command.run)
