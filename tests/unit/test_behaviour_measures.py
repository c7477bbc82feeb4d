"""Promises about the measures of a recovery: fractions that are not clipped, agreement, side effects, controls."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest
import torch

from hacl.compare.agreement import agreement, common_subsequence, exact_match, rouge_l, token_f1
from hacl.compare.behaviour_controls import control_steerers, permuted_rows, random_steerer, rotated, shuffled_concepts
from hacl.compare.recovery_fraction import closed_share, fraction_difference, per_image, recovery_fraction
from hacl.compare.side_effects import changed, distinct, longest_repeat, perplexity, text_effects
from hacl.steering import ConceptSteerer, LowRankSteerer, MeanSteerer, TableSteerer


def table(values):
    return {str(i): [float(value), 1.0] for i, value in enumerate(values)}


def noisy(mean, seed, count=200, noise=0.1):
    return mean + noise * np.random.default_rng(seed).normal(size=count)


def test_a_fraction_is_the_way_gone_over_the_gap_with_an_interval_around_it():
    shared = noisy(0.0, 1)
    found = recovery_fraction(table(0.2 + shared), table(0.6 + shared), table(0.3 + shared))
    assert found.share.estimate == pytest.approx(0.25, abs=1e-9) and found.note == ""
    assert found.share.low == pytest.approx(0.25, abs=1e-9)  # pairing takes out what all three share
    independent = recovery_fraction(table(noisy(0.2, 1)), table(noisy(0.6, 2)), table(noisy(0.3, 3)))
    assert independent.share.low < 0.25 < independent.share.high
    assert independent.share.high - independent.share.low > 0.02


def test_overshoot_and_the_wrong_way_are_kept_and_named():
    a, b = np.full(50, 0.2), np.full(50, 0.4)
    over = recovery_fraction(table(a), table(b), table(a + 0.5))
    wrong = recovery_fraction(table(a), table(b), table(a - 0.1))
    assert (over.share.estimate, over.note) == (pytest.approx(2.5), "over-shoots")
    assert (wrong.share.estimate, wrong.note) == (pytest.approx(-0.5), "wrong way")
    falling = recovery_fraction(table(b), table(a), table(b - 0.1))
    assert falling.share.estimate == pytest.approx(0.5)


def test_a_gap_inside_its_own_interval_makes_the_fraction_undefined_and_json_null():
    found = recovery_fraction(table(noisy(0.5, 1)), table(noisy(0.5, 2)), table(noisy(0.9, 3)))
    assert not found.defined and "inside its own interval" in found.note
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["share"]["estimate"] is None
    same = recovery_fraction(table([0.1, 0.2]), table([0.1, 0.2]), table([0.3, 0.4]))
    assert not same.defined
    assert recovery_fraction({}, {}, {}).note == "a side is 0/0"
    alone = recovery_fraction(table([0.1]), table([0.2]), table([0.2]))
    assert not alone.defined  # one image has no interval


def test_images_that_a_side_lacks_are_left_out_and_images_weigh_by_their_items():
    a = {"x": [1.0, 4.0], "y": [0.0, 1.0], "only-a": [100.0, 1.0]}
    b = {"x": [3.0, 4.0], "y": [1.0, 1.0]}
    found = recovery_fraction(a, b, b)
    assert (found.original, found.tuned) == (pytest.approx(0.2), pytest.approx(0.8))
    assert per_image(["x", "y", "x"], [1, 2, 3], [1, 1, 2]) == {"x": [4.0, 3.0], "y": [2.0, 1.0]}


def test_a_closed_divergence_is_one_minus_the_ratio():
    base = {"x": [4.0, 2.0], "y": [2.0, 2.0], "z": [6.0, 3.0]}
    moved = {"x": [1.0, 2.0], "y": [1.0, 2.0], "z": [1.0, 3.0]}
    assert closed_share(base, moved).share.estimate == pytest.approx(1 - 3 / 12)
    assert closed_share(base, base).share.estimate == 0
    zero = {key: [0.0, pair[1]] for key, pair in base.items()}
    difference = fraction_difference(base, zero, moved, base)
    assert difference.estimate == pytest.approx(0.75) and difference.excludes(0.0)
    assert fraction_difference(base, zero, moved, moved).estimate == 0


def test_intervals_of_a_fraction_cover_the_truth_about_as_often_as_they_say():
    covered = 0
    for seed in range(100):
        draw = np.random.default_rng(seed)
        shared = draw.normal(size=80)
        a, b, s = (mean + 0.3 * shared + 0.2 * draw.normal(size=80) for mean in (0.0, 1.0, 0.4))
        found = recovery_fraction(table(a), table(b), table(s), draws=300, seed=seed).share
        covered += found.low <= 0.4 <= found.high
    assert 87 <= covered <= 99


def test_agreement_by_hand():
    assert exact_match("A red cat.", "a red cat") == 1 and exact_match("a cat", "cat a") == 0
    assert token_f1("a red cat", "a cat sat") == pytest.approx(2 * 2 / 6)
    assert token_f1("the the cat", "the cat") == pytest.approx(2 * 2 / 5)
    assert rouge_l("police killed the gunman", "police kill the gunman") == pytest.approx(0.75)
    assert rouge_l("the gunman police killed", "police kill the gunman") == pytest.approx(0.5)
    for measure in (exact_match, token_f1, rouge_l):
        assert measure("", "") == 1 and measure("", "a") == 0 and measure("a", "") == 0
    tables = agreement(["i", "i", "j"], ["a", "b", "c"], ["a", "c", "c"])
    assert tables["exact_match"] == {"i": [1.0, 2.0], "j": [1.0, 1.0]}


def test_the_common_subsequence_is_the_longest_of_all():
    draw = np.random.default_rng(0)
    for _ in range(30):
        a, b = (draw.integers(0, 3, size=draw.integers(1, 8)).tolist() for _ in range(2))
        parts = {tuple(a[i] for i in kept) for n in range(len(a) + 1) for kept in combinations(range(len(a)), n)}
        others = {tuple(b[i] for i in kept) for n in range(len(b) + 1) for kept in combinations(range(len(b)), n)}
        assert common_subsequence(a, b) == max(map(len, parts & others))


@pytest.mark.parametrize(
    ("text", "length"),
    [("", 0), ("one", 0), ("one two", 0), ("the cat and the dog", 1), ("black black black", 2),
     ("a b c x a b c", 3), ("a b a b a b a b", 6)],
)  # fmt: skip
def test_the_longest_repeat_tells_loops_from_text(text, length):
    assert longest_repeat(text) == length


def test_side_effects_by_hand():
    found = text_effects(["i", "i"], ["the cat the cat", "a"])
    assert found["length"] == {"i": [5.0, 2.0]}
    assert found["distinct_1"] == {"i": [3.0, 5.0]} and found["distinct_2"] == {"i": [2.0, 3.0]}
    assert distinct(["the cat", "the dog"], 1) == 0.75 and distinct(["a", ""], 2) is None
    assert changed(["a ", "b"], ["a", "c"]) == [False, True]
    assert perplexity({"i": [2 * np.log(8.0), 2.0]}) == pytest.approx(8.0) and perplexity({}) is None


def vectors(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_random_directions_keep_lengths_and_angles_and_nothing_else():
    values = vectors(5, 400)
    found = rotated(values, seed=1)
    torch.testing.assert_close(found @ found.T, values @ values.T, atol=1e-2, rtol=1e-4)
    cosines = torch.cosine_similarity(found[:, None], values[None], dim=-1)
    assert cosines.abs().max() < 0.25
    assert torch.equal(found, rotated(values, seed=1)) and not torch.equal(found, rotated(values, seed=2))
    more = rotated(vectors(9, 4), seed=0)  # more vectors than dimensions
    torch.testing.assert_close(more.norm(dim=1), vectors(9, 4).norm(dim=1))


def test_every_method_has_random_controls_that_differ_by_layer_and_keep_its_rule():
    shifts = {0: vectors(3, 16, seed=1), 1: vectors(3, 16, seed=1)}
    concept = ConceptSteerer({0: vectors(3, 16), 1: vectors(3, 16)}, shifts, assign="last_prompt", policy="generated")
    control = random_steerer(concept, 0)
    assert (control.assign, control.policy) == ("last_prompt", "generated")
    torch.testing.assert_close(control.shifts[0].norm(dim=1), shifts[0].norm(dim=1))
    assert not torch.allclose(control.shifts[0], control.shifts[1])
    mean = MeanSteerer({0: vectors(16)}, norm="preserve")
    control = random_steerer(mean, 0)
    assert control.norm == "preserve" and float(control.values[0].norm()) == pytest.approx(float(vectors(16).norm()))
    low = LowRankSteerer.fit({0: (vectors(40, 16).numpy(), vectors(40, 16, seed=2).numpy())}, rank=3)
    h = vectors(2, 4, 16, seed=5)
    steps = low.step(0, h), random_steerer(low, 0).step(0, h)
    torch.testing.assert_close(steps[0].norm(dim=-1), steps[1].norm(dim=-1), atol=1e-4, rtol=1e-4)
    assert (steps[0] - steps[1]).abs().max() > 0.1
    with pytest.raises(ValueError, match="'table'"):
        random_steerer(TableSteerer({0: vectors(2, 4)}, ["a", "b"]), 0)


def test_shuffling_gives_every_concept_the_shift_of_another():
    shifts = vectors(6, 8, seed=3)
    steerer = ConceptSteerer({0: vectors(6, 8)}, {0: shifts})
    found = shuffled_concepts(steerer, seed=0).shifts[0]
    assert sorted(found.tolist()) == sorted(shifts.tolist())
    assert not (found == shifts).all(1).any()
    assert set(control_steerers(steerer, random_draws=2)) == {"random_0", "random_1", "shuffled_concepts"}
    assert set(control_steerers(MeanSteerer({0: vectors(8)}), random_draws=1)) == {"random_0"}


def test_permuted_pairs_pair_no_row_with_its_own_and_leave_the_mean():
    rows = np.arange(14.0).reshape(7, 2)
    found = permuted_rows(rows, seed=0)
    assert sorted(found.tolist()) == rows.tolist() and not (found == rows).all(1).any()
    np.testing.assert_allclose(found.mean(0), rows.mean(0))
