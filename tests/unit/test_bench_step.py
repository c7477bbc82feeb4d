"""Promises of the benchmark of a step: what it writes, how it judges, and that its forms do the work they stand for."""

import json

import pytest

from hacl.models import attention
from scripts import bench_step

SMALL = [
    *("--layers", "1", "--width", "128", "--vocabulary", "320", "--image-tokens", "16", "--caption-tokens", "8"),
    *("--hallucinated-tokens", "9", "--batch-size", "2", "--rounds", "2", "--device", "cpu"),
]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "step.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "SHORT_ROW", 0)  # the rows are short, and are to be taken by sequences all the same
        assert bench_step.main([*SMALL, "--peak-tflops", "0.1", "--out", str(out)]) == 0
    return json.loads(out.read_text())


def test_every_variant_is_timed_in_every_round_and_its_work_is_counted(result):
    assert set(result["variants"]) == set(bench_step.VARIANTS) and set(result["ratios"]) == set(bench_step.RATIOS)
    for row in result["variants"].values():
        assert len(row["seconds"]) == len(row["cpu_seconds"]) == 2
        assert 0 < row["mfu"] < 1 and row["minimal_flops"] < row["counted_flops"]
        if "hfu" in row:
            assert row["mfu"] < row["hfu"] == pytest.approx(row["executed_flops"] / row["seconds_median"] / 0.1e12)
            assert row["executed_flops"] < row["counted_flops"], "the counter sees attention over whole rows"
            assert row["counted_flops"] == pytest.approx(row["countable_flops"], rel=0.01)
    assert {name for name, row in result["variants"].items() if "hfu" not in row} == {"sft_plain", "four_calls"}
    assert result["settings"]["attention"] in ("segments", "sdpa") and result["settings"]["head"] == "linear"
    assert result["hardware"]["matmul_tflops"] > 0 and "torch" in result["versions"]


def test_the_forms_do_the_work_they_stand_for(result):
    counted = {name: row["counted_flops"] for name, row in result["variants"].items()}
    unlabelled = 2 * (1 + 16 + 7) - 2 * 7  # positions of the generation batch, less those with a label
    assert counted["sft_plain"] - counted["sft"] == pytest.approx(6 * 128 * 320 * unlabelled, rel=0.01)
    assert counted["sft"] < counted["packed"] < counted["four_calls"]
    assert counted["stage1_sft"] < counted["sft"], "a frozen LLM needs no gradient of its weights"
    assert counted["stage1_cached"] == pytest.approx(counted["stage1_sft"], rel=0.02), "text is not run again"
    assert result["variants"]["four_calls"]["minimal_flops"] == result["variants"]["packed"]["minimal_flops"]


def judged(**values):
    """Targets of a result with these values in place of good ones."""
    good = {
        "seconds": 1.15,
        "counted": 1.14,
        "least": 1.14,
        "four": 1.8,
        "cached": 1.0,
        "device": "cpu",
        "model": 1.0,
        **values,
    }
    lengths = {"image_tokens": 576, "caption_tokens": 40, "hallucinated_tokens": 45, "hallucinated": 1}
    ratios = {
        "packed/sft": {
            "seconds": {"median": good["seconds"]},
            "counted_flops": good["counted"],
            "minimal_flops": good["least"],
        },
        "four_calls/packed": {"seconds": {"median": good["four"]}},
        "stage1_cached/stage1_sft": {"seconds": {"median": good["cached"]}},
    }
    rows = {
        "packed": {"counted_flops": 100.0, "countable_flops": 100.0 * good["model"]},
        "sft_plain": {"countable_flops": None},
    }
    if "mfu" in good:
        rows["packed"]["mfu"] = good["mfu"]
    settings = {**lengths, "device": good["device"], "preset": "llava15_7b", "gradient_checkpointing": False}
    settings["optimizer"] = good.get("optimizer", True)
    result = {"settings": settings, "ratios": ratios, "variants": rows}
    return [target["target"] for target in bench_step.targets(result) if not target["met"]]


@pytest.mark.parametrize(
    "values, missed",
    [
        ({}, 0),
        ({"seconds": 1.21}, 1),
        ({"counted": 1.21}, 1),
        ({"model": 0.9}, 1),
        ({"four": 1.59}, 1),
        ({"four": 1.7, "device": "cuda"}, 1),
        ({"cached": 1.06}, 1),
        ({"mfu": 0.39}, 1),
        ({"mfu": 0.41}, 0),
    ],
    ids=str,
)
def test_a_missed_target_is_named(values, missed):
    assert len(judged(**values)) == missed


def test_utilisation_is_judged_with_the_optimizer_within_the_time():
    assert judged(mfu=0.39) == ["packed, MFU"] and judged(mfu=0.39, optimizer=False) == []


def test_an_interval_holds_the_median_of_the_ratios_within_rounds():
    found = bench_step.interval([2.0, 20.0, 4.0, 3.3], [1.0, 10.0, 2.0, 1.0], seed=0)
    assert found["low"] <= found["median"] == 2.0 <= found["high"] <= 3.3


def test_an_odd_number_of_image_tokens_is_refused_by_name(capsys):
    assert bench_step.main([*SMALL, "--image-tokens", "15"]) == 2
    assert "--image-tokens 15 is not a square number" in capsys.readouterr().err
