"""Promises about sessions: what they leave behind, what they refuse, how they stack, and what they cost in calls."""

from __future__ import annotations

import copy
import threading
import warnings

import pytest
import torch

from hacl.models.adapters import find_adapter
from hacl.steering import ComposeSteerer, MeanSteerer, SteeringWarning, steering
from tests.reference.steering_inputs import NEW, WIDTH, generate, hook_count, load, prompts, vectors

pytestmark = pytest.mark.filterwarnings("error::hacl.steering.SteeringWarning")


@pytest.fixture(scope="module", params=["llava", "fast_vlm"])
def model(request):
    return load(request.getfixturevalue(f"tiny_{request.param}"))


@pytest.fixture
def inputs(model):
    return prompts(model).batch()


def test_before_inside_at_alpha_zero_and_after_are_the_same_bits(model, inputs):
    before = generate(model, inputs)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with steering(model, MeanSteerer(vectors(0, 1)), alpha=0.0):
            inside = generate(model, inputs)[1]
    with steering(model, MeanSteerer(vectors(0, 1))):
        assert not torch.equal(generate(model, inputs)[1], before)
    assert torch.equal(inside, before) and torch.equal(generate(model, inputs)[1], before)


def test_leaving_removes_its_own_hooks_and_no_others(model, inputs):
    calls = []
    foreign = find_adapter(model).blocks[0].register_forward_hook(lambda *_: calls.append(1))
    clean = hook_count(model)
    try:
        with pytest.raises(KeyError), steering(model, MeanSteerer(vectors(0, 1))):
            assert hook_count(model) > clean and "generate" in model.__dict__
            generate(model, inputs)
            raise KeyError("inside")
        assert hook_count(model) == clean and "generate" not in model.__dict__
        calls.clear()
        generate(model, inputs)
        assert len(calls) == NEW
    finally:
        foreign.remove()


def test_an_error_in_the_middle_of_a_forward_leaves_nothing_behind(model, inputs):
    before, clean = generate(model, inputs)[1], hook_count(model)

    class Broken(MeanSteerer):
        def adjust(self, layer, h_RTD, shift, mask):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), steering(model, Broken(vectors(1))):
        generate(model, inputs)
    assert hook_count(model) == clean and torch.equal(generate(model, inputs)[1], before)


def test_a_session_goes_on_after_an_error_that_its_user_caught(model, inputs):
    with steering(model, MeanSteerer(vectors(0))):
        expected = generate(model, inputs)[1]
        with pytest.raises(ValueError):
            model.generate(**inputs, max_new_tokens=0)
        assert torch.equal(generate(model, inputs)[1], expected)


def test_a_foreign_generate_comes_back(model, inputs):
    original = model.generate
    model.generate = lambda **settings: original(**settings)
    own = model.generate
    try:
        with steering(model, MeanSteerer(vectors(0))) as s:
            generate(model, inputs)
        assert model.__dict__["generate"] is own and s.stats.total
    finally:
        del model.__dict__["generate"]


def test_nested_sessions_add_and_each_ends_alone(model, inputs):
    first, second = vectors(0, 1, seed=1), vectors(0, 1, seed=2)
    clean = hook_count(model)
    with steering(model, MeanSteerer(first)):
        alone = generate(model, inputs)[1]
        with steering(model, MeanSteerer(second), alpha=0.5):
            nested = generate(model, inputs)[1]
        assert torch.equal(generate(model, inputs)[1], alone)
    assert hook_count(model) == clean
    with steering(model, MeanSteerer({layer: first[layer] + 0.5 * second[layer] for layer in (0, 1)})):
        torch.testing.assert_close(generate(model, inputs)[1], nested, atol=2e-5, rtol=1e-5)


def test_sessions_may_end_in_another_order_than_they_began(model, inputs):
    before = generate(model, inputs)[1]
    outer, inner = steering(model, MeanSteerer(vectors(0, seed=1))), steering(model, MeanSteerer(vectors(0, seed=2)))
    outer.__enter__(), inner.__enter__()
    generate(model, inputs)
    outer.__exit__(None, None, None)
    found = generate(model, inputs)[1]
    inner.__exit__(None, None, None)
    with steering(model, MeanSteerer(vectors(0, seed=2))):
        assert torch.equal(generate(model, inputs)[1], found)
    assert torch.equal(generate(model, inputs)[1], before)


