"""Promises of the intervals: they cover what they should, widen with fewer runs, pair what is paired."""

import numpy as np
import pytest

from hacl.evaluation.statistics import (
    Interval,
    base_differences,
    bootstrap,
    bootstrap_runs,
    format_interval,
    paired_difference,
    run_values_interval,
    sign_test,
    table_ratio,
)


def table(values):
    return {f"i{n}": (float(v), 1.0) for n, v in enumerate(values)}


def test_an_interval_over_items_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        interval = bootstrap(rng.binomial(1, 0.3, 100), draws=300, seed=trial)
        hits += interval.low <= 0.3 <= interval.high
    assert 0.88 <= hits / 200 <= 0.99


def test_an_interval_over_runs_and_items_covers_the_truth_when_runs_differ():
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(150):
        difficulty = rng.uniform(0.2, 0.6, 80)
        shifts = rng.normal(0, 0.05, 6)
        runs = [table(rng.binomial(1, np.clip(difficulty + shift, 0, 1))) for shift in shifts]
        interval = bootstrap_runs(runs, draws=300, seed=trial)
        hits += interval.low <= 0.4 <= interval.high
    assert 0.87 <= hits / 150 <= 1.0


def test_a_paired_interval_of_three_runs_is_neither_blind_nor_twice_too_wide_when_runs_agree():
    rng = np.random.default_rng(3)
    hits, widths = 0, []
    for trial in range(120):
        difficulty = rng.uniform(0.2, 0.6, 150)
        control = [table(rng.binomial(1, difficulty)) for _ in range(3)]
        treated = [table(rng.binomial(1, difficulty + 0.05)) for _ in range(3)]
        interval = paired_difference(treated, control, draws=200, seed=trial)
        hits += interval.low <= 0.05 <= interval.high
        widths.append(interval.high - interval.low)
    ideal = 2 * 1.96 * (2 * 0.23 / (3 * 150)) ** 0.5
    assert hits / 120 >= 0.88 and ideal < np.mean(widths) < 2 * ideal


def test_runs_that_disagree_widen_the_interval_that_items_alone_would_give():
    agree = [table([0, 1] * 50) for _ in range(3)]
    disagree = [table([0] * 100), table([0, 1] * 50), table([1] * 100)]
    one, other = bootstrap_runs(agree, draws=500), bootstrap_runs(disagree, draws=500)
    assert one.estimate == other.estimate == 0.5
    assert other.high - other.low > 2 * (one.high - one.low)


def test_pairing_by_item_removes_the_difficulty_that_both_share():
    rng = np.random.default_rng(2)
    difficulty = rng.normal(0, 1, 200)
    control = [table(difficulty + rng.normal(0, 0.05, 200)) for _ in range(3)]
    treated = [table(difficulty + 0.1 + rng.normal(0, 0.05, 200)) for _ in range(3)]
    difference = paired_difference(treated, control, draws=500)
    assert difference.excludes(0.0) and difference.estimate == pytest.approx(0.1, abs=0.02)
    assert difference.high - difference.low < 0.05 < bootstrap_runs(control, draws=500).high


def test_a_difference_uses_only_items_that_both_sides_have():
    difference = paired_difference([{"a": (1, 1), "b": (1, 1)}], [{"a": (0, 1), "c": (1, 1)}], draws=50)
    assert difference.estimate == 1.0 and difference.items == 1


def test_a_ratio_is_pooled_over_items_not_averaged():
    pooled = bootstrap_runs([{"a": (1, 1), "b": (0, 3)}], draws=50)
    assert pooled.estimate == table_ratio({"a": (1, 1), "b": (0, 3)}) == 0.25


def test_seeds_inside_a_base_do_not_outvote_another_base():
    runs = [table([1.0]), table([1.0]), table([1.0]), table([0.0])]
    assert bootstrap_runs(runs, bases=["a", "a", "a", "b"], draws=50).estimate == 0.5


def test_zero_over_zero_has_no_estimate_and_no_interval():
    empty = bootstrap_runs([{"a": (0, 0)}], draws=50)
    assert empty.estimate is None and empty.low is None and format_interval(empty) == "n/a"
    assert table_ratio({"a": (0, 0)}) is None


def test_intervals_are_the_same_for_the_same_seed():
    runs = [table(np.random.default_rng(n).normal(size=30)) for n in range(3)]
    assert bootstrap_runs(runs, draws=100, seed=4) == bootstrap_runs(runs, draws=100, seed=4)
    assert bootstrap_runs(runs, draws=100, seed=4) != bootstrap_runs(runs, draws=100, seed=5)


def test_runs_without_items_get_students_interval_and_one_run_gets_none():
    interval = run_values_interval([0.1, 0.2, 0.3])
    assert interval.estimate == pytest.approx(0.2)
    assert interval.high - 0.2 == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-5)
    assert run_values_interval([0.1]) == Interval(0.1, None, None, 1, 0)


def runs_of_fractions(rng, mean, runs, items=100, spread=0.02):
    scale = mean * (1 - mean) / spread**2 - 1
    return [table(rng.binomial(1, p, items)) for p in rng.beta(mean * scale, (1 - mean) * scale, runs)]


@pytest.mark.parametrize("runs", [3, 6])
def test_an_interval_of_a_fraction_near_one_stays_a_fraction_and_covers_the_truth(runs):
    rng = np.random.default_rng(4)
    hits = 0
    for trial in range(100):
        interval = bootstrap_runs(runs_of_fractions(rng, 0.97, runs), draws=200, seed=trial)
        assert 0 <= interval.low <= interval.high <= 1
        hits += interval.low <= 0.97 <= interval.high
    assert hits >= 87


def test_a_fraction_without_any_error_has_the_exact_bound_instead_of_no_width():
    interval = bootstrap_runs([table([1] * 50)], draws=50)
    assert (interval.low, interval.high) == (pytest.approx(0.025 ** (1 / 50)), 1.0)
    assert bootstrap_runs([table([0] * 50)], draws=50).high == pytest.approx(1 - 0.025 ** (1 / 50))


def test_differences_of_fractions_stay_between_minus_one_and_one_and_other_measures_are_free():
    treated, control = [table([1, 1]), table([1, 1]), table([1, 0])], [table([0, 0])] * 3
    assert paired_difference(treated, control, draws=200).high <= 1
    lengths = [table([9, 11]), table([1, 3]), table([20, 30])]
    assert bootstrap_runs(lengths, draws=200).low < 1 < bootstrap_runs(lengths, draws=200).high


def test_students_interval_is_clipped_to_bounds_that_are_given():
    assert run_values_interval([0.99, 0.95, 1.0]).high > 1
    assert run_values_interval([0.99, 0.95, 1.0], bounds=(0, 1)).high == 1.0


@pytest.mark.parametrize(
    ("differences", "p"),
    [([1, 1, 1], 0.25), ([1] * 6, 0.03125), ([1, 1, -1, 0], 1.0), ([-1] * 5 + [1], 0.21875), ([0, 0], None)],
)
def test_the_sign_test_is_exact(differences, p):
    assert sign_test(differences) == p


def test_differences_are_averaged_inside_a_base_before_signs_are_counted():
    assert base_differences([1, 3, 5], [0, 0, 6], ["a", "a", "b"]) == [2, -1]


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="pair"):
        paired_difference([table([1])], [])
    with pytest.raises(ValueError, match="bases"):
        bootstrap_runs([table([1])], bases=["a", "b"])


def test_intervals_are_written_with_their_bounds():
    assert format_interval(Interval(0.3, 0.25, 0.35, 3, 10), ".2f") == "0.30 [0.25, 0.35]"
