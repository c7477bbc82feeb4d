"""Promises of capture: the states kept are the model's own, whatever the batch, the family, the adapter or the rank."""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from hacl.data.records import parse_record, read_records
from hacl.representations import FeatureStore, Sample, paired, samples_from_records
from hacl.representations.capture import capture
from hacl.representations.encoding import RowEncoder
from hacl.representations.forward import Stats
from hacl.representations.free import generate_answers
from hacl.representations.parts import find_parts
from tests.tiny import build_tiny_model, write_tiny_records
from tests.tiny_families import draw_images, sentences, tiny_gpt2_model, tiny_qwen_model, tiny_text_model

SELECT = ["predicts:red", "at:the", "last_prompt", "first_generated", "mean_generated", "index:-1", "all"]
FAMILIES = ["llava", "fast_vlm", "qwen", "text", "gpt2"]


@dataclass
class Case:
    model: torch.nn.Module
    processor: object
    samples: list[Sample]
    template: str
    select: list[str]


def load_tiny(folder, family):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    path = build_tiny_model(folder, family)
    return AutoModelForImageTextToText.from_pretrained(path).eval(), AutoProcessor.from_pretrained(path)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("capture")
    images = draw_images(folder, [(32, 32), (48, 32), (32, 64), (64, 64), (32, 32)])
    texts = sentences(6)
    made = {}
    for family in FAMILIES:
        shown = [None] * 6 if family in ("text", "gpt2") else [*images, None]
        samples = [
            Sample(f"s{i}", shown[i], texts[-1 - i], f"the {texts[i]} a red square", f"image-{i // 2}")
            for i in range(6)
        ]
        if family in ("llava", "fast_vlm"):
            model, processor = load_tiny(folder / family, family)
        else:
            model, processor = {"qwen": tiny_qwen_model, "text": tiny_text_model, "gpt2": tiny_gpt2_model}[family]()
        template = "chat" if family in ("qwen", "fast_vlm") else "plain"
        select = SELECT if family in ("text", "gpt2") else [*SELECT, "mean_image"]
        model.generation_config.suppress_tokens = [processor.image_token_id] if select is not SELECT else None
        made[family] = Case(model, processor, samples, template, select)
    return made


def run(case, out, **options):
    options = {"layers": "all", "select": case.select, "template": case.template, "progress": False, **options}
    model, samples = options.pop("model", case.model), options.pop("samples", case.samples)
    return FeatureStore(capture(model, case.processor, samples, out=out, **options))


def largest_difference(a, b):
    pairs = paired(a, b)
    assert len(pairs) == len(a) == len(b) > 0
    return max(np.abs(a.read(name, pairs.index_a) - b.read(name, pairs.index_b)).max() for name in a.layers)


def plain_forward(case, row, dtype=torch.float32):
    """{layer: (T, D)} and logits (T, V) of one unpadded sequence, from the stock model's own outputs."""
    encoder = RowEncoder(case.processor, template=case.template)
    inputs = encoder.batch([row], torch.device("cpu"), dtype)
    with torch.no_grad():
        output = case.model(**inputs, output_hidden_states=True)
    hidden = output.hidden_states
    names = find_parts(case.model).order()
    found = {name: states[0] for name, states in zip([*names[:-2], names[-1]], hidden, strict=True)}
    return found, output.logits[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["teacher_forced", "free"])
