"""Launched as users launch: a hung rank is named, and runs killed at random moments end as if nothing had happened."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import fault_injection
from tests.distributed.test_deepspeed import LAUNCHER_VARIABLES
from tests.tiny import write_tiny_records

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


def test_a_rank_that_hangs_is_named_with_its_step_phase_and_records(tiny_llava, tmp_path):
    records = write_tiny_records(tmp_path / "records", 16)
    settings = {
        "model": {"path": str(tiny_llava), "preset": "stage1-llm"},
        "data": {"path": [str(records)]},
        "train": {"max_steps": 6, "per_device_batch_size": 2, "save_steps": 2, "timeout_minutes": 0.25},
        "log": {"steps": 1},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(settings), encoding="utf-8")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    done = subprocess.run(
        [*launcher, str(ROOT / "tests/distributed/hang_rank.py"), str(tmp_path / "run.yaml"),
         f"train.output_dir={tmp_path / 'run'}"],
        capture_output=True, text=True, cwd=ROOT, env=environment | {"OMP_NUM_THREADS": "1"}, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    told = re.search(r"error: ranks lost each other \(train.timeout_minutes=0.25\).*", done.stderr)
    assert told, done.stderr[-3000:]
    assert "waiting for rank 1" in told[0] and "checkpoint" in told[0]
    assert re.search(r"rank 1: step 3, forward and backward, records sample-\d+, sample-\d+", told[0]), told[0]
    assert "hang_rank.py" in told[0] and "hang_in_step_3" in done.stderr, "where it is, and its stack"
    assert (tmp_path / "run/checkpoint-2/manifest.json").is_file()


def test_runs_killed_at_random_moments_end_as_one_left_alone(tmp_path, capfd):
    out = tmp_path / "faults.json"
    how = ["--kills", "2", "--world-sizes", "2", "--steps", "6", "--save-every", "2", "--seed", "3", "--out", str(out)]
    assert fault_injection.main(how) == 0, capfd.readouterr().out
    found = json.loads(out.read_text())
    assert found["kills"] == 2 and found["unusable_runs"] == 0 and len(found["each"]) == 2
    assert found["finished_runs_equal_to_the_undisturbed_one"] >= 1
