"""Two ranks under DDP and ZeRO: stopped by signals and resumed to the bit, and stopped before a non-finite update."""

import json

import pytest
import torch

from tests.distributed.ranks import run_ranks
from tests.distributed.survival_runs import NONFINITE, RESUMED, STEPS, all_runs
from tests.tiny import write_tiny_records

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def by_rank(tiny_llava, tmp_path_factory):
    """What every run showed, on each of two ranks: one launch."""
    folder = tmp_path_factory.mktemp("survival")
    records = write_tiny_records(folder / "records", 18, text_only=6)
    validation = write_tiny_records(folder / "validation", 5)
    settings = {
        "model": {"path": str(tiny_llava), "preset": "stage1-llm"},
        "data": {"path": [str(records)]},
        "train": {"per_device_batch_size": 2, "gradient_accumulation_steps": 2, "per_device_eval_batch_size": 2},
    }
    (folder / "run.yaml").write_text(json.dumps(settings), encoding="utf-8")
    return run_ranks(all_runs, 2, str(folder / "run.yaml"), folder / "runs", str(validation), timeout=900)


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_stopped_by_signals_in_a_step_and_in_validation_ends_as_one_left_alone(by_rank, name):
    for facts in by_rank:
        facts = facts[name]
        assert facts["statuses"] == [0, 75, 75, 0], "all ranks leave together with the exit status of the settings"
        assert facts["saved"] == ["checkpoint-3", "checkpoint-4"]
        whole, cut = facts["whole"], facts["cut"]
        lines = 2 if "log.steps=4" in RESUMED[name] else STEPS
        assert len(whole["losses"]) == lines + 1 and cut["losses"] == whole["losses"]
        assert set(cut["tensors"]) == set(whole["tensors"])
        assert all(torch.equal(cut["tensors"][key], tensor) for key, tensor in whole["tensors"].items())
        assert facts["same ids"], "every step after a stop has the records that it has without one"


@pytest.mark.parametrize("name", [name for name in NONFINITE if name.endswith("raise")])
def test_a_step_that_is_not_finite_on_one_rank_stops_all_before_its_update(by_rank, name):
    for facts in by_rank:
        facts = facts[name]
        assert facts["status"] == 2 and "not finite" in facts["error"] and "at step 2" in facts["error"]
        assert facts["unchanged"] and facts["checkpoints"] == ["checkpoint-1"]
        parts = [part for rank in json.loads(facts["report"])["ranks"] for part in rank["micro_batches"]]
        assert len(parts) == 4 and all(len(part["records"]) == 2 for part in parts)
        named = by_rank[1][name]["ids"][0] if "loss" in name else facts["ids"][0][:1]
        if "loss" in name or facts is by_rank[0][name]:
            assert all(record in facts["error"] for record in named)


@pytest.mark.parametrize("name", [name for name in NONFINITE if name.endswith("skip")])
def test_a_skipped_step_changes_nothing_and_the_run_goes_on(by_rank, name):
    for facts in by_rank:
        facts = facts[name]
        assert facts["status"] == 0 and facts["skipped"] and not facts["unchanged"]
        assert facts["finite"] and facts["queue"]
        assert facts["checkpoints"][-1] == "checkpoint-4"


def test_a_signal_to_one_rank_while_it_loads_ends_the_start_of_all(by_rank):
    for facts in by_rank:
        assert facts["signal while loading"] == {"status": 75, "loaded": False, "left": False}


def test_ranks_that_see_different_disks_are_named_before_anything_is_loaded(by_rank):
    for facts in by_rank:
        facts = facts["two disks"]
        assert facts["status"] == 2 and "rank 1 on" in facts["error"] and "shared file system" in facts["error"]
        assert not facts["left"]


def test_all_ranks_stop_together_when_one_cannot_read_its_data_or_loses_a_worker(by_rank):
    first, second = (facts["one step"] for facts in by_rank)
    assert len(first) == 2 and all("another rank" in said for said in first)
    assert "pyproject.toml" in second[0] and "signal: Aborted" in second[1]


def test_what_one_rank_cannot_read_in_a_validation_stops_all_with_the_step_saved(by_rank):
    for rank, facts in enumerate(by_rank):
        facts = facts["unreadable validation"]
        assert facts["status"] == 2 and "step 2 is saved" in facts["error"] and facts["saved"]
        assert ("7.png" if rank == 1 else "another rank could not read") in facts["error"]
        assert facts["again"] == 0, "and the same command goes on"


def test_a_step_with_fewer_micro_batches_on_one_rank_is_a_step_over_the_tokens_there_are(by_rank):
    for facts in by_rank:
        assert facts["uneven"]["status"] == 0 and facts["uneven"]["off"] < 1e-5
        rows, sharded = facts["uneven"]["rows"], facts["uneven, ZeRO-3"]["rows"]
        assert len(rows) == 3 and torch.allclose(torch.tensor(sharded), torch.tensor(rows), rtol=1e-4)
