"""Promises about steerers that look at states: concept shifts, low-rank maps, and shifts at the final norm."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hacl.models.adapters import find_adapter
from hacl.models.identity import fingerprint
from hacl.steering import (
    ConceptSteerer,
    LowRankSteerer,
    MeanSteerer,
    Provenance,
    load_steerer,
    save_steerer,
    steering,
    typical_temperature,
    typical_threshold,
)  # fmt: skip
from hacl.steering.concept import squared_distances
from tests.reference import steering_steps as twin
from tests.reference.steering_inputs import NEW, WIDTH, generate, load, prompts, vectors

pytestmark = pytest.mark.filterwarnings("error::hacl.steering.SteeringWarning")
K = 3
RULES = {
    "hard": {}, "soft": {"mode": "soft", "temperature": 8.0}, "gated": {"mode": "gated", "threshold": 0.21},
    "soft_gated": {"mode": "soft", "temperature": 8.0, "threshold": 0.21},
}  # fmt: skip


@pytest.fixture(scope="module", params=["llava", "fast_vlm"])
def model(request):
    return load(request.getfixturevalue(f"tiny_{request.param}"))


@pytest.fixture(scope="module")
def states(model):
    """(N, D) unsteered states after block 0, of all rows."""
    rows = prompts(model)
    with torch.no_grad():
        return torch.cat([twin.forward(model, ids, rows.pixels[i])[1][0] for i, ids in enumerate(rows.ids)])


@pytest.fixture(scope="module")
def tables(states):
    """Centres that are states of the model, and a shift for each."""
    centres = states[torch.tensor([0, len(states) // 2, len(states) - 1])]
    return {0: centres}, {0: vectors(0, seed=4, rows=K)[0]}


def expected_step(state, centres, shifts, rule):
    """The rule in words, for one state."""
    squared = [float(((state - centre).double() ** 2).sum()) for centre in centres]
    if 1 / (1 + min(squared) ** 0.5) <= rule.get("threshold", 0.0):
        return torch.zeros(WIDTH)
    if rule.get("mode") != "soft":
        return shifts[squared.index(min(squared))]
    weights = np.exp(-(np.array(squared) - min(squared)) / rule["temperature"])
    return sum(float(w) * shift for w, shift in zip(weights / weights.sum(), shifts, strict=True))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("policy", ("all", "last-2", "image"))
def test_each_state_gets_the_shift_of_its_own_concept(model, tables, name, policy):
    rule, rows, which = RULES[name], prompts(model), [0, 2]
    with steering(model, ConceptSteerer(*tables, **rule), alpha=0.7, policy=policy):
        tokens, logits = generate(model, rows.batch(which))
    for at, row in enumerate(which):
        length, image = len(rows.ids[row]), rows.image(row)

        def change(layer, position, state, length=length, image=image):
            if layer != 0 or not twin.is_steered(policy, position, length, image):
                return state
            return state + 0.7 * expected_step(state, tables[0][0], tables[1][0], rule)

        with torch.no_grad():
            reference = twin.greedy(model, rows.ids[row], rows.pixels[row], change, NEW)
        assert tokens[at].tolist() == reference[0]
        torch.testing.assert_close(logits[at], reference[1], atol=5e-5, rtol=1e-4)


def test_the_rules_differ_where_the_equalities_are_tested(states, tables):
    steps = [
        torch.stack([expected_step(s, tables[0][0], tables[1][0], rule) for s in states]) for rule in RULES.values()
    ]
    for i, first in enumerate(steps):
        assert all((first - other).abs().max() > 1e-2 for other in steps[i + 1 :])


@pytest.mark.parametrize("cached", (True, False))
@pytest.mark.parametrize("name", RULES)
def test_a_frozen_concept_is_that_of_the_unsteered_last_prompt_state(model, tables, name, cached):
    rows, rule = prompts(model), RULES[name]
    method = ConceptSteerer(*tables, assign="last_prompt", **rule)
    with steering(model, method, policy="all") as s:
        tokens, logits = generate(model, rows.batch(), use_cache=cached)
    assert s.stats.context_passes == 0
    for row, ids in enumerate(rows.ids):
        with torch.no_grad():
            last = twin.forward(model, ids, rows.pixels[row])[1][0][-1]
            step = expected_step(last, tables[0][0], tables[1][0], rule)
            change = twin.adding({0: step}, 1.0, "all", len(ids), rows.image(row))
            reference = twin.greedy(model, ids, rows.pixels[row], change, NEW)
        assert tokens[row].tolist() == reference[0]
        torch.testing.assert_close(logits[row], reference[1], atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("assign", ("state", "last_prompt"))
@pytest.mark.parametrize("cached", (True, False))
def test_beams_of_a_batch_are_the_beams_of_each_sample(model, tables, assign, cached):
    settings = {"num_beams": 3, "max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "use_cache": cached}
    settings["suppress_tokens"] = [model.config.image_token_id]  # a stock model asks for its features without a cache
    method = ConceptSteerer(*tables, assign=assign)
    with steering(model, method, policy="last-2"):
        found = model.generate(**prompts(model).batch(), **settings)[:, -4:]
        for row in range(3):
            assert torch.equal(found[row], model.generate(**prompts(model).batch([row]), **settings)[0, -4:])


@pytest.mark.parametrize("policy", ("all", "prompt", "generated", "last-1", "text"))
def test_sampling_under_a_seed_is_the_same_with_and_without_cache(model, tables, states, policy):
    for method in (ConceptSteerer(*tables), low_rank(states, rank=4)):
        found = []
        for cached in (True, False):
            torch.manual_seed(3)
            with steering(model, method, policy=policy):
                found.append(generate(model, prompts(model).batch(), do_sample=True, use_cache=cached)[0])
        assert torch.equal(*found)


def block_output(model, inputs, layer):
    found = []
    handle = find_adapter(model).blocks[layer].register_forward_hook(lambda m, a, o: found.append(o))
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    return found[0]


@pytest.mark.parametrize("assign", ("state", "last_prompt"))
def test_preserving_norms_keeps_lengths_and_a_closed_gate_keeps_bits(model, tables, assign):
    inputs = prompts(model).batch()
    before = block_output(model, inputs, 0)
    attended = inputs["attention_mask"].bool()
    rule = {"mode": "gated", "assign": assign, "norm": "preserve"}
    with steering(model, ConceptSteerer(*tables, threshold=1e-6, **rule)):
        opened = block_output(model, inputs, 0)
    torch.testing.assert_close(opened.norm(dim=-1), before.norm(dim=-1), atol=1e-4, rtol=1e-5)
    assert (opened - before)[attended].norm(dim=-1).min() > 1e-2
    assert torch.equal(opened[~attended], before[~attended])
    with steering(model, ConceptSteerer(*tables, threshold=2.0, **rule)):
        assert torch.equal(block_output(model, inputs, 0), before)


@pytest.mark.parametrize("policy", ("prompt", "generated", "last-1", "text", "image"))
@pytest.mark.parametrize("make", ("concept", "lowrank"))
def test_positions_outside_the_policy_and_pads_keep_their_bits(model, tables, states, policy, make):
    rows = prompts(model)
    inputs, given = rows.batch(), [len(ids) - 2 for ids in rows.ids]
    method = ConceptSteerer(*tables) if make == "concept" else low_rank(states, rank=4)
    before = block_output(model, inputs, 0)
    with steering(model, method, policy=policy) as s, s.rows(prompt_lengths=given):
        after = block_output(model, inputs, 0)
    moved = (after != before).any(-1)
    for row, ids in enumerate(rows.ids):
        pads = inputs["input_ids"].shape[1] - len(ids)
        steered = [twin.is_steered(policy, p, given[row], rows.image(row)) for p in range(len(ids))]
        assert moved[row].tolist() == [False] * pads + steered


@pytest.mark.parametrize("make", ("concept", "frozen", "lowrank", "final"))
def test_alpha_zero_and_the_time_after_are_the_unsteered_bits(model, tables, states, make):
    method = {
        "concept": ConceptSteerer(*tables, norm="preserve"), "frozen": ConceptSteerer(*tables, assign="last_prompt"),
        "lowrank": low_rank(states, rank=2), "final": MeanSteerer({"final_norm": vectors(0)[0]}),
    }[make]  # fmt: skip
    inputs = prompts(model).batch()
    before = generate(model, inputs)[1]
    with steering(model, method, alpha=0.0):
        assert torch.equal(generate(model, inputs)[1], before)
    with steering(model, method, alpha=1.0):
        assert not torch.equal(generate(model, inputs)[1], before)
    assert torch.equal(generate(model, inputs)[1], before)


def low_rank(states, rank, ridge=1e-6, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return LowRankSteerer.fit({0: (states, states + torch.randn(states.shape, generator=draw))}, rank=rank, ridge=ridge)


def planted_pairs(rank=2, rows=400, width=12, noise=0.0):
    draw = np.random.default_rng(3)
    a = draw.normal(size=(rows, width)) * np.linspace(1, 3, width)
    weights = draw.normal(size=(width, rank)) @ draw.normal(size=(rank, width))
    return a, a + 0.5 + (a - 1.0) @ weights + noise * draw.normal(size=a.shape), weights


def test_a_planted_low_rank_map_is_recovered_at_its_rank_and_not_below():
    a, b, weights = planted_pairs()
    h = torch.as_tensor(a[:50], dtype=torch.float32)
    errors = {}
    for rank in (1, 2, 4):
        found = LowRankSteerer.fit({0: (a, b)}, rank=rank, ridge=1e-8)
        errors[rank] = float(((h + found.step(0, h)) - torch.as_tensor(b[:50])).abs().max())
    assert errors[2] < 1e-3 and errors[4] < 1e-3 and errors[1] > 0.5


def test_the_reduced_rank_fit_is_the_best_of_its_rank_on_its_own_data():
    """Against projecting the full ridge fit on the leading singular vectors of the weights, which is not optimal."""
    a, b, _ = planted_pairs(rank=6, noise=0.5)
    centred, delta = a - a.mean(0), (b - a) - (b - a).mean(0)
    ridge = 0.1 * np.trace(centred.T @ centred) / a.shape[1]
    full = np.linalg.solve(centred.T @ centred + ridge * np.eye(12), centred.T @ delta)

    def loss(weights):
        return ((delta - centred @ weights) ** 2).sum() + ridge * (weights**2).sum()

    left, scale, right = np.linalg.svd(full)
    found = LowRankSteerer.fit({0: (a, b)}, rank=2, ridge=0.1).parts
    fitted = (found["down"][0] @ found["up"][0]).double().numpy()
    assert np.linalg.matrix_rank(fitted, tol=1e-4) == 2
    assert loss(full) < loss(fitted) < loss(left[:, :2] * scale[:2] @ right[:2])


def test_a_shift_at_the_final_norm_is_a_constant_addition_to_the_logits(model):
    delta, inputs = vectors(0, seed=9)[0], prompts(model).batch()
    adapter = find_adapter(model)
    with torch.no_grad():
        before = model(**inputs).logits
        with steering(model, MeanSteerer({"final_norm": delta}), alpha=0.5) as s:
            after = model(**inputs).logits
    attended = inputs["attention_mask"].bool()
    bias = 0.5 * adapter.lm_head.weight.detach() @ delta
    torch.testing.assert_close((after - before)[attended], bias.expand(int(attended.sum()), -1), atol=1e-4, rtol=1e-4)
    assert torch.equal(after[~attended], before[~attended])
    assert [layer.index for layer in s.layers.values()] == [len(adapter.blocks)]


def test_the_final_norm_is_named_only_by_its_name(model):
    with pytest.raises(ValueError, match="0 to 1"):
        steering(model, MeanSteerer({2: vectors(0)[0]}))
    with steering(model, MeanSteerer({-1: vectors(0)[0]}), alpha=0.0) as s:
        assert list(s.layers) == [1]


def test_several_layers_keep_their_own_tables_and_are_read_in_one_pass_where_that_is_exact(model, tables):
    centres, shifts = tables[0] | {1: tables[0][0] + 1}, tables[1] | {1: -tables[1][0]}
    inputs = prompts(model).batch()
    with steering(model, ConceptSteerer(centres, shifts)), torch.no_grad():
        both = model(**inputs).logits
    with (
        steering(model, ConceptSteerer({0: centres[0]}, {0: shifts[0]})),
        steering(model, ConceptSteerer({1: centres[1]}, {1: shifts[1]})),
        torch.no_grad(),
    ):
        assert torch.equal(model(**inputs).logits, both)
    with steering(model, ConceptSteerer(centres, shifts, assign="last_prompt"), policy="all") as s:
        generate(model, inputs)
    assert s.stats.context_passes == 1


@pytest.mark.parametrize("name", [*RULES, "frozen", "lowrank", "per_layer"])
def test_each_comes_back_from_its_artefact_as_it_was(tiny_llava, tmp_path, name):
    centres, shifts = vectors(0, seed=1, rows=K), vectors(0, seed=2, rows=K)
    if name == "lowrank":
        steerer = low_rank(vectors(0, seed=1, rows=20)[0], rank=3)
    elif name == "per_layer":
        steerer = ConceptSteerer(
            centres | {"final_norm": centres[0]}, shifts | {"final_norm": shifts[0]}, mode="soft",
            temperature={0: 2.0, "final_norm": 3.0}, norm="clip", alpha=0.5, policy="generated",
        )  # fmt: skip
    else:
        steerer = ConceptSteerer(centres, shifts, **RULES.get(name, {"assign": "last_prompt"}))
    provenance = Provenance.of(tiny_llava, token_rule="mean of the answer", config={})
    back = load_steerer(save_steerer(steerer, tmp_path, provenance), model=tiny_llava)
    steerer.model = fingerprint(tiny_llava)
    assert type(back) is type(steerer) and back.fingerprint() == steerer.fingerprint()
    h = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1))
    for layer in steerer.layers:
        assert torch.equal(back.step(layer, h), steerer.step(layer, h))


def test_bf16_states_stay_bf16_and_the_concept_is_found_in_fp32(tables):
    method = ConceptSteerer(*tables)
    h = (tables[0][0] + 0.01)[None].bfloat16()
    torch.testing.assert_close(method.step(0, h.float())[0], tables[1][0])
    from hacl.steering import Shift

    moved = method.adjust(0, h, Shift(torch.zeros(1, 1, WIDTH), torch.ones(1, 1, 1), key=0), None)
    assert moved.dtype == torch.bfloat16


def test_distances_are_right_where_states_are_long_and_near():
    centres = 1000 + torch.tensor([[0.0] * WIDTH, [0.01] * WIDTH])
    squared = squared_distances(centres + 0.001, centres)
    assert squared.argmin(-1).tolist() == [0, 1]


def test_typical_settings_speak_of_the_states_they_were_measured_on(states, tables):
    centres = tables[0][0]
    nearest = torch.cdist(states.double(), centres.double()).amin(-1)
    assert typical_temperature(states, centres) == pytest.approx(float((nearest**2).mean()), rel=1e-4)
    threshold = typical_threshold(states, centres, share=0.25)
    assert float((1 / (1 + nearest) > threshold).float().mean()) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"mode": "warm"}, "hard, soft, gated"), ({"mode": "soft"}, "temperature"), ({"mode": "gated"}, "threshold"),
     ({"threshold": 0.5}, "threshold"), ({"mode": "soft", "temperature": 0.0}, "positive"),
     ({"mode": "soft", "temperature": {1: 1.0}}, "each of the layers"), ({"norm": "unit", "norms": {0: 1.0}}, "unit"),
     ({"assign": "first"}, "last_prompt")],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(tables, settings, message):
    with pytest.raises(ValueError, match=message):
        ConceptSteerer(*tables, **settings)


def test_tables_and_pairs_that_do_not_fit_are_refused():
    value = torch.ones(K, WIDTH)
    with pytest.raises(ValueError, match="both for each"):
        ConceptSteerer({0: value}, {1: value})
    with pytest.raises(ValueError, match="one shift per centre"):
        ConceptSteerer({0: value}, {0: value[:2]})
    with pytest.raises(ValueError, match="the same"):
        LowRankSteerer.fit({0: (np.ones((3, 4)), np.ones((2, 4)))}, rank=1)
    with pytest.raises(ValueError, match="rank=9"):
        LowRankSteerer.fit({0: (np.ones((3, 4)), np.ones((3, 4)))}, rank=9)
