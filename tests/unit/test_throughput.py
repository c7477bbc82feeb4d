"""Promises of the rates in a log line: what counts, what does not, over ranks and micro-batches, without a wait."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from hacl.training import hardware, metrics
from hacl.training.flops import Execution, Part, StepCost
from hacl.training.hardware import known_peak, peak_tflops
from hacl.training.metrics import Throughput, Utilisation
from hacl.training.work import CountingCollator, Work
from tests.unit.test_packed_step import build, conversation, make_records

COST = StepCost(
    vision=Part(100.0),
    projector=Part(10.0, 20.0),
    decoder=Part(50.0, 100.0, again=40.0),
    attention=Part(attention=2.0, share=1.0),
    head=Part(30.0, 60.0),
    image_head=Part(4.0, 8.0),
    text_head=Part(4.0, 8.0),
    constant_text=False,
)
WORK = Work(
    samples=8,
    contexts=90,
    pairs=900,
    tokens=100,
    slots=125,
    packed_pairs=1000,
    masked_pairs=3125,
    dense_pairs=3125,
    labels=40,
    images=8,
    images_run=8,
    towers=8,
    towers_run=8,
    image_reads=8,
    text_reads=16,
    image_read_slots=8,
    text_read_slots=16,
)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""
    now = SimpleNamespace(time=100.0)
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now.time)
    return now


def steps(clock, meter, works, *, seconds=1.0, wait=0.0):
    """One training step over the micro-batches `works`."""
    with meter.waiting():
        clock.time += wait
    for work in works:
        meter.add({"work": work.tensor()})
    clock.time += seconds


def test_rates_are_of_the_whole_time_and_steps_of_the_time_without_waiting(clock):
    meter = Throughput()
    for _ in range(2):
        steps(clock, meter, [WORK, WORK], seconds=3.0, wait=1.0)
    found = meter.reduce()
    assert found["samples_per_second"] == 32 / 8 and found["tokens_per_second"] == 400 / 8
    assert found["label_tokens_per_second"] == 160 / 8 and found["padding_percent"] == pytest.approx(20)
    assert found["data_wait_percent"] == 25 and found["seconds_per_step"] == 3.0
    assert found["memory_gib"] > 0 and "mfu" not in found and "hfu" not in found
    assert meter.reduce() == {}, "a line starts anew"


def test_the_hot_path_reads_no_value_from_the_device():
    meter = Throughput(Utilisation(COST, 1e6, Execution()))
    for _ in range(2):
        meter.add({"work": WORK.tensor().to("meta")})  # a value of this device cannot be read
    with pytest.raises((RuntimeError, NotImplementedError)):
        meter.reduce()


def mfu_and_hfu(clock, works, **how):
    meter = Throughput(Utilisation(COST, 1e6, Execution(**{"pairs": "masked_pairs", **how})))
    steps(clock, meter, works)
    found = meter.reduce()
    return found["mfu"], found["hfu"]


def test_redundant_passes_raise_hfu_and_leave_mfu(clock):
    mfu, hfu = mfu_and_hfu(clock, [WORK])
    assert mfu == COST.minimal(WORK) / 1e6 < hfu
    for how in ({"recompute": True}, {"grad_cache": True}):
        same, more = mfu_and_hfu(clock, [WORK], **how)
        assert same == mfu and more > hfu
    padded = replace(WORK, slots=250, masked_pairs=9000, images_run=9, tokens=120)
    same, more = mfu_and_hfu(clock, [padded])
    assert same == mfu and more > hfu
    assert mfu_and_hfu(clock, [WORK], pairs="packed_pairs")[1] < hfu, "a kernel that leaves out what is masked"
    assert mfu_and_hfu(clock, [WORK], fused=False)[1] < hfu, "scores are not computed anew"


def test_micro_batches_of_a_step_add_up(clock):
    once, _ = mfu_and_hfu(clock, [WORK])
    assert mfu_and_hfu(clock, [WORK] * 4)[0] == pytest.approx(4 * once)


def test_ranks_add_up_and_the_slowest_loader_and_the_fullest_memory_are_reported(clock, monkeypatch):
    memory = {"memory_gib": 3.0}
    monkeypatch.setattr(metrics, "memory_gib", lambda: memory)
    other = (WORK, 0.5, {"memory_gib": 7.0}, 1e5, 4e5, 3e6)
    monkeypatch.setattr(metrics, "_everywhere", lambda mine: [mine, other])
    meter = Throughput(Utilisation(COST, 1e6, Execution()))
    steps(clock, meter, [WORK], seconds=0.9, wait=0.1)
    found = meter.reduce()
    assert found["samples_per_second"] == pytest.approx(16) and found["memory_gib"] == 7.0
    assert found["data_wait_percent"] == pytest.approx(50) and found["seconds_per_step"] == pytest.approx(0.5)
    assert found["mfu"] == pytest.approx((COST.minimal(WORK) + 1e5) / 4e6)
    other = (WORK, 0.5, memory, 0.0, 0.0, 0.0)
    steps(clock, meter, [WORK])
    assert "mfu" not in meter.reduce(), "the device of one rank is not known"


def test_a_batch_is_counted_where_it_is_made(tiny_llava, tmp_path):
    records = [conversation("a", (), "what ?", "red"), conversation("b", (), "where is it ?", "left")]
    for chosen, images in ((records, 0), (make_records(tmp_path), 5)):
        model, samples, batch = build(tiny_llava, tmp_path, chosen, template="chat", dtype=torch.float32)
        collator = CountingCollator(lambda _, batch=batch: batch)
        counted = collator(samples)
        assert Work(*counted["work"].tolist()).images == images
        assert torch.isfinite(model(**counted).loss), "the model takes such a batch"


@pytest.mark.parametrize(
    "name, peak",
    [
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.0),
        ("NVIDIA H200", 989.0),
        ("NVIDIA GH200 480GB", 989.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("AMD Instinct MI300X", 1307.0),
        ("Tesla V100-SXM2-32GB", None),
        ("NVIDIA A1000", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ],
)
def test_a_known_device_has_the_peak_of_its_data_sheet_and_no_other_has_one(name, peak):
    assert known_peak(name) == peak


def test_a_peak_is_given_or_known_and_never_invented(monkeypatch):
    monkeypatch.setattr(hardware.torch.cuda, "is_available", lambda: False)
    assert peak_tflops(None, bf16=True) is None and peak_tflops(0.1, bf16=False) == 0.1
    monkeypatch.setattr(hardware.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(hardware.torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    assert peak_tflops(None, bf16=True) == 989.0 and peak_tflops(None, bf16=False) is None
    monkeypatch.setattr(hardware.torch.cuda, "get_device_name", lambda: "Some New Device")
    assert peak_tflops(None, bf16=True) is None
