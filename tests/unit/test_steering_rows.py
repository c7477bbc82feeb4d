"""Promises about rows: samples keep their own vectors and coefficients in batches, beams and return sequences."""

from __future__ import annotations

import pytest
import torch

from hacl.steering import MeanSteerer, TableSteerer, steering
from tests.reference.steering_inputs import WIDTH, generate, load, prompts, vectors

IDS = ["first", "second", "third"]

pytestmark = pytest.mark.filterwarnings("error::hacl.steering.SteeringWarning")


@pytest.fixture(scope="module", params=["llava", "fast_vlm"])
def model(request):
    return load(request.getfixturevalue(f"tiny_{request.param}"))


def table(**common):
    return TableSteerer(vectors(0, 1, rows=3), IDS, **common)


def alone(model, row, policy="all", alpha=1.0, **settings):
    """One sample under its own vector as a constant."""
    own = {layer: value[row] for layer, value in vectors(0, 1, rows=3).items()}
    with steering(model, MeanSteerer(own), policy=policy, alpha=alpha):
        return generate(model, prompts(model).batch([row]), **settings)


def test_vectors_are_looked_up_by_id_and_rows_may_be_permuted(model):
    order = [2, 0, 1]
    with steering(model, table(), policy="all") as s, s.rows(sample_ids=[IDS[row] for row in order]):
        tokens, logits = generate(model, prompts(model).batch(order))
    for at, row in enumerate(order):
        expected = alone(model, row)
        assert torch.equal(tokens[at], expected[0][0])
        torch.testing.assert_close(logits[at], expected[1][0], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("policy", ("all", "generated", "last-2", "image"))
@pytest.mark.parametrize("cached", (True, False))
def test_beams_of_a_batch_are_the_beams_of_each_sample(model, policy, cached):
    settings = {"num_beams": 3, "max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    settings["suppress_tokens"] = [model.config.image_token_id]  # a stock model asks for its features without a cache
    rows = [0, 2] if policy == "image" else [0, 1, 2]
    with steering(model, table(), policy=policy) as s, s.rows(sample_ids=[IDS[row] for row in rows]):
        found = model.generate(**prompts(model).batch(rows), **settings, use_cache=cached)[:, -5:]
    for at, row in enumerate(rows):
        own = {layer: value[row] for layer, value in vectors(0, 1, rows=3).items()}
        with steering(model, MeanSteerer(own), policy=policy):
            expected = model.generate(**prompts(model).batch([row]), **settings)[:, -5:]
        assert torch.equal(found[at], expected[0])


def test_one_beam_is_greedy(model):
    with steering(model, table()) as s, s.rows(sample_ids=IDS):
        inputs = prompts(model).batch()
        first = model.generate(**inputs, num_beams=1, max_new_tokens=5, do_sample=False)
        second = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert torch.equal(first, second)


def test_return_sequences_keep_their_samples_vector(model):
    """All returned sequences of a sample are steered alike: their first logits are the sample's own."""
    with steering(model, table()) as s, s.rows(sample_ids=IDS):
        torch.manual_seed(0)
        _, logits = generate(model, prompts(model).batch(), do_sample=True, num_return_sequences=2, new=2)
    for row in range(3):
        expected = alone(model, row, new=2)[1][0, 0]
        for copy in (2 * row, 2 * row + 1):
            torch.testing.assert_close(logits[copy, 0], expected, atol=2e-5, rtol=1e-5)


def test_beams_that_are_returned_or_sampled_keep_theirs(model):
    with steering(model, table()) as s, s.rows(sample_ids=IDS):
        found = model.generate(**prompts(model).batch(), num_beams=2, num_return_sequences=2, max_new_tokens=4)
        torch.manual_seed(1)
        sampled = model.generate(**prompts(model).batch(), num_beams=2, do_sample=True, max_new_tokens=4)
    assert found.shape[0] == 6 and sampled.shape[0] == 3
    first = alone(model, 1, num_beams=2, num_return_sequences=2, new=4)
    assert first[0].shape[0] == 2


def test_coefficients_per_row_are_separate_runs_and_zero_leaves_a_row_alone(model):
    alphas = [0.0, -1.0, 1.5]
    inputs = prompts(model).batch()
    plain = generate(model, inputs)
    with steering(model, table(), alpha=alphas) as s, s.rows(sample_ids=IDS):
        tokens, logits = generate(model, inputs)
    assert torch.equal(logits[0], plain[1][0])
    for row in (1, 2):
        expected = alone(model, row, alpha=alphas[row])
        assert torch.equal(tokens[row], expected[0][0])
        torch.testing.assert_close(logits[row], expected[1][0], atol=2e-5, rtol=1e-5)


def test_one_prompt_at_three_strengths_is_one_batch(model):
    inputs = prompts(model).batch([0], copies=3)
    with steering(model, MeanSteerer(vectors(0))) as s, s.rows(alpha=[-1, 0, 1]):
        _, logits = generate(model, inputs)
    for row, alpha in enumerate((-1.0, 0.0, 1.0)):
        with steering(model, MeanSteerer(vectors(0)), alpha=alpha):
            expected = generate(model, prompts(model).batch([0]))[1][0]
        torch.testing.assert_close(logits[row], expected, atol=2e-5, rtol=1e-5)


def test_alpha_set_between_calls_counts_from_the_next_sequence(model):
    inputs = prompts(model).batch([1])
    with steering(model, MeanSteerer(vectors(0)), alpha=0.0) as s:
        first = generate(model, inputs)[1]
        s.alpha = 1.0
        second = generate(model, inputs)[1]
    assert not torch.equal(first, second)
    with steering(model, MeanSteerer(vectors(0))):
        assert torch.equal(second, generate(model, inputs)[1])


def test_equal_vectors_in_a_table_are_a_constant_vector(model):
    value = vectors(0)
    equal = TableSteerer({0: value[0].expand(3, WIDTH)}, IDS)
    with steering(model, equal) as s, s.rows(sample_ids=IDS):
        first = generate(model, prompts(model).batch())
    with steering(model, MeanSteerer(value)):
        second = generate(model, prompts(model).batch())
    assert torch.equal(first[1], second[1])


def test_ids_that_are_unknown_or_missing_are_errors(model):
    with steering(model, table(), alpha=1.0) as s:
        with pytest.raises(ValueError, match="'nobody'"), s.rows(sample_ids=["first", "nobody", "third"]):
            generate(model, prompts(model).batch())
        with pytest.raises(ValueError, match="sample_ids"):
            generate(model, prompts(model).batch())
        with pytest.raises(ValueError, match="for 3 samples"), s.rows(sample_ids=["first", "second"]):
            generate(model, prompts(model).batch())
        with pytest.raises(ValueError, match="3 vectors .*for 2 samples in 6 rows"), s.rows(sample_ids=IDS):
            generate(model, prompts(model).batch([0, 1]), num_beams=3)
        s.alpha = 0.0


@pytest.mark.parametrize("alpha", ([1.0, 2.0], float("nan"), [[1.0]], []))
def test_coefficients_that_do_not_fit_are_errors(model, alpha):
    with pytest.raises(ValueError, match="coefficients|alpha"):
        with steering(model, MeanSteerer(vectors(0)), alpha=alpha):
            generate(model, prompts(model).batch())


def test_a_table_refuses_an_id_twice_and_rows_without_ids():
    with pytest.raises(ValueError, match="'a' occurs twice"):
        TableSteerer({0: torch.ones(2, WIDTH)}, ["a", "a"])
    with pytest.raises(ValueError, match="2 rows for 1"):
        TableSteerer({0: torch.ones(2, WIDTH)}, ["a"])
