"""Promises of the dry run's prediction: steps, hours, what it assumes, and what it says without a network."""

from pathlib import Path

import pytest

import train
from hacl.config import Config, load_config
from hacl.training import dryrun, hardware, run
from hacl.training.dryrun import Prediction, describe, hours, optimizer_steps
from hacl.training.memory import GIB, StepMemory, state_bytes, total_bytes
from tests.tiny import write_tiny_records

ROOT = Path(__file__).resolve().parents[2]


def prediction():
    memory = {(stage, ranks): 8.0 for stage in dryrun.STAGES for ranks in dryrun.RANKS}
    batch = {"samples": 4, "tokens": 90, "slots": 100, "label_tokens": 20, "images": 4}
    return Prediction({"llm": (100, 60), "heads": (10, 10)}, batch, 3.0, 2.0, memory, 0.0)


@pytest.mark.parametrize(
    "records, ranks, how, steps",
    [
        (1000, 1, {}, 125),
        (1000, 4, {}, 31),
        (1000, 1, {"epochs": 2.0}, 250),
        (1000, 1, {"gradient_accumulation_steps": 4}, 31),
        (3, 1, {}, 1),
        (1000, 8, {"max_steps": 70}, 70),
    ],
)
def test_steps_are_those_of_the_sampler(records, ranks, how, steps):
    config = Config()
    for name, value in how.items():
        setattr(config.train, name, value)
    assert optimizer_steps(config, records, ranks) == steps


def test_hours_are_steps_by_least_work_over_the_share_of_the_peak():
    config = Config()
    config.train.max_steps, config.train.gradient_accumulation_steps = 3600, 5
    assert hours(config, prediction(), records=0, ranks=1, tflops=100.0, mfu=0.4) == pytest.approx(5 * 2.0 / 40)
    config.train.max_steps = None
    one, two = (hours(config, prediction(), records=80_000, ranks=r, tflops=100.0, mfu=0.4) for r in (1, 2))
    assert one == pytest.approx(2 * two), "ranks share the records"


def test_the_hardware_that_hours_assume_is_printed(monkeypatch):
    config, step = Config(), StepMemory(GIB, GIB)
    assert "989 TFLOP/s for each rank (H100 SXM in bf16) at an MFU of 0.4" in describe(config, prediction(), step, 1000)
    config.log.peak_tflops = 312.0
    assert "312 TFLOP/s for each rank (log.peak_tflops)" in describe(config, prediction(), step, 1000)
    config.log.peak_tflops, config.train.bf16 = None, True
    monkeypatch.setattr(hardware.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(hardware.torch.cuda, "get_device_name", lambda: "NVIDIA L4")
    assert "121 TFLOP/s for each rank (this device)" in describe(config, prediction(), step, 1000)
    assert "a stream does not say how long it is; give train.max_steps" in describe(config, prediction(), step, None)


def test_states_divide_by_ranks_as_the_stages_say_and_ddp_keeps_gradients_twice():
    def states(stage, ranks):
        return state_bytes(300, 100, stage=stage, ranks=ranks, bf16=True, frozen_bytes=2)

    assert states(None, 1) == 200 * 2 + 100 * 16 and states(None, 4) == 200 * 2 + 100 * 20
    assert states(0, 4) == 600 + 200 + 1200
    assert states(1, 4) == 600 + 200 + 300 and states(2, 4) == 600 + 50 + 300 and states(3, 4) == 150 + 50 + 300


def test_gradients_take_the_place_of_activations_only_where_every_step_makes_them_anew():
    config, step = Config(), StepMemory(activations=900, with_gradients=1000)

    def total(stage=None, ranks=1):
        return total_bytes(config, 1600, 100, step, stage=stage, ranks=ranks)

    assert total() == 1600 - 400 + 1000
    assert total(ranks=2) == total(stage=2) == 1600 + 900
    config.train.gradient_accumulation_steps = 2
    assert total() == 1600 + 900


def test_lengths_are_those_of_many_records_and_not_of_the_first_batch(tiny_llava, tmp_path):
    path = write_tiny_records(tmp_path, 4, text_only=12)
    config = load_config(
        None, [f"model.path={tiny_llava}", f"data.path={path}", "train.per_device_batch_size=4", "model.preset=stage2"]
    )
    found = dryrun.predict(config, run.read_inputs(config))
    assert found.batch["images"] == 4
    config.data.max_records = 4
    assert found.minimal_tflops < 0.7 * dryrun.predict(config, run.read_inputs(config)).minimal_tflops


def test_without_a_network_the_dry_run_says_what_to_give_instead(tmp_path, capsys):
    records = write_tiny_records(tmp_path, 2)
    recipe = str(ROOT / "configs/llava15_7b/stage1.yaml")
    assert train.main([recipe, "--dry-run", "model.path=nobody/absent", f"data.path={records}"]) == 2
    shown = capsys.readouterr().err
    assert "model.path=nobody/absent: config.json could not be read" in shown
    assert "model.path=FOLDER that holds config.json and the processor's files" in shown
