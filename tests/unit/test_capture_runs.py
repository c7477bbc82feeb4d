"""Promises about a run of capture: its cost, what it refuses, memory that runs out, ranks, samples of records."""

from __future__ import annotations

import copy
import threading

import pytest
import torch

from hacl.data.records import parse_record, read_records
from hacl.representations import FeatureStore, Sample, samples_from_records
from hacl.representations.capture import capture
from hacl.representations.forward import Stats
from hacl.representations.parts import find_parts
from tests.capture_cases import largest_difference, make_cases, run
from tests.tiny import write_tiny_records
from tests.tiny_families import sentences


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return make_cases(tmp_path_factory.mktemp("capture"), ("llava", "text"))


def test_one_forward_a_batch_stops_after_the_last_layer_and_copies_only_chosen_rows(cases, tmp_path):
    case = cases["llava"]
    parts, calls = find_parts(case.model), {"head": 0, "block": 0, "decoder": 0}

    def counting(name):
        return lambda module, args: calls.update({name: calls[name] + 1})

    handles = [
        parts.lm_head.register_forward_pre_hook(counting("head")),
        parts.blocks[1].register_forward_pre_hook(counting("block")),
        parts.blocks[0].register_forward_pre_hook(counting("decoder")),
    ]
    stats = Stats()
    store = run(case, tmp_path / "a", layers=["embed", 0], select=["last_prompt", "at:red"], batch_size=4, stats=stats)
    for handle in handles:
        handle.remove()
    assert calls == {"head": 0, "block": 0, "decoder": 2}, "two batches of four and two, both layers at once"
    assert (stats.forwards, stats.rows) == (2, len(store))
    assert stats.bytes_copied == len(store) * 2 * 32 * 4


def test_the_model_is_left_as_it_was(cases, tmp_path):
    model = copy.deepcopy(cases["llava"].model).train()

    def hooks():
        return [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]

    before = hooks()
    run(cases["llava"], tmp_path / "a", model=model, select="last_prompt")
    run(cases["llava"], tmp_path / "b", model=model, select="last_prompt", mode="free", max_new_tokens=2)
    assert all(module.training for module in model.modules())
    assert hooks() == before


def test_a_batch_that_does_not_fit_is_halved_and_the_rows_are_the_same(cases, tmp_path, monkeypatch):
    case = cases["llava"]
    whole = run(case, tmp_path / "a", batch_size=6)
    seen = []
    forward = type(case.model).forward

    def small(self, *args, **kwargs):
        seen.append(len(kwargs["input_ids"]))
        if len(kwargs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("made up")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(case.model), "forward", small)
    stats = Stats()
    halved = run(case, tmp_path / "b", batch_size=6, stats=stats)
    assert seen[:3] == [6, 3, 2] and max(seen[2:]) == 2, "what did not fit once is not tried again"
    assert stats.halved == 2
    assert [row.key for row in halved.rows] == [row.key for row in whole.rows]
    assert largest_difference(whole, halved) < 1e-5
    monkeypatch.setattr(type(case.model), "forward", lambda self, **kwargs: small(self, input_ids=[0] * 3))
    with pytest.raises(ValueError, match="sample 's.' alone does not fit"):
        run(case, tmp_path / "c", batch_size=6)


def test_a_store_that_would_be_too_large_is_refused_before_anything_is_computed(cases, tmp_path):
    case = cases["llava"]
    with pytest.raises(ValueError, match="GiB"):
        run(case, tmp_path / "a", select="all", max_bytes=10_000)
    assert not (tmp_path / "a").exists()
    assert len(run(case, tmp_path / "a", select="last_prompt", max_bytes=10_000)) == 6


