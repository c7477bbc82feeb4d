"""Promises about FlexAC's operator: its gates, its norm, its dial, and what it leaves alone."""

from __future__ import annotations

import math

import pytest
import torch

from hacl.models.adapters import find_adapter
from hacl.steering import FlexACSteerer, MeanSteerer, Provenance, Shift, load_steerer, save_steerer, steering
from hacl.steering.calibrated import Gate, recording
from hacl.steering.vectors import ArtefactError
from tests.reference.steering_inputs import NEW, WIDTH, generate, hook_count, load, prompts, vectors

D = 16


@pytest.fixture(scope="module", params=["llava", "fast_vlm"])
def model(request):
    return load(request.getfixturevalue(f"tiny_{request.param}"))


def draw(*shape, seed=0, size=1.0):
    return size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def steer(h_RTD, alpha, **settings):
    """The operator alone: one direction, drawn with seed 9 unless given."""
    steerer = FlexACSteerer({0: settings.pop("v", draw(D, seed=9))}, **settings)
    shift = Shift(steerer.vectors({}, None)[0][None, None], torch.as_tensor(alpha).reshape(-1, 1, 1).float(), 0)
    return steerer.adjust(0, h_RTD, shift, None)


def scalar_steer(h, v, c, gain):
    """One state, number by number: w = c v, f = h + sigmoid(gain * max(-cos(h, w), 0)) w, at the length of h."""
    w = [c * x for x in v]
    long_h, long_w = math.sqrt(sum(x * x for x in h)), math.sqrt(sum(x * x for x in w))
    cosine = sum(x * y for x, y in zip(h, w, strict=True)) / (long_h * long_w)
    gate = 1 / (1 + math.exp(-gain * max(-cosine, 0.0)))
    moved = [x + gate * y for x, y in zip(h, w, strict=True)]
    long = max(math.sqrt(sum(x * x for x in moved)), 1e-8)
    return [x * long_h / long for x in moved]


@pytest.mark.parametrize(
    "cosine, paper, released",
    [(0.3, 0.5, 0.5), (0.0, 0.5, 0.5), (-0.01, 0.502, 0.731), (-0.02, 0.505, 0.881), (-0.05, 0.512, 0.993)],
)
def test_the_gates_have_the_published_values(cosine, paper, released):
    assert Gate("paper")(torch.tensor(cosine)).item() == pytest.approx(paper, abs=6e-4)
    assert Gate("released")(torch.tensor(cosine)).item() == pytest.approx(released, abs=6e-4)
    assert 0.5 <= Gate("released")(torch.linspace(-1, 1, 401)).min() and Gate("paper")(torch.tensor(-1.0)) < 0.7311


