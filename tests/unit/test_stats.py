"""Promises of the statistics of a file and of the prediction of what training on it costs."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from hacl.config import load_config
from hacl.data.draw import draw_records
from hacl.data.records import read_records
from hacl.hallucinate.validate_report import quantiles
from hacl.training.data_cost import data_cost, packing_efficiency
from tests.tiny import write_tiny_records

ROOT = Path(__file__).parents[2]


def test_quantiles_are_values_that_occur():
    found = quantiles(Counter({1: 50, 2: 45, 9: 4, 100: 1}))
    assert found == {"count": 100, "mean": 2.76, "min": 1, "p5": 1, "p25": 1, "p50": 1, "p75": 2, "p95": 2, "p99": 9,
                     "max": 100}  # fmt: skip
    assert quantiles(Counter()) == {"count": 0}


def test_packing_efficiency_is_the_share_of_places_with_a_token():
    found = packing_efficiency([[10, 5, 5]], 1)
    assert found == pytest.approx({"packing": 1.0, "unpacked": 20 / 30, "rows": 2.0, "columns": 10.0})


def test_a_draw_depends_on_the_ids_alone(tmp_path):
    path = write_tiny_records(tmp_path, 8)
    turned = tmp_path / "turned.jsonl"
    turned.write_text("".join(reversed(path.read_text().splitlines(keepends=True))) + "{broken\n")
    drawn = draw_records(path, 3)
    assert len(drawn) == 3 and {r.id for r in drawn} == {r.id for r in draw_records(turned, 3)}
    assert len(draw_records(path, 99)) == 8


@pytest.mark.parametrize("batch", [2, 4])
def test_the_cost_of_a_step_is_that_of_a_dry_run(tmp_path, tiny_llava, batch):
    from hacl.training.dryrun import predict

    path = write_tiny_records(tmp_path, 8)
    config = load_config(
        None, [f"model.path={tiny_llava}", f"data.path={path}", f"train.per_device_batch_size={batch}"]
    )
    records = read_records(path, limit=batch)
    found = data_cost(config, [[24, 8, 8]] * 8, 8, records=records, image_root=tmp_path)
    assert found.tflops_per_step == predict(config).tflops
    assert found.steps == 8 // batch and found.tflops_per_epoch == found.tflops_per_step * found.steps


def test_the_command_counts_and_predicts(tmp_path, tiny_llava):
    path = write_tiny_records(tmp_path, 8, text_only=2)
    words = [sys.executable, "data_prep/stats.py", str(path), "--images", str(tmp_path), "--workers", "1",
             "--json", str(tmp_path / "out.json"), "--set", f"model.path={tiny_llava}"]  # fmt: skip
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "TFLOP per micro-batch" in done.stdout and "words per caption" in done.stdout
    (row,) = json.loads((tmp_path / "out.json").read_text())
    assert (row["records"], row["images"], row["cost"]["steps"]) == (10, 8, 1)
    assert 0 < row["cost"]["unpacked"] <= row["cost"]["packing"] <= 1
    assert row["distributions"]["image width"]["p50"] == 48
