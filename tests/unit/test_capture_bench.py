"""Promises of the comparison with XL-VLMs' scheme: what each way computes and copies, counted."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_capture.py"


def test_batches_need_fewer_forwards_and_copy_only_the_rows_that_are_wanted(tmp_path):
    spec = importlib.util.spec_from_file_location("bench_capture", SCRIPT)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    out = tmp_path / "figures.json"
    assert bench.main(["--samples", "6", "--batch", "4", "--new", "3", "--rounds", "1", "--json", str(out)]) == 0
    found = json.loads(out.read_text())["results"]
    state = 6 * 128 * 4  # embed, four blocks and the final norm; width 128; fp32
    prompt = 1 + 16
    assert found["upstream"]["forwards"] == 6 * 3
    assert found["upstream"]["bytes_copied"] == 6 * (prompt + 3 - 1) * state
    assert found["teacher-forced 1"]["forwards"] == 6
    assert found["batched"]["forwards"] == 2
    assert found["teacher-forced 1"]["bytes_copied"] == found["batched"]["bytes_copied"] == 6 * state
    assert found["batched, free"]["forwards"] == 2 * 3
    assert found["batched, free"]["bytes_copied"] == found["batched, free"]["rows"] * state