@pytest.mark.parametrize("gate, gain", [("paper", 1.0), ("released", 100.0)])
@pytest.mark.parametrize("c", [-1.5, 0.25, 1.0])
def test_it_is_the_published_formula_state_by_state(gate, gain, c):
    h_RTD, v = draw(3, 4, D), draw(D, seed=9)
    expected = [[scalar_steer(h.tolist(), v.tolist(), c, gain) for h in row] for row in h_RTD]
    torch.testing.assert_close(steer(h_RTD, c, v=v, gate=gate), torch.tensor(expected), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_lengths_are_kept(dtype, tolerance):
    h_RTD = draw(4, 5, D, size=3.0).to(dtype)
    for gate in ("paper", "released", "hinge", "const"):
        after = steer(h_RTD, 2.0, gate=gate)
        assert after.dtype == dtype
        assert (after.float().norm(dim=-1) / h_RTD.float().norm(dim=-1) - 1).abs().max() < tolerance


def test_zero_states_zero_directions_and_a_zero_dial_are_harmless():
    h_RTD = draw(2, 3, D)
    h_RTD[0, 1] = 0
    assert torch.isfinite(steer(h_RTD, 1.0)).all() and not steer(h_RTD, 1.0)[0, 1].any()
    assert torch.equal(steer(h_RTD, 1.0, v=torch.zeros(D)), h_RTD) and torch.equal(steer(h_RTD, 0.0), h_RTD)


def test_the_dial_turns_one_way():
    h_RTD, v = draw(1, 50, D), draw(D, seed=9)
    for settings in ({"gate": "released"}, {"gate": "soft", "gain": 10.0, "max_angle": 30.0}):
        along = torch.stack([steer(h_RTD, c, v=v, **settings) @ v for c in torch.linspace(-4, 4, 161).tolist()])
        assert (along.diff(dim=0) >= -1e-5).all() and (along[-1] > along[0] + 0.1).all()


def test_minus_the_dial_with_minus_the_direction_is_the_same():
    h_RTD, v = draw(2, 3, D), draw(D, seed=9)
    assert torch.equal(steer(h_RTD, 0.7, v=v), steer(h_RTD, -0.7, v=-v))


def test_a_soft_gate_leaves_an_aligned_state_bit_for_bit():
    v = draw(D, seed=9)
    h_RTD = torch.stack([3 * v, -3 * v])[None]
    after = steer(h_RTD, 1.0, v=v, gate="soft", gain=10.0)
    assert torch.equal(after[0, 0], h_RTD[0, 0]) and not torch.equal(after[0, 1], h_RTD[0, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_constant_gate_without_norm_is_plain_addition(dtype):
    h_RTD, v = draw(2, 3, D).to(dtype), draw(D, seed=9)
    plain = MeanSteerer({0: v}).adjust(0, h_RTD, Shift(v[None, None], torch.full((1, 1, 1), 0.3)), None)
    assert torch.equal(steer(h_RTD, 0.3, v=v, gate="const", norm="none"), plain)


def test_several_directions_are_gated_each_by_its_own_angle_or_all_by_their_sum():
    h_RTD, v_JD = draw(1, 4, D), torch.stack([draw(D, seed=1), draw(D, seed=2)])
    both = FlexACSteerer({0: v_JD}, names=("general", "task:story"), weights=(1.0, -0.5), norm="none")
    sums = FlexACSteerer({0: v_JD}, names=both.names, weights=both.weights, norm="none", joint=True)
    shift = Shift(both.vectors({}, None)[0][None, None], torch.ones(1, 1, 1), 0)
    total = v_JD[0] - 0.5 * v_JD[1]
    each, one = torch.zeros_like(h_RTD), torch.zeros_like(h_RTD)
    for t, h in enumerate(h_RTD[0]):
        for w in (v_JD[0], -0.5 * v_JD[1]):
            each[0, t] += torch.sigmoid(100 * torch.relu(-torch.cosine_similarity(h, w, dim=0))) * w
        one[0, t] = torch.sigmoid(100 * torch.relu(-torch.cosine_similarity(h, total, dim=0))) * total
    torch.testing.assert_close(both.adjust(0, h_RTD, shift, None), h_RTD + each)
    torch.testing.assert_close(sums.adjust(0, h_RTD, shift, None), h_RTD + one)


def test_no_state_is_turned_further_than_allowed():
    h_RTD = draw(3, 5, D)
    free, held = steer(h_RTD, 5.0), steer(h_RTD, 5.0, max_angle=20.0)
    angle = torch.rad2deg(torch.arccos(torch.cosine_similarity(h_RTD, held, dim=-1)))
    assert angle.max() < 20.01 and torch.rad2deg(torch.arccos(torch.cosine_similarity(h_RTD, free, dim=-1))).min() > 21
    torch.testing.assert_close(held.norm(dim=-1), h_RTD.norm(dim=-1))
    torch.testing.assert_close(steer(h_RTD, 5.0, max_angle=180.0), free)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"gate": "tanh"}, "expected one of"),
        ({"gate": "soft"}, "need one"),
        ({"gate": "released", "gain": 3.0}, "need one"),
        ({"norm": "unit", "norms": {0: 1.0}}, "scale='rms'"),
        ({"max_angle": 20.0, "norm": "none"}, "max_angle"),
        ({"names": ("a", "b")}, "as many of each"),
        ({"names": ("a", "a"), "v": torch.ones(2, D)}, "its own"),
        ({"v": torch.full((D,), math.nan)}, "not finite"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        steer(draw(1, 1, D), 1.0, **settings)


def test_one_batch_holds_several_turns_of_the_dial_and_zero_is_untouched(model):
    inputs = prompts(model).batch(rows=[0], copies=3)
    steerer = FlexACSteerer(vectors(0, 1))
    unsteered = generate(model, inputs)[1]
    with steering(model, steerer, alpha=[-1.0, 0.0, 1.0]):
        together = generate(model, inputs)[1]
    assert torch.equal(together[1], unsteered[1])
    for row, alpha in ((0, -1.0), (2, 1.0)):
        with steering(model, steerer, alpha=alpha):
            alone = generate(model, prompts(model).batch(rows=[0]))[1]
        torch.testing.assert_close(together[row], alone[0], atol=2e-5, rtol=1e-5)


def test_cache_chunks_padding_and_batch_do_not_matter(model):
    steerer, batch = FlexACSteerer(vectors(0, 1), gate="paper"), prompts(model, images=(False, False, False))
    rows = [[-1.0], [0.5], [1.0]]
    with steering(model, steerer, alpha=[alpha for row in rows for alpha in row]):
        tokens, logits = generate(model, batch.batch())
        others = [generate(model, batch.batch(), use_cache=False)]
        others += [generate(model, batch.batch(), prefill_chunk_size=size) for size in (1, 3)]
    for row, alpha in enumerate(rows):
        with steering(model, steerer, alpha=alpha):
            alone = generate(model, batch.batch(rows=[row]))
        torch.testing.assert_close(alone[1][0], logits[row], atol=5e-5, rtol=1e-4)
    for other in others:
        assert torch.equal(other[0], tokens)
        torch.testing.assert_close(other[1], logits, atol=5e-5, rtol=1e-4)


def test_the_released_rule_of_the_last_two_tokens_of_every_call_depends_on_the_cache(model):
    """Why positions are absolute here."""
    inputs, v = prompts(model).batch(), vectors(0)[0]

    def relative(module, args, output):
        output[:, -2:] += v
        return output

    handle = find_adapter(model).blocks[0].register_forward_hook(relative)
    try:
        logits = [generate(model, inputs, use_cache=cached)[1] for cached in (True, False)]
    finally:
        handle.remove()
    torch.testing.assert_close(logits[0][:, 0], logits[1][:, 0], atol=5e-5, rtol=1e-4)
    assert (logits[0][:, 1] - logits[1][:, 1]).abs().max() > 1e-2


def test_the_last_two_prompt_tokens_and_the_answer_are_steered(model):
    with steering(model, FlexACSteerer(vectors(1)), trace=True) as s:
        generate(model, prompts(model).batch())
    lengths = [len(row) for row in prompts(model).ids]
    for row, length in enumerate(lengths):
        assert s.trace.positions(1, row) == list(range(length - 2, length + NEW - 1))


def test_gates_and_angles_are_told_and_do_not_change_the_states(model):
    inputs, steerer = prompts(model).batch(), FlexACSteerer(vectors(0, 1), gate="const")
    with steering(model, steerer):
        plain = generate(model, inputs)[1]
    with recording(steerer) as seen, steering(model, steerer) as s:
        told = generate(model, inputs)[1]
    assert torch.equal(plain, told) and steerer.recorder is None
    table = seen.table()
    assert set(table) == {0, 1} and table[0]["positions"] == s.stats.positions[0]
    assert table[0]["gate"] == {"general": 1.0} and 0 < table[1]["rotation"] < 180


def test_gates_are_averaged_over_steered_positions_only():
    v = torch.eye(D)[0]
    h_RTD = torch.stack([v, -v, v])[None]
    steerer = FlexACSteerer({0: v}, gate="hinge")
    shift = Shift(v[None, None], torch.ones(1, 1, 1), 0)
    with recording(steerer) as seen:
        steerer.adjust(0, h_RTD, shift, torch.tensor([[[True], [True], [False]]]))
    assert seen.table()[0]["gate"] == {"general": 0.5} and seen.table()[0]["aligned"] == {"general": 0.5}


def test_leaving_a_session_leaves_the_model_as_it_was(model):
    inputs, clean = prompts(model).batch(), hook_count(model)
    before = generate(model, inputs)[1]
    with pytest.raises(KeyError), steering(model, FlexACSteerer(vectors(0, 1))):
        assert not torch.equal(generate(model, inputs)[1], before)
        raise KeyError
    assert hook_count(model) == clean and torch.equal(generate(model, inputs)[1], before)


def test_half_precision_states_stay_half_precision(request):
    model = load(request.getfixturevalue("tiny_llava"), torch.bfloat16)
    inputs = prompts(model).batch()
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    with steering(model, FlexACSteerer(vectors(0, 1))) as s:
        assert torch.isfinite(generate(model, inputs)[1]).all() and s.stats.total


def test_the_artefact_brings_back_every_setting_and_refuses_another_model(tiny_llava, tiny_fast_vlm, tmp_path):
    directions = {layer: torch.stack([v, 2 * v + 1]) for layer, v in vectors(0, 1).items()}
    steerer = FlexACSteerer(
        directions, names=("general", "task:story"), weights=(1.0, 0.5), gate="soft", gain=7.0, joint=True,
        max_angle=25.0, alpha=-1.0, policy="generated",
    )  # fmt: skip
    save_steerer(steerer, tmp_path, Provenance.of(tiny_llava, token_rule="mean of the answer", config={}))
    back = load_steerer(tmp_path, model=tiny_llava)
    assert back.settings() == steerer.settings() and {**back.common(), "model": None} == steerer.common()
    assert all(torch.equal(back.directions[layer], directions[layer]) for layer in directions)
    h_RTD = draw(1, 3, WIDTH)
    shift = Shift(back.vectors({}, None)[0][None, None], torch.ones(1, 1, 1), 0)
    assert torch.equal(back.adjust(0, h_RTD, shift, None), steerer.adjust(0, h_RTD, shift, None))
    with pytest.raises(ArtefactError, match="made for the model"):
        load_steerer(tmp_path, model=tiny_fast_vlm)
