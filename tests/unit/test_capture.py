"""Promises of capture: the states kept are the model's own, whatever the batch, the family or the adapter."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from hacl.representations import FeatureStore, paired
from hacl.representations.capture import capture
from hacl.representations.encoding import RowEncoder
from hacl.representations.free import generate_answers
from hacl.representations.parts import find_parts
from tests.capture_cases import FAMILIES, Case, largest_difference, make_cases, plain_forward, run


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return make_cases(tmp_path_factory.mktemp("capture"))


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
        assert row.ids[-1] == encoder.tokenizer.eos_token_id
        expected, _ = plain_forward(case, row)
        for name, states_TD in expected.items():
            for kept in [kept for kept in store.rows if kept.sample == sample.id]:
                found = store.read(name, [kept.row])[0]
                if kept.position is not None:
                    wanted = states_TD[kept.position]
                else:
                    where = row.image if kept.selector == "mean_image" else list(range(row.prompt, len(row.ids) - 1))
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
