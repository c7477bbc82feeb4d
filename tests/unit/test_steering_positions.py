"""Promises about positions: whatever the padding, the cache and the cut of the prompt, the same tokens are steered."""

from __future__ import annotations

import pytest
import torch

from hacl.models.adapters import find_adapter
from hacl.steering import MeanSteerer, PositionPolicy, steering
from tests.reference import steering_steps as twin
from tests.reference.steering_inputs import NEW, generate, load, prompts, vectors

POLICIES = ("all", "prompt", "generated", "last-1", "last-3", "text", "image")

pytestmark = pytest.mark.filterwarnings("error::hacl.steering.SteeringWarning")


@pytest.fixture(scope="module", params=["llava", "fast_vlm"])
def model(request):
    return load(request.getfixturevalue(f"tiny_{request.param}"))


@pytest.fixture(scope="module")
def expected(model):
    """(tokens, logits) of the twin per policy and row, and the unsteered ones under None; computed when asked for."""
    rows, known = prompts(model), {}

    def of(policy: str | None, row: int):
        if (policy, row) not in known:
            ids, image = rows.ids[row], rows.image(row)
            change = policy and twin.adding(vectors(0, 1), 0.7, policy, len(ids), image)
            with torch.no_grad():
                known[policy, row] = twin.greedy(model, ids, rows.pixels[row], change, NEW)
        return known[policy, row]

    return of