def test_a_left_padded_batch_gives_the_states_of_one_row_alone(cases, family, mode, tmp_path):
    case = cases[family]
    batched = run(case, tmp_path / "batched", batch_size=4, mode=mode, max_new_tokens=5)
    single = run(case, tmp_path / "single", batch_size=1, mode=mode, max_new_tokens=5)
    assert {row.selector for row in batched.rows} >= {"last_prompt", "mean_generated", "all"}
    assert largest_difference(batched, single) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_the_stock_model_at_the_position_that_the_row_names(cases, family, tmp_path):
    case = cases[family]
    store = run(case, tmp_path / "a", batch_size=4)
    encoder = RowEncoder(case.processor, template=case.template)
    for sample in case.samples[:3]:
        row = encoder.row(sample, sample.answer)
        expected, _ = plain_forward(case, row)
        for name, states_TD in expected.items():
            for kept in [kept for kept in store.rows if kept.sample == sample.id]:
                found = store.read(name, [kept.row])[0]
                if kept.position is not None:
                    wanted = states_TD[kept.position]
                else:
                    where = row.image if kept.selector == "mean_image" else list(range(row.prompt, row.end))
                    wanted = states_TD[where].mean(0)
                np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_of_a_generation_with_cache_are_those_of_one_pass_over_what_was_written(cases, family, tmp_path):
    case = cases[family]
    store = run(case, tmp_path / "free", batch_size=4, mode="free", max_new_tokens=5, select=["all", "mean_generated"])
    encoder = RowEncoder(case.processor, template=case.template)
    for sample in case.samples:
        kept = [row for row in store.rows if row.sample == sample.id and row.selector == "all"]
        row = encoder.row(sample, None)
        row.ids = [state.token_id for state in kept]
        assert len(row.ids) > row.prompt
        expected, _ = plain_forward(case, row)
        mean = next(row for row in store.rows if row.sample == sample.id and row.selector == "mean_generated")
        for name, states_TD in expected.items():
            found = store.read(name, [state.row for state in kept])
            np.testing.assert_allclose(found, states_TD.numpy(), atol=1e-5)
            wanted = states_TD[row.prompt :].mean(0).numpy()
            np.testing.assert_allclose(store.read(name, [mean.row])[0], wanted, atol=1e-5)


def test_nothing_of_a_row_is_kept_after_its_end_of_text(cases, tmp_path):
    case = copy.copy(cases["text"])
    encoder = RowEncoder(case.processor)
    with torch.no_grad():
        free = run(case, tmp_path / "a", mode="free", max_new_tokens=8, select="all")
    prompt = len(encoder.row(case.samples[0], None).ids)
    second = [row.token_id for row in free.rows if row.sample == "s0"][prompt + 1]
    case.model = copy.deepcopy(case.model)
    case.model.generation_config.eos_token_id = [second]
    stopped = run(case, tmp_path / "b", mode="free", max_new_tokens=8, select="all", batch_size=6)
    rows = [row for row in stopped.rows if row.sample == "s0"]
    assert [row.token_id for row in rows][prompt:] != [] and second not in [row.token_id for row in rows][prompt:]
    assert len(rows) == prompt + 1
    assert max(row.position for row in stopped.rows) > prompt + 1, "the others went on"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_state_that_predicts_a_word_gives_the_models_logits_through_the_stored_readout(cases, family, tmp_path):
    case = cases[family]
    store = run(case, tmp_path / "a", select="predicts:red", batch_size=4)
    readout, encoder = store.readout(), RowEncoder(case.processor, template=case.template)
    assert len(store) == len(case.samples)
    for kept, sample in zip(store.rows, case.samples, strict=True):
        row = encoder.row(sample, sample.answer)
        assert encoder.tokenizer.decode([row.ids[kept.position + 1]]).strip() == kept.word == "red"
        assert row.ids[kept.position + 1] == kept.token_id
        _, logits_TV = plain_forward(case, row)
        expected = logits_TV[kept.position].numpy()
        last = store.read(-1, [kept.row])[0]
        normed = store.read("final_norm", [kept.row])[0]
        np.testing.assert_allclose(readout.logits(last), expected, atol=1e-4)
        np.testing.assert_allclose(readout.logits(normed, normed=True), expected, atol=1e-4)
        assert readout.tokens[kept.token_id].strip() == "red"


@pytest.mark.parametrize("family", ["llava", "qwen", "gpt2"])
def test_two_loads_of_one_model_differ_by_exactly_nothing(cases, family, tmp_path):
    case = cases[family]
    a = run(case, tmp_path / "a", batch_size=4)
    b = run(case, tmp_path / "b", batch_size=4, model=copy.deepcopy(case.model))
    assert largest_difference(a, b) == 0
    assert a.manifest["model"] == b.manifest["model"]


@pytest.mark.parametrize("family", ["llava", "qwen", "text"])
def test_a_bias_planted_at_a_blocks_output_is_the_difference_in_every_row(cases, family, tmp_path):
    case = cases[family]
    tuned = copy.deepcopy(case.model)
    w_D = torch.randn(find_parts(tuned).hidden_size, generator=torch.Generator().manual_seed(1))
    find_parts(tuned).blocks[1].register_forward_hook(
        lambda module, args, output: (output[0] + w_D, *output[1:]) if isinstance(output, tuple) else output + w_D
    )
    a, b = run(case, tmp_path / "a", batch_size=4), run(case, tmp_path / "b", batch_size=3, model=tuned)
    pairs = paired(a, b)
    shift = b.read(1, pairs.index_b) - a.read(1, pairs.index_a)
    np.testing.assert_allclose(shift, np.broadcast_to(w_D.numpy(), shift.shape), atol=1e-5)
    assert np.abs(b.read(0, pairs.index_b) - a.read(0, pairs.index_a)).max() < 1e-5
    assert np.abs(b.read("final_norm", pairs.index_b) - a.read("final_norm", pairs.index_a)).max() > 0.1


