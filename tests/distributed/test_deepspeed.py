"""DDP and ZeRO on two CPU ranks, by torchrun and by DeepSpeed's launcher: the losses of one process, resume, export.

A launch takes some 20 s, so one goes through several runs and a second one resumes them.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train
from tests.distributed.ranks import free_port
from tests.tiny import write_tiny_records

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
DEEPSPEED = ("-m", "deepspeed.launcher.runner", "--num_gpus=2", f"--master_port={free_port()}")


def launch(launcher, *arguments, program=ROOT / "train.py"):
    """train.py in a fresh process or, with a launcher, in several; fails the test with its output."""
    command = [sys.executable, *launcher]
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(
        [*command, str(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def lines(run, key="loss"):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row[key] for row in rows if key in row}


def write_settings(model, folder):
    """A configuration whose batches mix captioned images and text-only dialogues; validation has an odd size."""
    records = write_tiny_records(folder / "records", 12, text_only=4)
    odd = write_tiny_records(folder / "validation", 7)
    path = folder / "run.yaml"
    path.write_text(
        json.dumps(
            {
                "model": {"path": str(model), "preset": "stage1-llm"},
                "data": {"path": str(records), "eval_path": str(odd)},
                "train": {"max_steps": 4, "save_steps": 2, "eval_steps": 4, "scheduler": "constant", "warmup": 0},
                "log": {"steps": 1},
            }
        ),
        encoding="utf-8",
    )
    return path


@pytest.fixture
def settings(tiny_llava, tmp_path):
    return write_settings(tiny_llava, tmp_path)


def batch(per_rank):
    """Eight samples per step in two micro-batches, whatever the number of ranks."""
    return (
        f"train.per_device_batch_size={per_rank}",
        f"train.per_device_eval_batch_size={per_rank}",
        "train.gradient_accumulation_steps=2",
    )


LORA = ("model.lora.rank=4", "model.lora.dropout=0.0", "model.learning_rate.llm=1e-3", "train.bf16=true")
LORA += ("objective.learn_temperature=true",)
WATCHED = ("log.sample_steps=4", "log.diagnostic_steps=2", "log.diagnostic_count=5")
RUNS = {
    "ddp": (),
    "zero-2": ("train.deepspeed=2",),
    "zero-3": (*LORA, *WATCHED, "train.deepspeed=3"),  # in this order, since ZeRO-3 and bf16 leave marks in a process
}


def launch_several(launcher, settings, runs):
    """Runs (folder -> overrides) one after another in the ranks of one launch."""
    asked = json.dumps([[f"train.output_dir={folder}", *how] for folder, how in runs.items()])
    launch(launcher, settings, asked, program=ROOT / "tests/distributed/several_runs.py")


@pytest.fixture(scope="module")
def two_ranks(tiny_llava, tmp_path_factory):
    """Settings; folders of finished runs; and their losses before their last checkpoint was lost and made again."""
    folder = tmp_path_factory.mktemp("two")
    settings = write_settings(tiny_llava, folder)
    runs = {folder / name: (*batch(2), *how) for name, how in RUNS.items()}
    launch_several(TORCHRUN, settings, runs)
    before = {name: lines(folder / name) for name in RUNS}
    del runs[folder / "ddp"]
    for run in runs:
        shutil.rmtree(run / "checkpoint-4")
    launch_several(TORCHRUN, settings, runs)
    return settings, folder, before


@pytest.fixture(scope="module")
def alone(two_ranks, tmp_path_factory):
    """The run of one process with the same settings."""
    folder = tmp_path_factory.mktemp("alone")
    assert train.main([str(two_ranks[0]), f"train.output_dir={folder}", *batch(4)]) == 0
    return folder


def test_zero_2_on_two_ranks_has_the_losses_of_one_process_and_resumes(two_ranks, alone):
    _, folder, before = two_ranks
    for key in ("loss", "lm", "contrastive", "grad_norm", "hard_negative_win_rate"):
        assert lines(folder / "zero-2", key) == pytest.approx(lines(alone, key), rel=1e-4), key
    assert lines(folder / "zero-2") == pytest.approx(before["zero-2"], rel=1e-6)
    assert (folder / "zero-2/checkpoint-4/manifest.json").is_file()


def test_zero_3_with_lora_in_bf16_has_the_losses_of_one_process_resumes_and_exports(two_ranks, tmp_path):
    from hacl.training.export import export_checkpoint

    settings, folder, before = two_ranks
    one, two = tmp_path / "one", folder / "zero-3"
    assert train.main([str(settings), f"train.output_dir={one}", *batch(4), *LORA]) == 0
    assert before["zero-3"] == pytest.approx(lines(one), rel=2e-2)
    assert lines(two, "eval_lm") == pytest.approx(lines(one, "eval_lm"), rel=2e-2)
    assert lines(two) == pytest.approx(before["zero-3"], rel=1e-6)
    learnt = [load_file(run / "checkpoint-4/heads.safetensors")["temperature.log_inverse"] for run in (one, two)]
    initial = torch.tensor(math.log(1 / 0.07))
    moved = [float(learnt[0] - initial), float(learnt[1] - initial.bfloat16().float())]  # masters start from bf16
    assert abs(moved[0]) > 1e-3 and moved[1] == pytest.approx(moved[0], abs=1e-3)
    out = export_checkpoint(two / "checkpoint-4", tmp_path / "model")
    report = json.loads((out / "hacl/verified.json").read_text())
    assert report["same_tokens"] and not report["unexpected_keys"]
    assert (two / "samples.jsonl").is_file()
    measured = [json.loads(line) for line in (two / "diagnostics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in measured] == [0, 2, 4] and all("post/relative_gap" in row for row in measured)


def final_weights(run):
    return load_file(run / "checkpoint-4/trained.safetensors")


def test_plain_ddp_on_two_ranks_has_the_losses_and_weights_of_one_process(two_ranks, alone):
    two = two_ranks[1] / "ddp"
    for key in ("loss", "lm", "contrastive", "grad_norm", "eval_loss"):
        assert lines(two, key) == pytest.approx(lines(alone, key), rel=1e-4), key
    after = final_weights(two)
    for name, expected in final_weights(alone).items():
        torch.testing.assert_close(after[name], expected, rtol=1e-3, atol=1e-4)


def test_the_deepspeed_launcher_tunes_the_whole_decoder_under_zero_3_as_one_process_does(settings, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    how = ("model.preset=stage2", "data.prompt=what is it ?", "train.grouping=modality")
    assert train.main([str(settings), f"train.output_dir={one}", *batch(4), *how]) == 0
    launch(DEEPSPEED, settings, f"train.output_dir={two}", *batch(2), *how, "train.deepspeed=3")
    for key in ("loss", "lm", "grad_norm", "eval_loss"):
        assert lines(two, key) == pytest.approx(lines(one, key), rel=1e-4), key
    after = final_weights(two)
    for name, expected in final_weights(one).items():
        torch.testing.assert_close(after[name], expected, rtol=1e-3, atol=1e-4)


def test_one_process_needs_no_launcher_for_any_stage_of_zero_nor_for_cached_features(settings, tmp_path):
    plain, sharded = tmp_path / "plain", tmp_path / "sharded"
    how = ["model.preset=stage1", "model.learning_rate.llm=0", *batch(4)]
    assert train.main([str(settings), f"train.output_dir={plain}", *how]) == 0
    short = (*batch(4), "train.max_steps=1", "train.eval_steps=0", "data.eval_path=[]")
    runs = {tmp_path / str(stage): (*short, f"train.deepspeed={stage}") for stage in (0, 1)}
    runs[sharded] = (*how, "train.deepspeed=3", "train.cache_vision_features=true")
    launch_several((), settings, runs)
    assert all(list(lines(tmp_path / str(stage))) == [1] for stage in (0, 1))
    assert lines(sharded) == pytest.approx(lines(plain), rel=1e-4)
