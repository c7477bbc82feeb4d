"""The pocket command from a base to the report, hardly trained: every part runs, and a second call repeats nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def call(*arguments):
    return subprocess.run(
        [sys.executable, "scripts/pocket.py", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.mark.slow
def test_smoke_run_reaches_the_report_and_is_not_repeated(tmp_path):
    arguments = ["quickstart", "--smoke", "--out", tmp_path / "run", "--cache", tmp_path / "cache"]
    arguments += ["--arms", "control", "hacl_paper", "--workers", 1]
    first = call(*arguments)
    assert first.returncode == 0, first.stderr[-3000:]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "numbers mean nothing" in page and "data:image" in page
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [arm["name"] for arm in results["arms"]] == ["control", "hacl_paper", "base"]
    for arm in results["arms"]:
        for split in ("test_like", "test_broken"):
            found = arm["runs"][0]["metrics"][split]
            assert {"chair_i", "chair_s", "recall", "length", "pope_adversarial", "margin", "gap"} <= set(found)
    assert len(results["states2d"]) == 3 and results["examples"]
    stamps = {path: path.stat().st_mtime for path in (tmp_path / "run").glob("*/result.json")}
    second = call(*arguments)
    assert second.returncode == 0, second.stderr[-3000:]
    assert "training base" not in second.stdout and "3 of 3 runs are already there" in second.stdout
    assert {path: path.stat().st_mtime for path in stamps} == stamps


def test_an_experiment_without_control_is_refused():
    result = call("quickstart", "--arms", "hacl_paper")
    assert result.returncode == 2 and "control" in result.stderr
