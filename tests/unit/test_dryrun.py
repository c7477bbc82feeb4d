"""Promises of the dry run's prediction: steps, hours, what it assumes, and what it says without a network."""

import copy
from pathlib import Path

import pytest

import train
from hacl.config import Config, load_config
from hacl.training import dryrun, hardware, kernels, label_loss, run
from hacl.training.dryrun import Prediction, describe, hours, optimizer_steps
from hacl.training.memory import GIB, StepMemory, state_bytes, total_bytes
from hacl.training.sampler import plan_epoch
from tests.tiny import write_tiny_records

ROOT = Path(__file__).resolve().parents[2]


def prediction():
    memory = {(stage, ranks): 8.0 for stage in dryrun.STAGES for ranks in dryrun.RANKS}
    batch = {"samples": 8, "tokens": 90, "slots": 100, "label_tokens": 20, "images": 4}
    return Prediction({"llm": (100, 60), "heads": (10, 10)}, batch, 3.0, 2.0, memory, 0.0, feature_size=16)


@pytest.mark.parametrize(
    "records, ranks, how, steps",
    [
        (1000, 1, {}, 125),
        (1000, 4, {}, 31),
        (1000, 1, {"epochs": 2.0}, 250),
        (1000, 4, {"epochs": 0.5}, 16),
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
    assert hours(config, prediction(), records=None, ranks=1, tflops=100.0, mfu=0.4) == pytest.approx(5 * 2.0 / 40)
    config.train.max_steps = None
    one, two = (hours(config, prediction(), records=80_000, ranks=r, tflops=100.0, mfu=0.4) for r in (1, 2))
    assert one == pytest.approx(2 * two), "ranks share the records"


def test_a_step_is_charged_for_the_samples_it_has_and_not_for_full_chunks():
    config, found = Config(), prediction()
    config.train.max_steps, config.train.per_device_batch_size = 3600, 9
    config.train.grad_cache, config.train.grad_cache_chunk = True, 8
    assert config.train.chunks_per_step == 2
    assert hours(config, found, records=9000, ranks=1, tflops=100.0, mfu=0.4) == pytest.approx(9 / 8 * 2.0 / 40)
    shown = describe(config, found, StepMemory(GIB, GIB), 9000)
    assert f"{3.0 * 9 / 8:.4g} per optimizer step of 9 samples of a rank" in shown


def test_too_few_records_for_a_step_are_shared_by_the_ranks():
    config, found = Config(), prediction()
    config.train.epochs = 0.5
    times = [hours(config, found, records=24, ranks=ranks, tflops=100.0, mfu=0.4) for ranks in (4, 8, 16)]
    assert times == pytest.approx([samples / 8 * 2.0 / 40 / 3600 for samples in (6, 3, 2)]), "one step, at most so many"
    config.train.gradient_accumulation_steps = 4
    assert dryrun.samples_per_step(config, 24, 1) == 24 and dryrun.samples_per_step(config, None, 1) == 32
    shown = describe(config, found, StepMemory(GIB, GIB), 12)
    assert "12 records do not fill a step of 1 or more ranks; -: fewer records than ranks" in shown
    assert next(line for line in shown.splitlines() if line.startswith("hours  ")).endswith("-")
    assert "do not fill" not in describe(config, found, StepMemory(GIB, GIB), 10_000)


@pytest.mark.parametrize("steps, records", [(1, 16), (1, 9), (1, 3), (2, 16), (3, 20)])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_samples_of_a_step_are_those_of_the_plan(steps, records, ranks):
    config = Config()
    config.train.per_device_batch_size, config.train.gradient_accumulation_steps = 4, steps
    plan = plan_epoch(records, 4 * ranks, seed=0, epoch=0, accumulation=steps)
    samples = sum(len(batch[::ranks]) for batch in plan[:steps])  # of the rank that has most
    assert dryrun.samples_per_step(config, records, ranks) == samples


@pytest.mark.parametrize(
    "how",
    [
        ("objective.form=eos_branch",),
        ("train.length_multiple=64", "train.compile=true"),
        ("model.attn_implementation=flex_attention",),
        ("objective.lm_loss=liger",),
        ("model.preset=stage2-lora", "model.load_in_4bit=true"),
    ],
    ids=lambda how: how[-1],
)
def test_the_one_batch_runs_on_the_cpu_of_a_machine_with_a_gpu(tiny_llava, tmp_path, monkeypatch, capsys, how):
    path = write_tiny_records(tmp_path, 2)
    config = load_config(None, [f"model.path={tiny_llava}", f"data.path={path}", "train.per_device_batch_size=2", *how])
    monkeypatch.setattr(hardware.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(hardware.torch.cuda, "get_device_name", lambda: "NVIDIA L4")
    compiled = []
    monkeypatch.setattr(kernels, "compile_blocks", compiled.append)
    before = copy.deepcopy(config)
    dryrun.dry_run(config)
    assert "every trained parameter received a gradient" in capsys.readouterr().out
    assert not compiled and config == before, "the caller's settings stay"


def test_executed_work_has_the_head_again_where_the_loss_runs_in_chunks(tiny_llava, tmp_path, monkeypatch):
    path, found = write_tiny_records(tmp_path, 2), []
    for kind in ("plain", "chunked"):
        monkeypatch.setattr(label_loss, "CHUNK_BYTES", 1)
        how = [f"model.path={tiny_llava}", f"data.path={path}", f"objective.lm_loss={kind}"]
        config = load_config(None, how)
        found.append(dryrun.predict(config, run.read_inputs(config)))
    plain, chunked = found
    assert chunked.tflops > plain.tflops and chunked.minimal_tflops == plain.minimal_tflops


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
    def states(stage, ranks, **how):
        return state_bytes(300, 100, stage=stage, ranks=ranks, bf16=True, frozen_bytes=2, **how)

    assert states(None, 1) == 200 * 2 + 100 * 16 and states(None, 4) == 200 * 2 + 100 * 20
    assert states(0, 4) == 600 + 200 + 1200
    assert states(1, 4) == 600 + 200 + 300 and states(2, 4) == 600 + 50 + 300 and states(3, 4) == 150 + 50 + 300
    assert states(3, 4, whole_gradients=True) == 150 + 50 + 200 + 300, "kept whole until the end of a step"


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