def test_a_composition_is_the_nested_sum_in_any_order_bit_for_bit(model, inputs):
    first, second = MeanSteerer(vectors(0, 1, seed=1)), MeanSteerer(vectors(1, seed=2))
    with steering(model, first), steering(model, second, alpha=-0.5):
        nested = generate(model, inputs)[1]
    found = []
    for parts, weights in (([first, second], [1, -0.5]), ([second, first], [-0.5, 1])):
        with steering(model, ComposeSteerer(parts, weights)):
            found.append(generate(model, inputs)[1])
    assert torch.equal(*found)
    torch.testing.assert_close(found[0], nested, atol=2e-5, rtol=1e-5)


def test_a_method_and_its_opposite_are_the_unsteered_model(model, inputs):
    before = generate(model, inputs)[1]
    part = MeanSteerer(vectors(0, 1))
    with steering(model, ComposeSteerer([part, part], [1, -1])):
        torch.testing.assert_close(generate(model, inputs)[1], before, atol=1e-6, rtol=0)


def test_layers_are_named_by_index_from_either_end_or_by_name(model, inputs):
    found = []
    for layer in (1, -1, "model.language_model.layers.1", "layers.1", "language_model.layers.1"):
        with steering(model, MeanSteerer(vectors(0)[0]), layers=layer) as s:
            found.append(generate(model, inputs)[1])
        assert [str(chosen) for chosen in s.layers.values()] == ["1 (model.language_model.layers.1)"]
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize(
    ("layer", "message"),
    [(2, "0 to 1"), (-3, "0 to 1"), ("layers.7", "near names: .*layers"), ("ayers.1", "near names"), ([], "no layer"),
     ([0, -2], "both mean"), (True, "index or the name")],
)  # fmt: skip
def test_layers_that_match_nothing_are_errors_with_near_names(model, layer, message):
    with pytest.raises(ValueError, match=message):
        steering(model, MeanSteerer(torch.ones(WIDTH)), layers=layer)


def test_a_layer_without_a_vector_and_another_width_are_errors(model):
    with pytest.raises(ValueError, match="no vector for layer 1 .*it has: 0"):
        steering(model, MeanSteerer(vectors(0)), layers=[1])
    with pytest.raises(ValueError, match="no layer"):
        steering(model, MeanSteerer(torch.ones(WIDTH)))
    with pytest.raises(ValueError, match=f"layer 0 .*width 7, the model {WIDTH}"):
        with steering(model, MeanSteerer({0: torch.ones(7)})):
            pass
    assert "generate" not in model.__dict__


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"assistant_model": "itself"}, "assistant_model"), ({"prompt_lookup_num_tokens": 2}, "assisted"),
     ({"penalty_alpha": 0.5, "top_k": 4}, "contrastive"), ({"dola_layers": "high"}, "dola"),
     ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}, "group beam"),
     ({"guidance_scale": 2.0}, "guidance"), ({"cache_implementation": "paged"}, "continuous"),
     ({"custom_generate": "some/where"}, "custom_generate")],
)  # fmt: skip
def test_decoding_that_was_not_tested_is_refused_by_name(model, inputs, settings, name):
    settings = {key: model if value == "itself" else value for key, value in settings.items()}
    with steering(model, MeanSteerer(vectors(0)), alpha=0.0):
        with pytest.raises(ValueError, match=name):
            model.generate(**inputs, max_new_tokens=2, **settings)


def test_settings_in_a_generation_config_are_refused_like_arguments(model, inputs):
    config = copy.deepcopy(model.generation_config)
    config.prompt_lookup_num_tokens = 3
    with steering(model, MeanSteerer(vectors(0)), alpha=0.0), pytest.raises(ValueError, match="assisted"):
        model.generate(**inputs, generation_config=config, max_new_tokens=2)


def test_a_session_that_steers_nothing_says_so(model):
    text = prompts(model).batch([1])
    with pytest.warns(SteeringWarning, match="policy image.*layers.0"):
        with steering(model, MeanSteerer(vectors(0)), policy="image"):
            generate(model, text)
    with pytest.warns(SteeringWarning, match="no forward at all"), steering(model, MeanSteerer(vectors(0))):
        pass


