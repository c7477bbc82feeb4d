"""Promises about methods that look at the input: they read the unsteered prompt, however the reading is done."""

from __future__ import annotations

import pytest
import torch

from hacl.models.adapters import find_adapter
from hacl.steering import ContextSpec, MeanSteerer, Steerer, steering
from tests.reference import steering_steps as twin
from tests.reference.steering_inputs import NEW, WIDTH, generate, load, prompts, vectors

pytestmark = pytest.mark.filterwarnings("error::hacl.steering.SteeringWarning")


class Linear(Steerer):
    """A stand-in for Learn-to-Steer: vector = W tanh(state)."""

    kind = "linear"

    def __init__(self, read, layers, token="last_prompt", weight=None, **common):
        super().__init__(**common)
        self.spec, self._layers = ContextSpec(read, token), tuple(layers)
        draw = torch.Generator().manual_seed(5)
        self.weight = 0.6 * torch.randn(WIDTH, WIDTH, generator=draw) if weight is None else weight

    @property
    def layers(self):
        return self._layers

    def required_context(self):
        return [self.spec]

    def vectors(self, context, sample_ids):
        return {layer: torch.tanh(context[self.spec]) @ self.weight.T for layer in self._layers}


@pytest.fixture(scope="module", params=["llava", "fast_vlm"])
def model(request):
    return load(request.getfixturevalue(f"tiny_{request.param}"))


def state_of(model, row, layer, token):
    """What the twin reads: a state of the unsteered prompt, or a mean over its tokens."""
    rows = prompts(model)
    with torch.no_grad():
        states = twin.forward(model, rows.ids[row], rows.pixels[row])[1][layer]
    image = torch.tensor(rows.image(row))
    return {
        "last_prompt": states[-1], "mean_prompt": states.mean(0), "mean_text": states[~image].mean(0),
        "mean_image": states[image].mean(0),
    }[token]  # fmt: skip


def reference(model, method, row, policy):
    rows = prompts(model)
    context = {method.spec: state_of(model, row, method.spec.layer, method.spec.token)[None]}
    steps = {layer: value[0] for layer, value in method.vectors(context, None).items()}
    change = twin.adding(steps, 1.0, policy, len(rows.ids[row]), rows.image(row))
    with torch.no_grad():
        return twin.greedy(model, rows.ids[row], rows.pixels[row], change, NEW)


def assert_rows(model, method, policy, found, rows):
    for at, row in enumerate(rows):
        tokens, logits = reference(model, method, row, policy)
        assert found[0][at].tolist() == tokens
        torch.testing.assert_close(found[1][at], logits, atol=5e-5, rtol=1e-4)


# read <= steered; read > steered under generated; read > steered elsewhere
PLANS = [
    (0, [0, 1], "all", 0),
    (0, [1], "generated", 0),
    (1, [0], "generated", 0),
    (1, [0], "all", 1),
    (1, [0, 1], "last-2", 1),
]


@pytest.mark.parametrize(("read", "layers", "policy", "passes"), PLANS)
@pytest.mark.parametrize("cached", (True, False))
def test_each_plan_equals_the_twin_and_costs_what_it_says(model, read, layers, policy, passes, cached):
    method = Linear(read, layers)
    with steering(model, method, policy=policy) as s:
        found = generate(model, prompts(model).batch(), use_cache=cached)
    assert_rows(model, method, policy, found, [0, 1, 2])
    assert s.stats.context_passes == passes and s.stats.sequences == 1


@pytest.mark.parametrize("token", ("mean_prompt", "mean_text", "mean_image"))
def test_means_over_the_prompt_are_read_without_pads(model, token):
    method, rows = Linear(1, [0], token), [0, 2]
    with steering(model, method, policy="all"):
        found = generate(model, prompts(model).batch(rows))
    assert_rows(model, method, "all", found, rows)


@pytest.mark.parametrize(("read", "layers", "policy"), [(0, [0], "all"), (1, [0], "generated"), (1, [0], "all")])
def test_a_prompt_in_chunks_is_read_in_a_pass_of_its_own(model, read, layers, policy):
    rows = [0, 1, 2] if model.config.model_type == "llava" else [1]
    method = Linear(read, layers)
    with steering(model, method, policy=policy) as s:
        found = generate(model, prompts(model).batch(rows), prefill_chunk_size=4)
    assert_rows(model, method, policy, found, rows)
    assert s.stats.context_passes == 1


def test_one_pass_and_two_are_equal_where_both_are_right(model):
    found = []
    for context in ("single", "pass"):
        with steering(model, Linear(0, [0, 1]), policy="all", context=context) as s:
            found.append(generate(model, prompts(model).batch()))
        assert s.stats.context_passes == (context == "pass")
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-5, rtol=1e-5)


def test_a_single_pass_that_would_read_its_own_shift_is_refused(model):
    with pytest.raises(ValueError, match="block 1 is read after"):
        with steering(model, Linear(1, [0]), policy="all", context="single"):
            generate(model, prompts(model).batch())
    with pytest.raises(ValueError, match="chunks"):
        with steering(model, Linear(0, [0]), policy="all", context="single"):
            generate(model, prompts(model).batch([1]), prefill_chunk_size=2)


@pytest.mark.parametrize("read", (0, 1))
def test_beams_read_each_sample_once_and_keep_its_vector(model, read):
    method = Linear(read, [0])
    with steering(model, method, policy="all") as s:
        _, logits = generate(model, prompts(model).batch(), do_sample=True, num_return_sequences=2, new=1)
    for row in range(3):
        expected = reference(model, method, row, "all")[1][0]
        for copy in (2 * row, 2 * row + 1):
            torch.testing.assert_close(logits[copy, 0], expected, atol=5e-5, rtol=1e-4)
    assert s.stats.context_passes == read


def test_what_is_read_is_the_unsteered_prompt_even_inside_another_session(model):
    other = vectors(0, seed=3)
    method = Linear(0, [1])
    with steering(model, MeanSteerer(other), policy="all"), steering(model, method, policy="all") as s:
        found = generate(model, prompts(model).batch())
    assert s.stats.context_passes == 1
    rows = prompts(model)
    for row in range(3):
        step = method.vectors({method.spec: state_of(model, row, 0, "last_prompt")[None]}, None)[1][0]
        change = twin.adding({0: other[0], 1: step}, 1.0, "all", len(rows.ids[row]), rows.image(row))
        with torch.no_grad():
            tokens, logits = twin.greedy(model, rows.ids[row], rows.pixels[row], change, NEW)
        assert found[0][row].tolist() == tokens
        torch.testing.assert_close(found[1][row], logits, atol=5e-5, rtol=1e-4)


def test_states_read_elsewhere_take_the_place_of_reading(model):
    method = Linear(1, [0])
    given = {method.spec: torch.stack([state_of(model, row, 1, "last_prompt") for row in range(3)])}
    with steering(model, method, policy="all") as s, s.rows(context=given):
        found = generate(model, prompts(model).batch())
    assert_rows(model, method, "all", found, [0, 1, 2])
    assert s.stats.context_passes == 0


def test_a_method_that_says_nothing_is_the_unsteered_model_and_a_constant_one_the_mean(model):
    inputs = prompts(model).batch()
    plain = generate(model, inputs)[1]
    with steering(model, Linear(0, [1], weight=torch.zeros(WIDTH, WIDTH)), policy="all"):
        assert torch.equal(generate(model, inputs)[1], plain)
    constant = vectors(1)

    class Constant(Linear):
        def vectors(self, context, sample_ids):
            return {1: constant[1].expand(len(context[self.spec]), WIDTH)}

    with steering(model, Constant(0, [1]), policy="all"):
        first = generate(model, inputs)[1]
    with steering(model, MeanSteerer(constant), policy="all"):
        assert torch.equal(first, generate(model, inputs)[1])


def test_a_pass_stops_after_the_block_it_reads_and_reads_no_image_again(model):
    adapter, counts = find_adapter(model), {}
    places = {"tower": adapter.vision_tower, "head": adapter.lm_head, 0: adapter.blocks[0], 1: adapter.blocks[1]}

    def count(name):
        return lambda *_: counts.update({name: counts.get(name, 0) + 1})

    handles = [module.register_forward_hook(count(name)) for name, module in places.items()]
    try:
        with steering(model, Linear(0, [0, 1]), policy="all", context="pass"):
            generate(model, prompts(model).batch())
    finally:
        for handle in handles:
            handle.remove()
    assert counts == {"tower": 1, "head": NEW, 0: NEW + 1, 1: NEW}


def test_a_prompt_without_the_token_that_is_read_is_an_error(model):
    with pytest.raises(ValueError, match="row 1 of the batch"):
        with steering(model, Linear(0, [0], "mean_image"), policy="all"):
            generate(model, prompts(model).batch())


def test_an_unknown_context_token_is_refused():
    with pytest.raises(ValueError, match="last_prompt"):
        ContextSpec(0, "first")
