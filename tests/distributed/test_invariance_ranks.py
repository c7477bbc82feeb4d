"""The trajectory of one process, on two and on three ranks: by DDP and ZeRO 0 to 3, however the step is cut.

One launch for each number of ranks; its cases run one after another.
"""

from pathlib import Path

import pytest

from tests.distributed.ranks import run_ranks
from tests.tiny import write_tiny_records
from tests.trajectories import RECORDS, assert_same, cut, trajectory

pytestmark = pytest.mark.slow
CACHED, RECOMPUTED = "train.grad_cache=true", "train.gradient_checkpointing=true"
# The temperature starts at 0.3, is carried to the bound by the first step and held there by the second.
BOUND = ["objective.temperature_max=0.30015"]
CASES = {
    2: {
        "DDP": cut(6, ranks=2),
        "DDP, chunks of unequal size": [*cut(6, ranks=2), CACHED, "train.grad_cache_chunk=4"],
        "DDP, at the bound": [*cut(6, ranks=2), *BOUND],
        "ZeRO-0, micro-batches": [*cut(3, ranks=2), CACHED, "train.deepspeed=0"],
        "ZeRO-1, chunks": [*cut(6, ranks=2), CACHED, "train.grad_cache_chunk=3", "train.deepspeed=1"],
        "ZeRO-2, micro-batches": [*cut(2, ranks=2), CACHED, "train.deepspeed=2"],
        "ZeRO-2, micro-batches, at the bound": [*cut(3, ranks=2), CACHED, *BOUND, "train.deepspeed=2"],
        "ZeRO-3, micro-batches, recomputed": [*cut(3, ranks=2), CACHED, RECOMPUTED, "train.deepspeed=3"],
        "ZeRO-3, at the bound": [*cut(6, ranks=2), *BOUND, "train.deepspeed=3"],
    },
    3: {
        "DDP, micro-batches": [*cut(2, ranks=3), CACHED],
        "ZeRO-3": [*cut(4, ranks=3), "train.deepspeed=3"],
    },
}


def trajectories(rank, ranks, model, records, folder):
    """Of every case in turn; the first rank returns them."""
    found = [
        trajectory(model, records, Path(folder) / f"run-{number}", settings)
        for number, settings in enumerate(CASES[ranks].values())
    ]
    return found if rank == 0 else []


@pytest.mark.parametrize("ranks", CASES)
def test_ranks_have_the_trajectory_of_one_process_under_every_zero_stage(tiny_llava, tmp_path, ranks):
    records = write_tiny_records(tmp_path / "records", **RECORDS)
    expected = trajectory(tiny_llava, records, tmp_path / "one", cut(12))
    bounded = trajectory(tiny_llava, records, tmp_path / "bounded", [*cut(12), *BOUND])
    assert bounded["steps"]["temperature"][1:3] == pytest.approx([0.30015] * 2, rel=1e-6)
    assert bounded["steps"]["temperature"][3] < 0.3001, "and it comes back"
    found, *_ = run_ranks(trajectories, ranks, ranks, tiny_llava, records, tmp_path, timeout=600)
    for name, case in zip(CASES[ranks], found, strict=True):
        known = bounded if "bound" in name else expected
        if "ZeRO-0" in name:  # DeepSpeed tells no gradient norm without sharding
            assert case["steps"]["grad_norm"] == []
            known = {**expected, "steps": {**expected["steps"], "grad_norm": []}}
        try:
            assert_same(case, known)
        except AssertionError as error:
            raise AssertionError(f"{ranks} ranks, {name}: {error}") from error