def test_arguments_that_cannot_be_meant_are_refused(cases, tmp_path):
    case = cases["llava"]
    lacking = [Sample("x", case.samples[0].image, "a")]
    for options, message in [
        ({"layers": [2]}, "layer 2"),
        ({"layers": ["final_nrom"]}, "near: final_norm"),
        ({"layers": [0, -2]}, "each once"),
        ({"select": "predict:red"}, "selector"),
        ({"select": "at:@colors"}, "known: colours"),
        ({"mode": "forced"}, "mode"),
        ({"adapter": "of"}, "adapter"),
        ({"answer": "mine"}, "answer"),
        ({"answer": {"s0": "a"}}, "no text for 5 samples, the first 's1'"),
        ({"samples": lacking}, "'x' has no answer"),
        ({"samples": [*case.samples, case.samples[0]]}, "two samples have the id 's0'"),
        ({"dtype": "int8"}, "dtype"),
        ({"occurrences": "last"}, "occurrences"),
        ({"batch_size": 0}, "batch_size"),
    ]:
        with pytest.raises(ValueError, match=message):
            run(case, tmp_path / "a", **options)
    with pytest.raises(ValueError, match="takes text only"):
        run(cases["text"], tmp_path / "b", samples=case.samples)
    assert len(run(case, tmp_path / "c", samples=lacking, select="last_prompt")) == 1, "a prompt alone is enough"


class ThreadRanks:
    def __init__(self, rank, world, barrier):
        self.rank, self.world, self.wait = rank, world, barrier.wait


def test_ranks_together_write_the_store_of_one_process_to_the_byte_and_append_to_it(cases, tmp_path):
    case = cases["text"]
    texts = sentences(12)
    samples = [Sample(f"n{i}", None, texts[i % 12], texts[5 * i % 11]) for i in range(75)]
    options = {"layers": [0, "final_norm"], "select": ["last_prompt", "mean_generated"], "batch_size": 2,
               "part_bytes": 4000, "progress": False, "template": "plain"}  # fmt: skip
    for count in (60, 75):
        one = FeatureStore(capture(case.model, case.processor, samples[:count], out=tmp_path / "one", **options))
        barrier, errors = threading.Barrier(3, timeout=60), []

        def rank(number, barrier=barrier, errors=errors, count=count):
            try:
                capture(copy.deepcopy(case.model), case.processor, samples[:count], out=tmp_path / "many",
                        ranks=ThreadRanks(number, 3, barrier), **options)  # fmt: skip
            except BaseException as error:
                errors.append(error)
                barrier.abort()

        threads = [threading.Thread(target=rank, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors, errors
        many = FeatureStore(tmp_path / "many")
        assert (tmp_path / "one" / "rows.jsonl").read_bytes() == (tmp_path / "many" / "rows.jsonl").read_bytes()
        for layer in one.layers:
            assert one.read(layer).tobytes() == many.read(layer).tobytes()
        assert many.manifest["samples"] == count
        assert not (tmp_path / "many" / "shards").exists()
    assert one.manifest == many.manifest


def test_records_become_samples_with_the_models_own_prompt(tmp_path):
    path = write_tiny_records(tmp_path, 4, text_only=1)
    records = read_records(path)
    samples = samples_from_records(records, tmp_path, prompt="describe the image")
    assert [sample.id for sample in samples] == [record.id for record in records]
    assert samples[0] == Sample("sample-0", (tmp_path / "images/0.png").resolve(), "describe the image",
                                "a red square on the left", "0")  # fmt: skip
    assert (samples[4].image, samples[4].prompt, samples[4].answer) == (None, "what colour is it ?", "red")
    several = parse_record({"id": "r", "image": "images/0.png", "captions": ["a", "b", "c"]}, where="here")
    ids = [sample.id for sample in samples_from_records([several, several], tmp_path, captions=2)]
    assert ids == ["r", "r#1", "r#2", "r#3"]
    with pytest.raises(ValueError, match="at most one"):
        samples_from_records([parse_record({"image": ["a.png", "b.png"], "captions": ["a"]}, where="here")], tmp_path)
