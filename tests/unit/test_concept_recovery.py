"""Promises about concept-level recovery: held out, with controls, labelled for what it is."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from hacl.compare.concept_recovery import ConceptReport, concept_recovery
from hacl.compare.concept_rows import alpha_rows, concept_rows, image_columns
from hacl.compare.plain import csv_text
from hacl.compare.recovery_split import Options, make_split, recovery, recovery_draws
from hacl.compare.resampling import centred_interval, numbered_groups, split_rows
from hacl.compare.transfer import transfer
from tests.reference.planted_shift import Planted, planted_shift

FAST = {"splits": 2, "bootstrap": 100, "mas": 20}


@cache
def report(seed: int = 0, uniform: bool = False, **planting) -> ConceptReport:
    planted = planted_shift(seed, uniform=uniform, **planting)
    return concept_recovery(planted.a_ND, planted.b_ND, planted.groups, 6, **FAST)


def control(found: ConceptReport, name: str) -> dict:
    return next(row for row in found.controls if row["control"] == name)


def in_sample(planted: Planted, method: str = "kmeans"):
    rows = np.arange(len(planted.a_ND))
    return make_split(planted.a_ND, planted.b_ND, planted.groups, 6, rows, rows, Options(method=method), 0)


@pytest.mark.parametrize("seed", range(5))
def test_in_sample_recovery_is_one_by_algebra_when_partitions_agree(seed):
    planted = planted_shift(seed)
    split = in_sample(planted)
    assert split.agreement == 1.0
    shifted_KD = split.before_KD + split.shifts.concepts_KD
    for k in range(6):
        tuned_D = planted.b_ND[split.concept_fit == k].mean(axis=0)
        assert np.abs(shifted_KD[k] - tuned_D).max() < 1e-10
        gap_D, shift_D = split.gap_KD[k], split.shifts.concepts_KD[k]
        assert shift_D @ gap_D / (shift_D @ shift_D) == pytest.approx(1.0, abs=1e-10)
    assert split.recovery(split.shifts.concepts_KD) == pytest.approx(np.ones(6), abs=1e-10)


def test_the_in_sample_figure_stands_in_the_table_and_is_called_a_tautology():
    row = control(report(), "in_sample")
    assert row["R"] == pytest.approx(1.0) and "tautology" in row["label"]
    assert all(concept["R_in_sample"] == pytest.approx(1.0) for concept in report().rows)


@pytest.mark.parametrize("seed", range(3))
def test_held_out_recovery_is_high_but_below_the_in_sample_figure(seed):
    found = report(seed)
    for row in found.splits:
        assert 0.9 < row["R_concept"] < row["R_in_sample"]
    assert found.headline["R_concept_low"] > 0.9 and found.agreement["held_out"] == 1.0
    for row in found.rows:
        assert row["status"] == "ok" and row["R_held_low"] <= row["R_held"] <= row["R_held_high"]
        assert row["alpha_best"] == pytest.approx(1.0, abs=0.2)
        assert row["R_held"] == pytest.approx(row["noise_ceiling"], abs=0.06)


@pytest.mark.parametrize("seed", range(3))
def test_own_shifts_beat_the_global_one_only_where_concepts_move_differently(seed):
    mixed, same = report(seed), report(seed, uniform=True)
    assert mixed.headline["gain_over_global"] > 0.3 and mixed.headline["gain_over_global_low"] > 0.3
    assert "is concept-specific" in mixed.verdict()
    assert abs(same.headline["gain_over_global"]) < 0.02 and same.headline["R_global"] > 0.9
    assert "not shown to be concept-specific" in same.verdict()


@pytest.mark.parametrize("seed", range(3))
def test_controls_fail_as_they_should(seed):
    found = report(seed)
    names = [row["control"] for row in found.controls]
    assert names == ["own", "none", "global", "shuffled", "permuted", "random", "other", "tuned_again", "in_sample"]
    assert control(found, "none")["R"] == 0.0
    assert control(found, "permuted")["R"] < 0 and control(found, "permuted")["draws"] == 20
    random = control(found, "random")
    assert random["R"] == pytest.approx(-1.0, abs=0.1) and random["draws"] == 200 and 0 < random["sd"] < 0.4
    assert control(found, "other")["R"] < 0
    assert control(found, "shuffled")["R"] == pytest.approx(control(found, "global")["R"], abs=0.15)
    assert control(report(seed, uniform=True), "other")["R"] > 0.9


def test_the_tuned_models_own_concepts_from_other_images_show_what_the_dictionary_can_reach():
    stable = report()
    assert control(stable, "tuned_again")["R"] == pytest.approx(control(stable, "own")["R"], abs=0.02)
    planted = planted_shift(0)
    blurred = np.random.default_rng(0).normal(size=(600, 12)) * 3
    found = concept_recovery(blurred, blurred + planted.b_ND[:600, :12] * 0.2 + 1, np.arange(600), 6, **FAST)
    assert found.agreement["held_out"] < 0.6 and control(found, "tuned_again")["R"] < 0.9


def test_transfer_to_held_out_samples_needs_no_stable_dictionary():
    rng = np.random.default_rng(0)
    a_ND = rng.normal(size=(2000, 12)) * 3
    change_DD = 0.4 * rng.normal(size=(12, 12))
    found = concept_recovery(a_ND, a_ND + a_ND @ change_DD, np.arange(2000), 6, **FAST)
    head = found.headline
    assert found.agreement["held_out"] < 0.6 and head["transfer_concept"] > 0.9 > head["R_concept"]
    assert head["transfer_gain_low"] > 0.3 and abs(head["transfer_global"]) < 0.1
    assert found.rows[0]["transfer"] > 0.8
    stable, same = report().headline, report(uniform=True).headline
    assert stable["transfer_concept"] > 0.9 and stable["transfer_gain_low"] > 0.3
    assert abs(same["transfer_gain"]) < 0.02


def test_models_that_agree_are_called_unmoved_and_nothing_is_nan():
    planted = planted_shift(0)
    found = concept_recovery(planted.a_ND, planted.a_ND, planted.groups, 6, **FAST)
    assert {row["status"] for row in found.rows} == {"unmoved"}
    assert all(row["R_held"] is None and row["alpha_best"] is None and "unmoved" in row["flags"] for row in found.rows)
    assert found.headline["gain_over_global"] is None and "undefined" in found.verdict()
    json.dumps(found.to_json(), allow_nan=False)
    assert "nan" not in "".join(csv_text(rows).lower() for rows in found.tables().values() if rows).replace("name", "")


def test_turning_or_scaling_all_states_leaves_every_recovery_and_cosine():
    planted = planted_shift(0)
    turn_DD, _ = np.linalg.qr(np.random.default_rng(9).normal(size=(64, 64)))
    base = report()
    for change in (lambda x: x @ turn_DD, lambda x: 3.5 * x):
        moved = concept_recovery(change(planted.a_ND), change(planted.b_ND), planted.groups, 6, **FAST)
        for before, after in zip(by_size(base.rows), by_size(moved.rows), strict=True):
            for name in (
                "R_held",
                "R_held_low",
                "R_global",
                "cosine_before",
                "cosine_after",
                "consistency",
                "alpha_best",
            ):
                assert after[name] == pytest.approx(before[name], abs=1e-8), name
            assert after["mas_overlap_after"] == before["mas_overlap_after"]
        for name in ("own", "none", "global", "in_sample"):
            assert control(moved, name)["R"] == pytest.approx(control(base, name)["R"], abs=1e-8)


def by_size(rows: list[dict]) -> list[dict]:
    """Rows in an order that does not depend on the numbers of the concepts."""
    return sorted(rows, key=lambda row: row["R_held"])


def test_shuffled_rows_and_renamed_concepts_give_the_same_table_up_to_order():
    planted = planted_shift(0)
    order = np.random.default_rng(3).permutation(len(planted.a_ND))
    moved = concept_recovery(planted.a_ND[order], planted.b_ND[order], planted.groups[order], 6, **FAST)
    for before, after in zip(by_size(report().rows), by_size(moved.rows), strict=True):
        for name in ("n", "n_matched", "R_held", "R_held_low", "R_global", "magnitude", "match_cosine", "margin"):
            assert after[name] == pytest.approx(before[name], abs=1e-8), name
    assert moved.headline == pytest.approx(report().headline, abs=1e-8)


def test_images_are_never_on_both_sides_of_a_split():
    groups = np.array([f"image-{row // 7}" for row in range(210)])
    for seed in range(5):
        fit, held = split_rows(groups, 0.5, seed)
        assert not set(groups[fit]) & set(groups[held]) and len(fit) + len(held) == 210
        assert len(set(groups[held])) == 15
    with pytest.raises(ValueError, match="at least two images"):
        split_rows(["x"] * 5, 0.5, 0)


def test_the_shift_and_the_originals_concepts_know_nothing_of_the_held_out_images():
    planted = planted_shift(0)
    fit, held = split_rows(planted.groups, 0.5, 0)
    changed = replace(planted, a_ND=planted.a_ND.copy(), b_ND=planted.b_ND.copy())
    changed.a_ND[held] += 1.0
    changed.b_ND[held] *= 1.1
    splits = [make_split(p.a_ND, p.b_ND, p.groups, 6, fit, held, Options(), 0) for p in (planted, changed)]
    assert np.array_equal(splits[0].before_KD, splits[1].before_KD)
    assert np.array_equal(splits[0].shifts.concepts_KD, splits[1].shifts.concepts_KD)
    assert not np.array_equal(splits[0].after_KD, splits[1].after_KD)


def test_the_tuned_models_concepts_know_nothing_of_the_fitted_images():
    rng = np.random.default_rng(0)
    a_ND = rng.normal(size=(300, 8))
    b_ND = a_ND + 1 + 0.3 * rng.normal(size=a_ND.shape)
    fit, held = split_rows(np.arange(300), 0.5, 0)
    other_ND = b_ND.copy()
    other_ND[fit] = rng.normal(size=(len(fit), 8)) * 4
    first, second = (make_split(a_ND, x_ND, np.arange(300), 5, fit, held, Options(), 0) for x_ND in (b_ND, other_ND))
    assert np.array_equal(first.tuned_JD, second.tuned_JD)
    assert not np.array_equal(first.shifts.concepts_KD, second.shifts.concepts_KD)


@pytest.mark.parametrize("step", [0.0, 1e-9])
def test_a_change_too_small_to_count_is_called_unmoved(step):
    planted = planted_shift(0, per_concept=40)
    split = make_split(
        planted.a_ND, planted.a_ND + step, planted.groups, 6, *split_rows(planted.groups, 0.5, 0), Options(), 0
    )
    assert set(split.status_K) == {"unmoved"} and np.isnan(split.recovery(split.shifts.concepts_KD)).all()


def test_empty_and_tiny_concepts_are_reported_and_left_out_of_the_mean():
    planted = planted_shift(0, per_concept=40)
    rows = np.flatnonzero(planted.label_N == 2)[2:]
    keep = np.setdiff1d(np.arange(240), rows)
    found = concept_recovery(planted.a_ND[keep], planted.b_ND[keep], planted.groups[keep], 6, min_size=5, **FAST)
    assert "small" in {row["status"] for row in found.rows}
    for row in found.rows:
        if row["status"] != "ok":
            assert row["R_held"] is None and row["status"] in row["flags"]
    assert found.splits[0]["concepts"] < 6
    json.dumps(found.to_json(), allow_nan=False)


def test_the_alpha_curve_starts_at_zero_and_peaks_where_the_closed_form_says():
    planted = planted_shift(0, uniform=True)
    planted.b_ND[:] = planted.a_ND + 0.5 * (planted.b_ND - planted.a_ND)
    split = in_sample(planted)
    double = replace(split, shifts=replace(split.shifts, concepts_KD=2 * split.shifts.concepts_KD))
    curve = alpha_rows(double, [0.0, 0.25, 0.5, 0.75, 1.0])
    assert curve[0]["R_concept"] == 0.0 and curve[0]["R_global"] == 0.0
    assert max(curve, key=lambda row: row["R_concept"])["alpha"] == 0.5
    rows = concept_rows(double, np.zeros((2, 6)), 10)
    assert [row["alpha_best"] for row in rows] == pytest.approx([0.5] * 6)
    assert curve[2]["R_concept"] == pytest.approx(1.0) and curve[4]["R_concept"] == pytest.approx(0.0, abs=1e-9)


def test_recovery_by_hand():
    gap = np.array([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 0.0]])
    shift = np.array([[2.0, 0.0], [1.0, 0.0], [-2.0, 0.0], [1.0, 0.0]])
    assert recovery(gap, shift) == pytest.approx([1.0, 0.75, -3.0, np.nan], nan_ok=True)


def test_drawing_every_image_once_gives_the_estimate():
    planted = planted_shift(0, rows_per_image=4)
    image_N, images = numbered_groups(planted.groups)
    fit, held = split_rows(planted.groups, 0.5, 0)
    split = make_split(planted.a_ND, planted.b_ND, planted.groups, 6, fit, held, Options(), 0)
    own_K, common_K = split.recovery(split.shifts.concepts_KD), split.recovery(split.shifts.global_D[None])
    own, common = recovery_draws(planted.a_ND, planted.b_ND, image_N, split, np.ones((2, images)))
    assert own == pytest.approx(np.tile(own_K, (2, 1)), abs=1e-12)
    assert common == pytest.approx(np.tile(common_K, (2, 1)), abs=1e-12)
    carried = transfer(planted.a_ND, planted.b_ND, image_N, split, np.ones((2, images)), min_size=5)
    assert carried[2] == pytest.approx(np.tile(carried[0], (2, 1)), abs=1e-12)
    assert carried[3] == pytest.approx(np.tile(carried[1], (2, 1)), abs=1e-12)


def test_intervals_keep_the_spread_of_the_draws_and_stand_at_the_estimate():
    drawn = np.random.default_rng(0).normal(loc=50, scale=2, size=4000)
    found = centred_interval(7.0, drawn, items=30)
    assert found.estimate == 7.0 and found.low == pytest.approx(7 - 3.92, abs=0.3)
    assert centred_interval(None, drawn, items=30).estimate is None
    assert centred_interval(7.0, np.array([np.nan]), items=30).low is None


@pytest.mark.parametrize("method", ["pca", "svd", "semi_nmf", "simple"])
def test_every_dictionary_method_gives_a_table_without_nan(method):
    planted = planted_shift(0, per_concept=60)
    found = concept_recovery(planted.a_ND, planted.b_ND, planted.groups, 6, method=method, **FAST)
    assert len(found.rows) == 6 and found.settings["method"] == method
    json.dumps(found.to_json(), allow_nan=False)


def test_more_margin_is_found_once_the_common_part_of_the_states_is_taken_off():
    planted = planted_shift(0)
    a_ND, b_ND = planted.a_ND + 100.0, planted.b_ND + 100.0
    raw = concept_recovery(a_ND, b_ND, planted.groups, 6, **FAST)
    centred = concept_recovery(a_ND, b_ND, planted.groups, 6, match_centred=True, **FAST)
    assert all("low margin" in row["flags"] for row in raw.rows)
    assert not any("low margin" in row["flags"] for row in centred.rows)
    assert centred.headline["R_concept"] > 0.9


def test_images_are_compared_on_one_source_so_an_unshifted_perfect_match_scores_full():
    planted = planted_shift(0)
    split = in_sample(planted)
    same = replace(
        split, before_KD=split.after_KD, shifts=replace(split.shifts, concepts_KD=0 * split.shifts.concepts_KD)
    )
    for row in image_columns(same, planted.b_ND, planted.groups, 20):
        assert row["mas_overlap_before"] == row["mas_overlap_after"] == 100.0 and row["mas_overlap_of"] == 20
    for row in image_columns(split, planted.b_ND, planted.groups, 20):
        assert row["mas_overlap_after"] == 100.0 > row["mas_overlap_before"]


def test_the_first_image_of_a_concept_is_the_nearest_held_out_one():
    planted = planted_shift(0)
    split = make_split(planted.a_ND, planted.b_ND, planted.groups, 6, *split_rows(planted.groups, 0.5, 0), Options(), 0)
    for k, row in enumerate(image_columns(split, planted.b_ND, planted.groups, 20)):
        distance_n = np.linalg.norm(planted.b_ND[split.held] - split.after_KD[k], axis=1)
        assert row["top_images"][0] == planted.groups[split.held][distance_n.argmin()]


def test_too_few_images_or_rows_are_refused():
    planted = planted_shift(0, per_concept=10)
    with pytest.raises(ValueError, match="use fewer concepts"):
        concept_recovery(planted.a_ND, planted.b_ND, planted.groups, 40, **FAST)
    with pytest.raises(ValueError, match="rows must pair"):
        concept_recovery(planted.a_ND, planted.b_ND[:5], planted.groups, 3, **FAST)