def assert_equal(model, expected, policy, found, rows):
    tokens, logits = found
    for at, row in enumerate(rows):
        ids, reference = expected(policy, row)
        assert tokens[at].tolist() == ids
        torch.testing.assert_close(logits[at], reference, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_padded_batch_with_cache_equals_each_row_alone_token_by_token(model, expected, policy):
    with steering(model, MeanSteerer(vectors(0, 1)), alpha=0.7, policy=policy):
        assert_equal(model, expected, policy, generate(model, prompts(model).batch()), [0, 1, 2])


@pytest.mark.parametrize("policy", POLICIES)
def test_without_a_cache_nothing_changes(model, expected, policy):
    with steering(model, MeanSteerer(vectors(0, 1)), alpha=0.7, policy=policy):
        assert_equal(model, expected, policy, generate(model, prompts(model).batch(), use_cache=False), [0, 1, 2])


@pytest.mark.parametrize("policy", ("prompt", "last-3", "text", "image"))
def test_a_static_cache_changes_nothing(model, expected, policy):
    with steering(model, MeanSteerer(vectors(0, 1)), alpha=0.7, policy=policy):
        found = generate(model, prompts(model).batch(), cache_implementation="static")
    assert_equal(model, expected, policy, found, [0, 1, 2])


@pytest.mark.parametrize("chunk", (1, 3))
@pytest.mark.parametrize("policy", POLICIES[:-1])
def test_a_prompt_in_chunks_equals_a_whole_one(model, expected, policy, chunk):
    rows = [0, 1, 2] if model.config.model_type == "llava" else [1]  # transformers cannot cut FastVLM's images
    with steering(model, MeanSteerer(vectors(0, 1)), alpha=0.7, policy=policy):
        found = generate(model, prompts(model).batch(rows), prefill_chunk_size=chunk)
    assert_equal(model, expected, policy, found, rows)


@pytest.mark.parametrize("policy", POLICIES)
def test_sampling_under_a_seed_is_the_same_with_and_without_cache(model, policy):
    found = []
    for cached in (True, False):
        torch.manual_seed(3)
        with steering(model, MeanSteerer(vectors(0, 1)), policy=policy):
            found.append(generate(model, prompts(model).batch(), do_sample=True, use_cache=cached)[0])
    assert torch.equal(*found)


def test_every_policy_matters_to_the_logits(model, expected):
    """Otherwise the equalities above would hold for a session that does nothing."""
    seen = [expected(policy, 0)[1] for policy in (None, *POLICIES)]
    for i, first in enumerate(seen):
        assert all((first - other).abs().max() > 1e-2 for other in seen[i + 1 :])


@pytest.mark.parametrize("side", ("left", "right"))
@pytest.mark.parametrize("policy", POLICIES)
def test_a_plain_forward_over_prompt_and_answer_steers_the_same_positions(model, side, policy):
    rows = prompts(model)
    inputs, given = rows.batch(side=side), [len(ids) - 3 for ids in rows.ids]
    order = inputs["attention_mask"].cumsum(1) - 1
    with torch.no_grad(), steering(model, MeanSteerer(vectors(0, 1)), policy=policy) as s, s.rows(prompt_lengths=given):
        logits = model(**inputs, position_ids=order.clamp_min(0)).logits
    for row, ids in enumerate(rows.ids):
        change = twin.adding(vectors(0, 1), 1.0, policy, given[row], rows.image(row))
        with torch.no_grad():
            reference, _ = twin.forward(model, ids, rows.pixels[row], change)
        found = logits[row][inputs["attention_mask"][row].bool()]
        torch.testing.assert_close(found, reference, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_difference_at_the_steered_block_is_the_vector_there_and_nothing_elsewhere(model, policy):
    rows, vector = prompts(model), vectors(1)[1]
    inputs, given = rows.batch(), [len(ids) - 2 for ids in rows.ids]
    blocks = find_adapter(model).blocks

    def states():
        found = {}
        handles = [b.register_forward_hook(lambda m, a, o, i=i: found.update({i: o})) for i, b in enumerate(blocks)]
        with torch.no_grad():
            model(**inputs)
        for handle in handles:
            handle.remove()
        return found

    before = states()
    with steering(model, MeanSteerer({1: vector}), alpha=0.5, policy=policy) as s, s.rows(prompt_lengths=given):
        after = states()
    assert torch.equal(before[0], after[0])
    order = inputs["attention_mask"].cumsum(1) - 1
    for row in range(len(rows.ids)):
        for column, position in enumerate(order[row].tolist()):
            attended = bool(inputs["attention_mask"][row, column])
            steered = attended and twin.is_steered(policy, position, given[row], rows.image(row))
            expected = before[1][row, column] + 0.5 * vector if steered else before[1][row, column]
            assert torch.equal(after[1][row, column], expected)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_trace_names_the_positions_really_steered(model, policy):
    rows = prompts(model)
    with steering(model, MeanSteerer(vectors(1)), policy=policy, trace=True) as s:
        generate(model, rows.batch())
    total = 0
    for row, ids in enumerate(rows.ids):
        length, image = len(ids), rows.image(row)
        positions = [p for p in range(length + NEW - 1) if twin.is_steered(policy, p, length, image)]
        assert s.trace.positions(1, row) == positions
        total += len(positions)
    assert s.stats.positions == ({1: total} if total else {})


def test_a_mask_of_ones_own_steers_its_columns(model):
    rows = prompts(model)
    inputs = rows.batch()
    mask = torch.zeros_like(inputs["attention_mask"], dtype=torch.bool)
    mask[:, -4:-1] = True
    mask[2, 1] = True
    with steering(model, MeanSteerer(vectors(0)), policy=mask):
        tokens, logits = generate(model, inputs)
    for row, ids in enumerate(rows.ids):
        pads = inputs["input_ids"].shape[1] - len(ids)
        chosen = [column - pads for column in mask[row].nonzero().flatten().tolist()]

        def change(layer, position, state, chosen=chosen):
            return state + vectors(0)[0] if layer == 0 and position in chosen else state

        with torch.no_grad():
            reference = twin.greedy(model, ids, rows.pixels[row], change, NEW)
        assert tokens[row].tolist() == reference[0]
        torch.testing.assert_close(logits[row], reference[1], atol=2e-5, rtol=1e-5)


def test_token_by_token_decoding_by_hand_is_followed_through_its_cache(model, expected):
    rows = prompts(model)
    with torch.no_grad(), steering(model, MeanSteerer(vectors(0, 1)), alpha=0.7, policy="last-3"):
        output = model(**rows.batch([0]), use_cache=True)
        tokens = [int(output.logits[0, -1].argmax())]
        while len(tokens) < NEW:
            step = torch.tensor([[tokens[-1]]])
            output = model(input_ids=step, past_key_values=output.past_key_values, use_cache=True)
            tokens.append(int(output.logits[0, -1].argmax()))
    assert tokens == expected("last-3", 0)[0]


@pytest.mark.parametrize("word", ("everything", "last-0", "last-", "custom", "last--1"))
def test_an_unknown_policy_is_refused_with_the_known_ones(word):
    with pytest.raises(ValueError, match="last-1"):
        PositionPolicy.parse(word)


def test_a_mask_must_be_boolean_with_two_axes():
    for wrong in (torch.ones(2, 3), torch.ones(3, dtype=torch.bool)):
        with pytest.raises(ValueError, match="boolean"):
            PositionPolicy.parse(wrong)
