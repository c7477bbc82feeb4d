"""What a run did, the numbers of every step and the weights it ended with, and when two runs did the same.

The settings below are those of one trajectory; cases change how its steps are computed, never what is in them.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hacl.config import load_config

SAMPLES = 12  # of every step, however it is cut
RECORDS = {"count": 22, "text_only": 4}  # two steps to an epoch, and two samples are left out of each
BASE = [
    "model.preset=stage1-llm",
    *[f"model.learning_rate.{module}=1e-3" for module in ("vision", "projector", "llm", "heads")],
    "data.template=chat",
    "data.prompt=what is it ?",
    "objective.hard_scope=global",
    "objective.temperature=0.3",
    "objective.learn_temperature=true",
    "objective.likelihood_margin_weight=0.5",
    "objective.queue_size=64",  # more than five steps fill: which samples of a step leave first depends on the ranks
    "train.max_steps=5",
    "train.save_steps=0",
    "train.scheduler=constant",
    "train.warmup=0",
    "log.steps=1",
]
GENERATION_ALONE = ["objective.contrastive_weight=0", "objective.learn_temperature=false", "objective.queue_size=0"]
GENERATION_ALONE += ["objective.likelihood_margin_weight=0", "objective.num_hallucinated=0", "objective.hard_scope=own"]
KEYS = ("loss", "lm", "contrastive", "likelihood_margin", "grad_norm", "temperature")


def cut(per_rank: int, *, ranks: int = 1) -> list[str]:
    """Settings that give each micro-batch of a rank `per_rank` samples."""
    accumulation = SAMPLES // (per_rank * ranks)
    assert per_rank * ranks * accumulation == SAMPLES
    return [f"train.per_device_batch_size={per_rank}", f"train.gradient_accumulation_steps={accumulation}"]


def trajectory(model: Path, records: Path, folder: Path, settings: list[str]) -> dict:
    """Train in `folder` and return {"steps": {key: numbers}, "weights": {name: tensor}}. Every rank calls this."""
    from hacl.training.run import run

    where = [f"model.path={model}", f"data.path={records}", f"train.output_dir={folder}"]
    result = run(load_config(None, [*where, *BASE, *settings]))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    weights: dict[str, torch.Tensor] = {}
    for name in ("trained", "heads"):
        if (file := result.checkpoint / f"{name}.safetensors").is_file():
            weights |= {f"{name}/{key}": value for key, value in load_file(file).items()}
    return {
        "steps": {key: [row[key] for row in rows if "loss" in row and key in row] for key in KEYS},
        "weights": weights,
    }


def assert_same(found: dict, expected: dict, *, rtol: float = 1e-5, atol: float = 5e-5) -> None:
    """rtol: of every number of every step. atol: of final weights, which moved by up to 5e-3 (five steps of 1e-3)."""
    assert len(expected["steps"]["loss"]) == 5
    for key, numbers in expected["steps"].items():
        assert found["steps"][key] == pytest.approx(numbers, rel=rtol, abs=1e-6), key
    assert found["weights"].keys() == expected["weights"].keys()
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(
            found["weights"][name], weight, rtol=1e-3, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )
