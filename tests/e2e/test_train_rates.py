"""Utilisation in the log of real runs: streams, batches of text, accumulation, recomputation, cached features."""

import json

import pytest

pytestmark = pytest.mark.slow
PEAK = "log.peak_tflops=0.001"


def lines(command):
    found = [json.loads(line) for line in (command.run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if "loss" in line]


def least_flops(line, peak=1e9):
    """Of a step, by what its line says: no clock is left in it."""
    return line["mfu"] * peak / line["samples_per_second"]


def test_utilisation_is_logged_with_a_peak_and_left_out_without(command):
    assert command("model.preset=stage1-llm") == 0
    assert all("mfu" not in line and "hfu" not in line for line in lines(command))
    assert command("model.preset=stage1-llm", PEAK, f"train.output_dir={command.run}-2") == 0
    command.run = command.run.with_name("run-2")
    for line in lines(command):
        assert 0 < line["mfu"] < line["hfu"] and line["seconds_per_step"] > 0
        assert 0 <= line["data_wait_percent"] <= 100 and line["label_tokens_per_second"] > 0


def test_a_sample_takes_the_same_least_work_however_its_step_is_run(command, records):
    base = ["model.preset=stage1-llm", PEAK, "log.steps=4", "train.max_steps=4", "train.epochs=8"]
    folder = command.run
    ways = {
        "plain": [],
        "accumulated": ["train.per_device_batch_size=2", "train.gradient_accumulation_steps=2"],
        "cached": ["train.gradient_accumulation_steps=2", "train.grad_cache=true", "train.per_device_batch_size=2"],
        "recomputed": ["train.gradient_checkpointing=true"],
        "streamed": ["data.stream=true", "data.shuffle_buffer=1", f"data.image_root={records.parent}"],
    }
    least, executed = {}, {}
    for name, how in ways.items():
        command.run = folder.with_name(name)
        assert command(*base, *how, f"train.output_dir={command.run}") == 0
        line = lines(command)[-1]
        least[name], executed[name] = least_flops(line), line["hfu"] / line["mfu"]
    assert least["accumulated"] == pytest.approx(least["plain"], rel=0.05)
    assert least["cached"] == pytest.approx(least["plain"], rel=0.05)
    assert least["recomputed"] == pytest.approx(least["plain"], rel=1e-6)
    assert 0.5 < least["streamed"] / least["plain"] < 2
    assert executed["cached"] > 1.1 * executed["accumulated"] and executed["recomputed"] > 1.1 * executed["plain"]


def test_text_alone_and_cached_features_take_less(command, records):
    base = ["model.preset=stage1-llm", PEAK, "log.steps=4", "train.epochs=8", "train.grouping=modality"]
    assert command(*base, "train.cache_vision_features=true") == 0
    cached = least_flops(lines(command)[-1])
    folder = command.run
    command.run = folder.with_name("live")
    assert command(*base, f"train.output_dir={command.run}") == 0
    assert cached < least_flops(lines(command)[-1])
    only_text = folder.parent / "text.jsonl"
    rows = [row for row in records.read_text().splitlines() if "conversations" in row]
    only_text.write_text("\n".join(rows) + "\n")
    command.run = folder.with_name("text")
    how = ["model.preset=stage2", "data.template=chat", PEAK, f"data.path={only_text}", "train.epochs=8"]
    assert command(*how, f"train.output_dir={command.run}") == 0
    assert least_flops(lines(command)[-1]) < cached
