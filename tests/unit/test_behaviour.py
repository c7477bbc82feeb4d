"""Promises about training-free recovery: planted tunings come back whole, controls do not, and the report says so."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from hacl.compare.behaviour import behaviour_recovery, best_settings, make_grid, split_samples
from hacl.compare.behaviour_methods import make_methods, mean_shifts
from hacl.compare.divergence import Setting, divergence
from hacl.compare.final_bias import final_norm_bias
from hacl.compare.forced import Side, forced_batches, forced_log_likelihoods
from hacl.compare.sequential import forced_states, sequential_shifts
from hacl.evaluation.likelihood import log_likelihoods
from hacl.models.adapters import find_adapter
from hacl.steering import ConceptSteerer, MeanSteerer
from tests.reference.planted_tuning import LAYER, by_concept, constant, make_world, tuned_by
from tests.reference.steering_inputs import WIDTH

QUIET = {"progress": False, "draws": 200}


@pytest.fixture(scope="module", params=["llava", "fast_vlm"])
def world(request, tmp_path_factory):
    return make_world(request.getfixturevalue(f"tiny_{request.param}"), tmp_path_factory.mktemp("world"))


def side_of(world, model):
    return Side(model, world.processor)


def texts_of(world):
    return [sample.answer for sample in world.samples]


def paired_states(world, tuned, layers=(LAYER,), positions="all"):
    """{layer: (a, b)} of all samples, and their images."""
    a, owner = forced_states(
        side_of(world, world.original), world.samples, texts_of(world), layers, positions=positions
    )
    b, _ = forced_states(side_of(world, tuned), world.samples, texts_of(world), layers, positions=positions)
    return {layer: (a[layer], b[layer]) for layer in layers}, [world.samples[i].group for i in owner]


@pytest.fixture(scope="module")
def biased(world):
    """The planted tuning: one bias at the output of one block."""
    return tuned_by(world, lambda h: h + constant())


@pytest.fixture(scope="module")
def conceptual(world):
    """(tuned model, centres, shifts): another bias for each of three kinds of state."""
    a, _ = forced_states(side_of(world, world.original), world.samples, texts_of(world), [LAYER], positions="all")
    states = torch.as_tensor(a[LAYER])
    centres = states[[3, -7, -1]]  # of an image token, the prompt and the text
    shifts = torch.stack([constant(seed=seed) for seed in (1, 2, 3)])
    return tuned_by(world, by_concept(centres, shifts)), centres, shifts


def test_teacher_forced_differences_of_a_bias_are_the_bias_and_of_the_same_model_zero(world, biased):
    pairs, _ = paired_states(world, biased)
    assert np.abs(pairs[LAYER][1] - pairs[LAYER][0] - constant().numpy()).max() < 1e-5
    same, _ = paired_states(world, world.original)
    assert np.array_equal(*same[LAYER])


def test_the_global_shift_reproduces_the_tuned_logits_and_closes_the_whole_gap(world, biased):
    steerer = mean_shifts(paired_states(world, biased)[0])
    settings = [Setting("global", alpha) for alpha in (1.0, 0.5, -1.0)]
    found = divergence(
        side_of(world, world.original), side_of(world, biased), world.samples, texts_of(world), {"global": steerer},
        settings, batch_size=5,
    )  # fmt: skip
    assert (found.base > 1e-2).all()
    assert np.abs(found.moved[settings[0]]).max() < 1e-6
    assert found.closed(settings[0]).share.estimate == pytest.approx(1.0, abs=1e-5)
    assert 0 < found.closed(settings[1]).share.estimate < 1
    assert found.closed(settings[2]).share.estimate < 0


def test_a_divergence_is_the_sum_over_label_tokens_spelt_out_for_one_sample(world, biased):
    sample = world.samples[3]
    found = divergence(side_of(world, world.original), side_of(world, biased), [sample], [sample.answer], {}, [])
    encoder = side_of(world, world.original).encoder
    encoder.prompt = sample.prompt
    sequence = encoder.caption_sequence(sample.answer)
    from hacl.evaluation.inputs import pixels_of

    inputs = {
        "input_ids": torch.tensor([sequence.ids]),
        "pixel_values": pixels_of(world.processor, [sample.image], torch.device("cpu")),
    }
    with torch.no_grad():
        a, b = (torch.log_softmax(m(**inputs).logits[0].double(), -1) for m in (world.original, biased))
    places = [t - 1 for t, flag in enumerate(sequence.is_label) if flag]
    expected = sum(float((b[t].exp() * (b[t] - a[t])).sum()) for t in places)
    assert found.base[0] == pytest.approx(expected, rel=1e-4) and found.tokens[0] == len(places)


def test_batches_and_the_company_of_other_settings_change_nothing(world, biased):
    steerer = mean_shifts(paired_states(world, biased)[0])
    sides = side_of(world, world.original), side_of(world, biased)
    many = [Setting("global", alpha, (LAYER,), policy) for policy in ("all", "last-1", "image") for alpha in (0.5, 1)]
    together = divergence(*sides, world.samples, texts_of(world), {"global": steerer}, many, batch_size=7)
    for setting in many:
        alone = divergence(*sides, world.samples, texts_of(world), {"global": steerer}, [setting], batch_size=1)
        np.testing.assert_allclose(alone.moved[setting], together.moved[setting], atol=1e-4)
        np.testing.assert_allclose(alone.base, together.base, atol=1e-4)


def test_the_tuned_model_is_run_once_however_many_strengths_are_tried(world, biased):
    counts = {"tuned": 0, "original": 0, "tower": 0}
    adapters = {"tuned": find_adapter(biased), "original": find_adapter(world.original)}

    def count(name):
        return lambda *_: counts.update({name: counts[name] + 1})

    handles = [adapter.decoder.register_forward_hook(count(name)) for name, adapter in adapters.items()]
    handles.append(adapters["original"].vision_tower.register_forward_hook(count("tower")))
    steerer = MeanSteerer({LAYER: constant()})
    settings = [Setting("global", alpha) for alpha in (0.5, 1.0, 1.5, 2.0)]
    try:
        divergence(
            side_of(world, world.original), side_of(world, biased), world.samples, texts_of(world),
            {"global": steerer}, settings, batch_size=8,
        )  # fmt: skip
    finally:
        for handle in handles:
            handle.remove()
    assert counts == {"tuned": 2, "original": 2 * (1 + len(settings)), "tower": 2}


def test_concept_hard_closes_a_planted_concept_tuning_and_a_global_shift_only_part(world, conceptual):
    tuned, centres, shifts = conceptual
    pairs, groups = paired_states(world, tuned)
    methods = make_methods(pairs, {LAYER: centres.numpy()}, groups=groups, min_size=1, rank=8)
    torch.testing.assert_close(methods.steerers["concept_hard"].shifts[LAYER], shifts, atol=1e-4, rtol=1e-4)
    report = behaviour_recovery(
        world.original, tuned, world.processor, world.samples, methods.steerers, alphas=[0.5, 1.0],
        permuted=methods.permuted, **QUIET,
    )  # fmt: skip
    closed = {v.name: v.closed.share.estimate for v in report.variants}
    assert report.chosen.name == "concept_hard" and report.chosen.setting.alpha == 1.0
    assert closed["concept_hard"] > 0.999
    assert closed["global"] < 0.9
    controls = {name: share for name, share in closed.items() if name.startswith("control/")}
    assert set(controls) == {f"control/random_{i}" for i in range(3)} | {
        "control/shuffled_concepts", "control/permuted_pairs", "control/negative_alpha",
    }  # fmt: skip
    assert max(controls.values()) < 0.9 and report.exit_code == 0
    assert controls["control/negative_alpha"] < 0 and controls["control/shuffled_concepts"] < 0.5
    for variant in report.variants[1:]:
        assert variant.behind.estimate == pytest.approx(1 - variant.closed.share.estimate, abs=1e-3)


def test_every_behaviour_measure_of_a_planted_bias_is_recovered_whole(world, biased):
    steerers = {"global": mean_shifts(paired_states(world, biased)[0])}
    report = behaviour_recovery(
        world.original, biased, world.processor, world.samples, steerers, alphas=[0.5, 1.0, 2.0], tasks=world.tasks,
        random_draws=1, **QUIET,
    )  # fmt: skip
    chosen = report.chosen
    assert (chosen.setting.alpha, chosen.role) == (1.0, "chosen")
    assert report.replies["global"].captions == report.replies["tuned"].captions
    assert report.replies["global"].captions != report.replies["original"].captions
    assert report.replies["global"].answers == report.replies["tuned"].answers
    defined = {name: f.share.estimate for name, f in chosen.measures.items() if f.defined}
    assert {"agreement_exact_match", "agreement_token_f1", "agreement_rouge_l"} <= set(defined)
    assert all(share == pytest.approx(1.0, abs=1e-4) for share in defined.values())
    for name, fraction in chosen.measures.items():
        assert fraction.moved == pytest.approx(fraction.tuned, abs=1e-4), name
    assert {"CHAIR_i", "CHAIR_s", "recall", "margin", "margin_accuracy", "pope_random_f1"} <= set(chosen.measures)
    for effect in ("length", "longest_repeat", "distinct_1", "nats_per_token", "changed_outside", "distinct_2_corpus"):
        assert chosen.effects[effect].moved == pytest.approx(chosen.effects[effect].tuned, abs=1e-4)


def test_the_report_is_complete_plain_and_written_as_three_kinds_of_file(world, biased, tmp_path):
    steerers = {"global": mean_shifts(paired_states(world, biased)[0])}
    report = behaviour_recovery(
        world.original, biased, world.processor, world.samples, steerers, alphas=[1.0], tasks=world.tasks,
        measured=["global"], random_draws=1, policies=["all", "last-1"], **QUIET,
    )  # fmt: skip
    assert report.verdict.startswith("alpha = 1, own layers, all, global: KL gap closed 100 % [100, 100]")
    assert "off-domain changes" in report.verdict and "best control" in report.verdict
    path = report.write(tmp_path)
    content = json.loads(path.read_text(), parse_constant=lambda token: pytest.fail(f"{token} in JSON"))
    assert content["verdict"] == report.verdict and len(content["curve"]) == 2
    assert (tmp_path / "behaviour.md").read_text().count("| control/random_0 |") == 1
    for table in ("curve", "variants", "measures", "effects"):
        lines = (tmp_path / f"behaviour_{table}.csv").read_text().splitlines()
        assert len(lines) == 1 + len(content[table])
    validation, test = content["meta"]["validation"], content["meta"]["test"]
    assert validation["images"] + test["images"] == 16 and len(report.replies["tuned"].captions) == test["samples"]


def test_an_adapter_may_be_the_tuned_model_in_one_load(world):
    from copy import deepcopy

    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    wrapped = get_peft_model(deepcopy(world.original), config)
    torch.manual_seed(0)
    tuned = get_peft_model(deepcopy(world.original), config).merge_and_unload()
    steerers = {"bias": MeanSteerer({LAYER: constant(0.2)})}
    settings = [Setting("bias", 1.0)]
    one = divergence(
        Side(wrapped, world.processor, adapter=False), Side(wrapped, world.processor), world.samples, texts_of(world),
        steerers, settings,
    )  # fmt: skip
    two = divergence(
        side_of(world, world.original), side_of(world, tuned), world.samples, texts_of(world), steerers, settings
    )
    np.testing.assert_allclose(one.base, two.base, atol=1e-3, rtol=1e-3)
    np.testing.assert_allclose(one.moved[settings[0]], two.moved[settings[0]], atol=1e-3, rtol=1e-3)
    assert one.base.sum() > 1e-2
    with pytest.raises(ValueError, match="no adapter"):
        Side(world.original, world.processor, adapter=False)


def test_layers_estimated_in_sequence_count_nothing_twice(world, biased):
    """The bias at block 0 explains what block 1 sees: measured after it, nothing is left there."""
    sides = side_of(world, world.original), side_of(world, biased)
    texts = texts_of(world)

    def original(steerer, layer):
        return forced_states(sides[0], world.samples, texts, [layer], positions="all", steerer=steerer)[0][layer]

    def tuned(layer):
        return forced_states(sides[1], world.samples, texts, [layer], positions="all")[0][layer]

    steerer, pairs = sequential_shifts([0, 1], original, tuned, mean_shifts)
    assert steerer.layers == (0, 1)
    torch.testing.assert_close(steerer.values[0], constant(), atol=1e-4, rtol=1e-4)
    assert steerer.values[1].abs().max() < 1e-4
    assert mean_shifts(paired_states(world, biased, layers=(1,))[0]).values[1].abs().max() > 0.5
    found = divergence(*sides, world.samples, texts, {"both": steerer}, [Setting("both", 1.0)])
    assert found.closed(Setting("both", 1.0)).share.estimate > 0.999
    with pytest.raises(ValueError, match="each once"):
        sequential_shifts([0, 0], original, tuned, mean_shifts)


def test_states_are_kept_at_the_positions_asked_for_in_the_order_of_samples(world):
    side, texts = side_of(world, world.original), texts_of(world)
    rows = {name: forced_states(side, world.samples, texts, [1], positions=name, batch_size=3) for name in
            ("answer", "last_prompt", "all")}  # fmt: skip
    sequences = {
        s.id: batch.sequences[i] for batch in forced_batches(side, world.samples, texts, 1)
        for i, s in enumerate(batch.samples)
    }  # fmt: skip
    owner = rows["answer"][1]
    assert np.array_equal(rows["last_prompt"][1], np.arange(len(world.samples)))
    for i, sample in enumerate(world.samples):
        whole = rows["all"][0][1][rows["all"][1] == i]
        labels = [t - 1 for t, flag in enumerate(sequences[sample.id].is_label) if flag]
        assert len(whole) == len(sequences[sample.id])
        np.testing.assert_array_equal(rows["answer"][0][1][owner == i], whole[labels])
        np.testing.assert_array_equal(rows["last_prompt"][0][1][i], whole[labels[0]])


def test_a_bias_of_the_vocabulary_is_recovered_by_a_shift_at_the_final_norm(world):
    """And its words are those of W_U Delta."""
    delta = constant(0.3)
    side = side_of(world, world.original)
    tuned = tuned_by(world, lambda h: h)
    find_adapter(tuned).final_norm.register_forward_hook(lambda m, a, o: o + delta)
    pairs, _ = paired_states(world, tuned, layers=("final_norm",))
    steerer = mean_shifts(pairs)
    found = divergence(
        side, side_of(world, tuned), world.samples, texts_of(world), {"tilt": steerer}, [Setting("tilt", 1.0)]
    )
    assert found.closed(Setting("tilt", 1.0)).share.estimate > 0.9999
    head = find_adapter(world.original).lm_head.weight.detach().numpy()
    tokens = [str(i) for i in range(len(head))]
    bias = final_norm_bias(head, steerer.values["final_norm"].numpy(), tokens, count=3)
    expected = head @ delta.numpy()
    np.testing.assert_allclose(bias.bias_V, expected, atol=1e-4)
    assert [word for word, _ in bias.up] == [str(i) for i in np.argsort(-expected)[:3]]
    assert [word for word, _ in bias.down] == [str(i) for i in np.argsort(expected)[:3]]
    with pytest.raises(ValueError, match="other models"):
        final_norm_bias(head, np.ones(3), tokens)


def test_forced_likelihoods_equal_those_of_evaluation(world):
    texts = texts_of(world)
    found = forced_log_likelihoods(side_of(world, world.original), world.samples, texts, batch_size=4)
    expected = log_likelihoods(
        world.original, world.processor, [s.image for s in world.samples], texts, prompt="describe the image"
    )
    np.testing.assert_allclose(found.total, expected.total, atol=1e-3)
    assert np.array_equal(found.tokens, expected.tokens)


def test_models_that_do_not_differ_give_nothing_to_recover(world):
    report = behaviour_recovery(
        world.original, world.original, world.processor, world.samples, {"any": MeanSteerer({0: constant()})}, **QUIET
    )
    assert report.variants == [] and report.verdict.startswith("nothing to recover") and report.exit_code == 1
    json.dumps(report.to_json(), allow_nan=False)


def test_a_method_that_a_control_beats_does_not_pass_the_gate(world, biased):
    report = behaviour_recovery(
        world.original, biased, world.processor, world.samples, {"backwards": MeanSteerer({LAYER: -constant()})},
        alphas=[0.1], random_draws=1, **QUIET,
    )  # fmt: skip
    assert report.exit_code == 1 and report.chosen.closed.note == "wrong way"
    reasons = report.gate_failures()
    assert "not above 0" in reasons[0] and any("control/negative_alpha closes" in reason for reason in reasons)


def test_an_image_is_chosen_on_or_confirmed_on_and_never_fitted_on(world):
    for share in (0.25, 0.5):
        chosen, confirmed = split_samples(world.samples * 2, share, seed=1)
        images = [{s.group for s in half} for half in (chosen, confirmed)]
        assert not images[0] & images[1] and len(images[0]) == 16 * share
    assert split_samples(world.samples, ["3"], 0)[0] == [world.samples[3]]
    with pytest.raises(ValueError, match="both need some"):
        split_samples(world.samples, 0.0, 0)
    with pytest.raises(ValueError, match="'3' .* used to estimate"):
        behaviour_recovery(
            world.original, world.original, world.processor, world.samples, {"any": MeanSteerer({0: constant()})},
            fitted_on=["3"], **QUIET,
        )  # fmt: skip


def test_layers_may_be_the_same_for_all_methods_or_each_ones_own():
    steerers = {"one": MeanSteerer({0: constant()}), "two": MeanSteerer({0: constant(), 1: constant()})}
    grid = make_grid(steerers, [0.0, 1.0], {"one": [0], "two": [None, (0, 1)]}, ["all", "last-1"])
    assert [(s.method, s.layers, s.policy) for s in grid] == [
        ("one", (0,), "all"), ("one", (0,), "last-1"), ("two", None, "all"), ("two", None, "last-1"),
        ("two", (0, 1), "all"), ("two", (0, 1), "last-1"),
    ]  # fmt: skip
    assert len(make_grid(steerers, [0.5, 1.0], [0, None], ["all"])) == 8
    with pytest.raises(ValueError, match="nothing to choose"):
        make_grid(steerers, [1.0], {"one": [0]}, ["all"])


@pytest.mark.parametrize(
    ("change", "message"),
    [({"alphas": [0.0]}, "other than 0"), ({"policies": []}, "nothing to choose"), ({"text": "mine"}, "reference"),
     ({"layers": [1]}, "no vector for layer")],
)  # fmt: skip
def test_questions_that_make_no_sense_are_refused(world, biased, change, message):
    with pytest.raises(ValueError, match=message):
        behaviour_recovery(
            world.original, biased, world.processor, world.samples, {"any": MeanSteerer({0: constant()})},
            **QUIET | change,
        )  # fmt: skip


def test_a_policy_that_steers_no_position_is_an_error_and_no_null_result(world, biased):
    text_only = [s for s in world.tasks.outside]
    sides = side_of(world, world.original), side_of(world, biased)
    with pytest.raises(ValueError, match="no position"):
        divergence(
            *sides, text_only, ["red"] * len(text_only), {"any": MeanSteerer({0: constant()})},
            [Setting("any", 1.0, None, "image")],
        )  # fmt: skip


def test_the_best_setting_of_each_method_is_found_and_undefined_ones_are_no_candidates(world, biased):
    steerers = {"right": MeanSteerer({LAYER: constant()}), "wrong": MeanSteerer({LAYER: constant(seed=5)})}
    report = behaviour_recovery(
        world.original, biased, world.processor, world.samples, steerers, alphas=[0.5, 1.0], **QUIET
    )
    best = best_settings(report.curve)
    assert best[0] == Setting("right", 1.0) and [setting.method for setting in best] == ["right", "wrong"]


def test_a_reference_is_confirmed_but_never_chosen(world, biased):
    steerers = {"part": MeanSteerer({LAYER: 0.5 * constant()}), "lowrank": MeanSteerer({LAYER: constant()})}
    report = behaviour_recovery(
        world.original, biased, world.processor, world.samples, steerers, alphas=[1.0], random_draws=1, **QUIET
    )
    roles = {v.name: v.role for v in report.variants}
    assert report.chosen.name == "part" and roles["lowrank"] == "reference"
    assert "lowrank (reference) 100 %" in report.verdict and report.exit_code == 0


def test_concept_tables_take_the_global_shift_where_a_concept_is_too_small(world, conceptual):
    tuned, centres, _ = conceptual
    pairs, _ = paired_states(world, tuned)
    far = torch.cat([centres, torch.full((1, WIDTH), 1e3)])
    steerer = make_methods(pairs, {LAYER: far.numpy()}).steerers["concept_hard"]
    assert isinstance(steerer, ConceptSteerer)
    expected = (pairs[LAYER][1] - pairs[LAYER][0]).mean(0)
    np.testing.assert_allclose(steerer.shifts[LAYER][3].numpy(), expected, atol=1e-4)