def with_lora(model, seed=0):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    tuned = get_peft_model(copy.deepcopy(model), LoraConfig(r=4, target_modules=["q_proj", "up_proj", "lm_head"]))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return tuned


@pytest.mark.parametrize("family", ["llava", "qwen", "text"])
def test_an_adapter_switched_off_is_the_base_model_and_both_come_from_one_load(cases, family, tmp_path):
    case = cases[family]
    tuned = with_lora(case.model)
    base = run(case, tmp_path / "base", batch_size=4)
    out = capture(tuned, case.processor, case.samples, out=tmp_path / "both", layers="all", select=case.select,
                  template=case.template, adapter="both", batch_size=4, progress=False)  # fmt: skip
    off, on = FeatureStore(out / "adapter_off"), FeatureStore(out / "adapter_on")
    assert largest_difference(base, off) == 0
    assert largest_difference(off, on) > 1e-3
    assert base.manifest["model"]["weights"] == off.manifest["model"]["weights"] == on.manifest["model"]["weights"]
    assert (off.manifest["model"]["adapter"], on.manifest["model"]["adapter"]) == ("off", "on")
    assert on.manifest["model"]["adapter_hash"] and not off.manifest["model"]["adapter_hash"]
    again = run(case, tmp_path / "on", model=tuned, batch_size=4)
    assert largest_difference(on, again) == 0, "the adapter is on again afterwards"
    row = next(row for row in on.rows if row.selector == "last_prompt")
    sample = next(sample for sample in case.samples if sample.id == row.sample)
    case = Case(tuned, case.processor, [sample], case.template, case.select)
    _, logits_TV = plain_forward(case, RowEncoder(case.processor, template=case.template).row(sample, sample.answer))
    np.testing.assert_allclose(
        on.readout().logits(on.read(-1, [row.row])[0]), logits_TV[row.position].numpy(), atol=1e-4
    )
    assert np.abs(on.readout().lm_head - off.readout().lm_head).max() > 1e-3


def test_adapter_off_is_refused_where_there_is_no_adapter(cases, tmp_path):
    with pytest.raises(ValueError, match="no PEFT model"):
        run(cases["text"], tmp_path / "a", adapter="off")


@pytest.mark.parametrize("answer", ["original", "tuned"])
def test_both_models_read_what_the_original_or_the_tuned_one_wrote(cases, answer, tmp_path):
    case = cases["llava"]
    tuned = with_lora(case.model)
    out = capture(tuned, case.processor, case.samples, out=tmp_path / "a", layers=[0], select=["mean_generated"],
                  answer=answer, adapter="both", max_new_tokens=6, progress=False)  # fmt: skip
    writer = case.model if answer == "original" else tuned
    written = generate_answers(writer, RowEncoder(case.processor), case.samples, max_new_tokens=6, progress=False)
    stores = [FeatureStore(out / name) for name in ("adapter_off", "adapter_on")]
    encoder = RowEncoder(case.processor)
    reads = [(sample.id, encoder.row(sample, written[sample.id])) for sample in case.samples]
    for store in stores:
        assert [(row.sample, row.text) for row in store.rows] == [
            (name, encoder.decode(row.ids[row.prompt : row.end]).strip()) for name, row in reads
        ]
    assert paired(*stores).dropped_a == 0
    given = run(case, tmp_path / "b", layers=[0], select=["mean_generated"], answer=written)
    assert [row.text for row in given.rows] == [row.text for row in stores[0].rows]
    other = "tuned" if answer == "original" else "original"
    theirs = generate_answers(
        tuned if other == "tuned" else case.model, RowEncoder(case.processor), case.samples, max_new_tokens=6,
        progress=False,
    )  # fmt: skip
    assert theirs != written, "the adapter changes what is written"


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
    samples = [Sample(f"n{i}", None, texts[i % 12], texts[-1 - i % 12]) for i in range(75)]
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
