"""DDP and ZeRO on two CPU ranks, by torchrun and by DeepSpeed's launcher: the losses of one process, resume, export.

Each launch takes some 20 s.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import train
from hacl.data.images import load_image
from hacl.training.trainer import DataError, HaclTrainer
from tests.distributed.ranks import free_port, run_ranks
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


@pytest.fixture
def settings(tiny_llava, tmp_path):
    """A configuration whose batches mix captioned images and text-only dialogues; validation has an odd size."""
    records = write_tiny_records(tmp_path / "records", 12, text_only=4)
    odd = write_tiny_records(tmp_path / "validation", 7)
    path = tmp_path / "run.yaml"
    path.write_text(
        json.dumps(
            {
                "model": {"path": str(tiny_llava), "preset": "stage1-llm"},
                "data": {"path": str(records), "eval_path": str(odd)},
                "train": {"max_steps": 4, "save_steps": 2, "eval_steps": 4, "scheduler": "constant", "warmup": 0},
                "log": {"steps": 1},
            }
        ),
        encoding="utf-8",
    )
    return path


def batch(per_rank):
    """Eight samples per step in two micro-batches, whatever the number of ranks."""
    return (
        f"train.per_device_batch_size={per_rank}",
        f"train.per_device_eval_batch_size={per_rank}",
        "train.gradient_accumulation_steps=2",
    )


def test_zero_2_on_two_ranks_has_the_losses_of_one_process_and_resumes(settings, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert train.main([str(settings), f"train.output_dir={one}", *batch(4)]) == 0
    how = (settings, f"train.output_dir={two}", *batch(2), "train.deepspeed=2")
    launch(TORCHRUN, *how)
    for key in ("loss", "lm", "contrastive", "grad_norm", "hard_negative_win_rate"):
        assert lines(two, key) == pytest.approx(lines(one, key), rel=1e-4), key
    before = lines(two)
    shutil.rmtree(two / "checkpoint-4")
    launch(TORCHRUN, *how)
    assert lines(two) == pytest.approx(before, rel=1e-6)


def test_zero_3_with_lora_in_bf16_has_the_losses_of_one_process_resumes_and_exports(settings, tmp_path):
    from hacl.training.export import export_checkpoint

    one, two = tmp_path / "one", tmp_path / "two"
    lora = ("model.lora.rank=4", "model.lora.dropout=0.0", "model.learning_rate.llm=1e-3", "train.bf16=true")
    lora += ("objective.learn_temperature=true",)
    assert train.main([str(settings), f"train.output_dir={one}", *batch(4), *lora]) == 0
    how = (settings, f"train.output_dir={two}", *batch(2), *lora, "train.deepspeed=3", "log.sample_steps=4")
    how += ("log.diagnostic_steps=2", "log.diagnostic_count=5")
    launch(TORCHRUN, *how)
    assert lines(two) == pytest.approx(lines(one), rel=2e-2)
    assert lines(two, "eval_lm") == pytest.approx(lines(one, "eval_lm"), rel=2e-2)
    before = lines(two)
    shutil.rmtree(two / "checkpoint-4")
    launch(TORCHRUN, *how)
    assert lines(two) == pytest.approx(before, rel=1e-6)
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


def killed():
    raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Aborted.")


def read_one_step(rank):
    """What this rank hears when rank 1 cannot read its data, and when it loses a loader worker."""
    trainer = HaclTrainer.__new__(HaclTrainer)
    trainer.args = SimpleNamespace(world_size=2)
    heard = []
    for fail in (lambda: load_image(ROOT / "pyproject.toml"), killed):
        batches = iter([{"sequence_kind": torch.tensor([0]), "label_sequence": torch.tensor([0, 0])}])
        damaged = (fail() for _ in range(1))
        try:
            trainer.get_batch_samples(damaged if rank else batches, 1, torch.device("cpu"))
        except DataError as error:
            heard.append(str(error))
    return heard


def test_all_ranks_stop_together_when_one_cannot_read_its_data():
    first, second = run_ranks(read_one_step, 2)
    assert len(first) == 2 and all("another rank" in said for said in first)
    assert "pyproject.toml" in second[0] and "signal: Aborted" in second[1]


def final_weights(run):
    return load_file(run / "checkpoint-4/trained.safetensors")


def test_plain_ddp_on_two_ranks_has_the_losses_and_weights_of_one_process(settings, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert train.main([str(settings), f"train.output_dir={one}", *batch(4)]) == 0
    launch(TORCHRUN, settings, f"train.output_dir={two}", *batch(2))
    for key in ("loss", "lm", "contrastive", "grad_norm", "eval_loss"):
        assert lines(two, key) == pytest.approx(lines(one, key), rel=1e-4), key
    after = final_weights(two)
    for name, expected in final_weights(one).items():
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


@pytest.mark.parametrize("stage", [0, 1])
def test_one_process_takes_a_step_under_zero_0_and_1(settings, tmp_path, stage):
    how = (*batch(4), "train.max_steps=1", "train.eval_steps=0", f"train.deepspeed={stage}")
    launch((), settings, f"train.output_dir={tmp_path / 'run'}", *how)
    assert list(lines(tmp_path / "run")) == [1]


def test_one_process_needs_no_launcher_for_zero_3_with_cached_features(settings, tmp_path):
    plain, sharded = tmp_path / "plain", tmp_path / "sharded"
    how = ["model.preset=stage1", "model.learning_rate.llm=0", *batch(4)]
    assert train.main([str(settings), f"train.output_dir={plain}", *how]) == 0
    sharding = ("train.deepspeed=3", "train.cache_vision_features=true")
    launch((), settings, f"train.output_dir={sharded}", *how, *sharding)
    assert lines(sharded) == pytest.approx(lines(plain), rel=1e-4)