def test_the_hooks_called_are_the_steered_layers_times_the_forwards(model, inputs):
    with steering(model, MeanSteerer(vectors(1)), policy="generated") as s:
        generate(model, inputs)
    assert (s.stats.forwards, s.stats.hook_calls, s.stats.context_passes) == (NEW, NEW, 0)
    assert s.stats.positions == {1: 3 * (NEW - 1)}
    with steering(model, MeanSteerer(vectors(0, 1))) as s:
        generate(model, inputs)
        generate(model, inputs)
    assert (s.stats.sequences, s.stats.hook_calls) == (2, 4 * NEW)


def test_two_models_in_two_threads_do_not_meet(model, inputs, tiny_llava):
    other = load(tiny_llava)
    expected, found = {}, {}
    jobs = {"a": (model, inputs, vectors(0, seed=1)), "b": (other, prompts(other).batch(), vectors(1, seed=2))}

    def run(name, into):
        which, batch, values = jobs[name]
        with steering(which, MeanSteerer(values)):
            into[name] = generate(which, batch)[1]

    for name in jobs:
        run(name, expected)
    threads = [threading.Thread(target=run, args=(name, found)) for name in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(expected[name], found[name]) for name in jobs)


def test_a_session_is_opened_once_at_a_time(model):
    session = steering(model, MeanSteerer(vectors(0)), alpha=0.0)
    with session, pytest.raises(RuntimeError, match="already open"):
        session.__enter__()


def test_entering_in_the_middle_of_a_sequence_asks_where_its_prompt_ended(model):
    rows = prompts(model)
    with torch.no_grad():
        cache = model(**rows.batch([1]), use_cache=True).past_key_values
        with steering(model, MeanSteerer(vectors(0)), policy="generated") as s:
            token = torch.tensor([[9]])
            with pytest.raises(ValueError, match="middle of a sequence"):
                model(input_ids=token, past_key_values=copy.deepcopy(cache), use_cache=True)
            with s.rows(prompt_lengths=[len(rows.ids[1])]):
                model(input_ids=token, past_key_values=cache, use_cache=True)
    assert s.stats.positions == {0: 1}


def test_masks_that_say_nothing_about_rows_are_refused(model):
    square = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    with torch.no_grad(), steering(model, MeanSteerer(vectors(0)), alpha=0.0), pytest.raises(ValueError, match="2D"):
        model(input_ids=torch.full((1, 8), 9), attention_mask=square)


def test_gradients_reach_through_the_steered_positions(model, inputs):
    vector = torch.zeros(WIDTH, requires_grad=True)

    class Learned(MeanSteerer):
        def vectors(self, context, sample_ids):
            return {0: vector}

    with steering(model, Learned(vectors(0)), policy="last-1"):
        model(**inputs).logits[:, -1].logsumexp(-1).sum().backward()
    model.zero_grad()
    assert vector.grad is not None and vector.grad.abs().sum() > 0


def test_hidden_states_that_the_model_records_are_the_steered_ones(model, inputs):
    with torch.no_grad():
        before = model(**inputs, output_hidden_states=True).hidden_states  # its recorders are hooks, and come first
        with steering(model, MeanSteerer(vectors(0)), policy="all"):
            after = model(**inputs, output_hidden_states=True).hidden_states
    attended = inputs["attention_mask"].bool()
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[1][attended], (before[1] + vectors(0)[0])[attended])


@pytest.mark.parametrize("lengths", ([99, 3, 3], [0, 3, 3], [3]))
def test_prompt_lengths_that_cannot_be_are_errors(model, inputs, lengths):
    with torch.no_grad(), steering(model, MeanSteerer(vectors(0)), alpha=0.0) as s, s.rows(prompt_lengths=lengths):
        with pytest.raises(ValueError, match="prompt"):
            model(**inputs) if len(lengths) == 3 else generate(model, inputs)


def test_an_adapter_may_be_on_or_off(model, inputs):
    from peft import LoraConfig, get_peft_model

    own = copy.deepcopy(model)
    with steering(model, MeanSteerer(vectors(0, 1))):
        expected = generate(model, inputs)[1]
    tuned = get_peft_model(own, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    tuned.eval()
    plain = generate(tuned, inputs)[1]
    with steering(tuned, MeanSteerer(vectors(0, 1))) as s:
        on = generate(tuned, inputs)[1]
        with tuned.disable_adapter():
            off = generate(tuned, inputs)[1]
    torch.testing.assert_close(off, expected, atol=2e-5, rtol=1e-5)
    assert (on - off).abs().max() > 1e-3 and (on - plain).abs().max() > 1e-3 and s.stats.sequences == 2
    assert torch.equal(generate(tuned, inputs)[1], plain)
