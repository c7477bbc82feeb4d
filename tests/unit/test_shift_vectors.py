"""Promises about shift vectors, on states whose shifts are known."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import trim_mean

from hacl.compare.linear_maps import fit_ridge_map, fit_rotation, map_rows
from hacl.compare.shift_sums import STATISTICS, ShiftSums
from hacl.compare.shift_vectors import ShiftVectors, shift_vectors
from hacl.representations.readout import Readout
from tests.reference.planted_shift import Planted, planted_shift


def measured(planted: Planted, **options) -> ShiftVectors:
    options = {"bootstrap": 0, "groups": planted.groups, **options}
    return shift_vectors(planted.a_ND, planted.b_ND, planted.label_N, len(planted.shift_KD), **options)


def dense_statistics(delta_nD: np.ndarray, a_nD: np.ndarray) -> dict[str, float]:
    """Every statistic as its definition reads, with the whole table of pairs."""
    mean_D, n = delta_nD.mean(axis=0), len(delta_nD)
    unit_nD = delta_nD / np.linalg.norm(delta_nD, axis=1, keepdims=True)
    others = ~np.eye(n, dtype=bool)
    magnitude = np.linalg.norm(mean_D)
    return {
        "magnitude": magnitude,
        "magnitude_unbiased": np.sqrt((delta_nD @ delta_nD.T)[others].mean()),
        "relative_magnitude": magnitude / np.linalg.norm(a_nD, axis=1).mean(),
        "consistency": (unit_nD @ mean_D).mean() / magnitude,
        "pairwise_cosine": (unit_nD @ unit_nD.T)[others].mean(),
        "explained": n * magnitude**2 / (delta_nD**2).sum(),
    }


@pytest.mark.parametrize("seed", range(5))
def test_planted_shifts_are_recovered(seed):
    planted = planted_shift(seed)
    found = measured(planted)
    error_K = np.linalg.norm(found.concepts_KD - planted.shift_KD, axis=1) / np.linalg.norm(planted.shift_KD, axis=1)
    assert error_K.max() < 0.12
    assert np.abs(found.global_D - (planted.b_ND - planted.a_ND).mean(axis=0)).max() < 1e-12
    assert found.residual_KD == pytest.approx(found.concepts_KD - found.global_D)


@pytest.mark.parametrize("seed", range(3))
def test_pairwise_cosine_follows_the_law_of_shift_and_noise(seed):
    planted = planted_shift(seed)
    square_K = (planted.shift_KD**2).sum(axis=1)
    expected_K = square_K / (square_K + planted.a_ND.shape[1] * planted.noise_b**2)
    found = [row["pairwise_cosine"] for row in measured(planted).stats]
    assert np.abs(np.array(found) - expected_K).max() < 0.02


def test_streaming_statistics_equal_the_dense_definitions():
    planted = planted_shift(1, per_concept=60)
    found = measured(planted)
    for k, row in enumerate(found.stats):
        mine = planted.label_N == k
        expected = dense_statistics(planted.b_ND[mine] - planted.a_ND[mine], planted.a_ND[mine])
        assert set(expected) == set(STATISTICS)
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, abs=1e-12, rel=1e-12), name


def test_shifts_of_equal_length_tie_consistency_to_pairwise_cosine():
    rng = np.random.default_rng(0)
    delta_nD = rng.normal(size=(50, 16)) + 1
    delta_nD *= 3 / np.linalg.norm(delta_nD, axis=1, keepdims=True)
    row = shift_vectors(np.ones((50, 16)), 1 + delta_nD, np.zeros(50, int), 1, bootstrap=0).stats[0]
    assert row["consistency"] == pytest.approx(np.sqrt((1 + 49 * row["pairwise_cosine"]) / 50), abs=1e-12)


def test_blocks_add_up_to_one_pass_and_single_precision_input_is_summed_in_double():
    planted = planted_shift(0, per_concept=50)
    a_ND, b_ND = planted.a_ND.astype(np.float32), planted.b_ND.astype(np.float32)
    whole = ShiftSums.of(a_ND, b_ND, planted.label_N, 6)
    blocks = ShiftSums.zeros(6, 64)
    for start in range(0, 300, 37):
        rows = slice(start, start + 37)
        blocks.add(a_ND[rows], b_ND[rows], planted.label_N[rows])
    assert whole.delta_KD.dtype == np.float64
    for name in STATISTICS:
        assert whole.statistics()[name] == pytest.approx(blocks.statistics()[name], abs=1e-12)


def test_the_shift_points_from_the_original_to_the_tuned_model():
    a_ND, b_ND = np.zeros((6, 3)), np.tile([1.0, 0.0, -2.0], (6, 1))
    assert shift_vectors(a_ND, b_ND, np.zeros(6, int), 1).global_D == pytest.approx([1, 0, -2])
    assert shift_vectors(b_ND, a_ND, np.zeros(6, int), 1).concepts_KD[0] == pytest.approx([-1, 0, 2])


@pytest.mark.parametrize("aggregate", ["median", "trimmed"])
def test_medians_and_trimmed_means_are_of_the_differences_and_resist_an_outlier(aggregate):
    planted = planted_shift(0, per_concept=40)
    planted.b_ND[np.flatnonzero(planted.label_N == 2)[0]] += 1e4
    found = measured(planted, aggregate=aggregate)
    delta_nD = (planted.b_ND - planted.a_ND)[planted.label_N == 2]
    expected = np.median(delta_nD, axis=0) if aggregate == "median" else trim_mean(delta_nD, 0.1, axis=0)
    assert found.concepts_KD[2] == pytest.approx(expected, abs=1e-12)
    assert np.linalg.norm(found.concepts_KD[2] - planted.shift_KD[2]) < 0.6
    assert np.linalg.norm(measured(planted).concepts_KD[2] - planted.shift_KD[2]) > 100
    assert "magnitude_low" not in found.stats[2]


def test_small_and_empty_concepts_are_reported_without_a_vector():
    planted = planted_shift(0, per_concept=20)
    label_N = planted.label_N.copy()
    label_N[np.flatnonzero(label_N == 1)[1:]] = 0
    label_N[label_N == 3] = 2
    found = shift_vectors(planted.a_ND, planted.b_ND, label_N, 6, min_size=5, bootstrap=20)
    assert [row["status"] for row in found.stats] == ["ok", "small", "ok", "empty", "ok", "ok"]
    assert [row["n"] for row in found.stats] == [39, 1, 40, 0, 20, 20] == found.counts_K.tolist()
    assert not found.concepts_KD[[1, 3]].any() and not found.residual_KD[[1, 3]].any()
    assert found.stats[1]["magnitude"] is None and "magnitude_low" not in found.stats[1]
    json.dumps(found.to_json(), allow_nan=False)
    one = shift_vectors(planted.a_ND[:1], planted.b_ND[:1], [0], 1, min_size=1)
    assert one.stats[0]["pairwise_cosine"] is None and one.stats[0]["consistency"] == pytest.approx(1.0)


def test_models_that_agree_have_no_shift_and_nothing_undefined_becomes_nan():
    planted = planted_shift(0, per_concept=20)
    found = shift_vectors(planted.a_ND, planted.a_ND, planted.label_N, 6, bootstrap=20)
    assert not found.global_D.any() and not found.concepts_KD.any() and not len(found.energy_R)
    assert {row["status"] for row in found.stats} == {"unmoved"}
    assert found.overall["explained"] is None and found.overall["magnitude"] == 0.0
    assert "NaN" not in json.dumps(found.to_json(), allow_nan=False)


def test_turning_all_states_changes_no_statistic_and_scaling_them_scales_the_shifts():
    planted = planted_shift(0, per_concept=40)
    base = measured(planted)
    turn_DD, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(64, 64)))
    turned = shift_vectors(planted.a_ND @ turn_DD, planted.b_ND @ turn_DD, planted.label_N, 6, bootstrap=0)
    scaled = shift_vectors(planted.a_ND * 7, planted.b_ND * 7, planted.label_N, 6, bootstrap=0)
    assert turned.concepts_KD == pytest.approx(base.concepts_KD @ turn_DD, abs=1e-10)
    assert scaled.concepts_KD == pytest.approx(base.concepts_KD * 7, abs=1e-10)
    for k in range(6):
        for name in ("consistency", "pairwise_cosine", "explained", "relative_magnitude"):
            assert turned.stats[k][name] == pytest.approx(base.stats[k][name], abs=1e-8)
            assert scaled.stats[k][name] == pytest.approx(base.stats[k][name], abs=1e-8)
        assert scaled.stats[k]["magnitude"] == pytest.approx(7 * base.stats[k]["magnitude"])


def test_shuffled_rows_and_renamed_concepts_give_the_same_table_up_to_order():
    planted = planted_shift(0, per_concept=40)
    order = np.random.default_rng(1).permutation(240)
    names = np.array([2, 0, 1, 5, 3, 4])
    base = measured(planted, bootstrap=50)
    moved = shift_vectors(
        planted.a_ND[order],
        planted.b_ND[order],
        names[planted.label_N[order]],
        6,
        groups=planted.groups[order],
        bootstrap=50,
    )
    for k in range(6):
        row = moved.stats[names[k]]
        for name, value in base.stats[k].items():
            if name != "concept":
                assert row[name] == pytest.approx(value, abs=1e-10), name


def test_the_basis_holds_the_planted_directions_and_its_energy_adds_up():
    planted = planted_shift(0, noise_b=0.0)
    found = measured(planted, rank=10)
    assert len(found.energy_R) == 6 and found.energy_R[-1] == pytest.approx(1.0)
    assert (np.diff(found.energy_R) > 0).all()
    assert found.basis_RD @ found.basis_RD.T == pytest.approx(np.eye(6), abs=1e-8)
    left = planted.shift_KD - (planted.shift_KD @ found.basis_RD.T) @ found.basis_RD
    assert np.abs(left).max() < 1e-8
    assert found.overall["explained_by_concepts"] == pytest.approx(1.0)
    strongest = (planted.shift_KD[5] ** 2).sum() / (planted.shift_KD**2).sum()
    assert found.energy_R[0] == pytest.approx(strongest)


def test_intervals_over_images_hold_the_length_without_noise_and_grow_with_dependence():
    covered = 0
    for seed in range(20):
        planted = planted_shift(seed, per_concept=60, D=32)
        row = measured(planted, bootstrap=300).stats[0]
        expected = np.sqrt((planted.shift_KD[0] ** 2).sum() + 32 * planted.noise_b**2 / 60)
        covered += row["magnitude_low"] <= expected <= row["magnitude_high"]
        assert row["magnitude_low"] <= row["magnitude"] <= row["magnitude_high"]
        assert row["images"] == 60
    assert covered >= 16
    wide = planted_shift(0, rows_per_image=10)
    rng = np.random.default_rng(0)
    _, number_N = np.unique(wide.groups, return_inverse=True)
    wide.b_ND[:] += rng.normal(size=(number_N.max() + 1, 64))[number_N] * 0.5
    by_image, by_row = (measured(wide, bootstrap=300, groups=g).overall for g in (wide.groups, None))
    assert by_image["magnitude_high"] - by_image["magnitude_low"] > 1.3 * (
        by_row["magnitude_high"] - by_row["magnitude_low"]
    )


def test_the_unbiased_length_takes_out_what_noise_adds():
    lengths = []
    for seed in range(20):
        planted = planted_shift(seed, per_concept=10, noise_b=1.0, shortest=1.5)
        lengths.append([measured(planted).stats[0][name] for name in ("magnitude", "magnitude_unbiased")])
    biased, unbiased = np.mean(lengths, axis=0)
    assert biased > 2.5 and abs(unbiased - 1.5) < 0.5


def test_saved_shifts_come_back_and_are_refused_for_another_model(tmp_path):
    planted = planted_shift(0, per_concept=20)
    made = measured(
        planted, bootstrap=20, provenance={"original": "aa", "tuned": "bb", "layer": "3", "selector": "all"}
    )
    found = ShiftVectors.load(made.save(tmp_path), original="aa", tuned="bb", layer="3")
    for name in ("global_D", "concepts_KD", "residual_KD", "counts_K", "usable_K", "basis_RD", "energy_R"):
        assert np.array_equal(getattr(found, name), getattr(made, name)), name
    assert found.to_json() == made.to_json() and found.provenance["selector"] == "all"
    content = json.loads((tmp_path / "shift_vectors.json").read_text())
    assert {"numpy", "scikit-learn"} <= set(content["versions"]) and content["settings"]["seed"] == 0
    with pytest.raises(ValueError, match="made for tuned 'bb', asked for 'cc'"):
        ShiftVectors.load(tmp_path, tuned="cc")


def test_a_shift_says_what_it_makes_likelier_and_less_likely():
    head = Readout(np.eye(4, dtype=np.float32), None, "none", 0.0, [" dog", " cat", " red", " blue"])
    b_ND = np.tile([2.0, 1.0, -1.0, -3.0], (6, 1))
    rows = shift_vectors(np.zeros((6, 4)), b_ND, np.zeros(6, int), 1, bootstrap=0).words(head)
    assert [row["concept"] for row in rows] == ["all", 0]
    assert rows[1]["more"][:2] == ["dog", "cat"] and rows[1]["less"][:2] == ["blue", "red"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b_ND": np.ones((4, 3))}, "same rows of one width"),
        ({"assignment_N": np.array([0, 1, 2, 0, 0])}, "K=2 allows 0 to 1"),
        ({"aggregate": "mode"}, "known: mean, median, trimmed"),
        ({"groups": ["x"]}, "1 image ids for 5 rows"),
        ({"a_ND": np.full((5, 3), np.inf)}, "original model, row 0: not finite"),
    ],
)
def test_input_that_does_not_pair_is_refused(change, message):
    given = {"a_ND": np.ones((5, 3)), "b_ND": np.ones((5, 3)), "assignment_N": np.zeros(5, int), "K": 2}
    with pytest.raises(ValueError, match=message):
        shift_vectors(**{**given, **change})


def test_a_rotation_is_told_from_shifts_by_the_maps_that_explain_it():
    planted = planted_shift(0)
    turn_DD, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(64, 64)))
    explained = {
        row["map"]: row["explained"] for row in map_rows(planted.a_ND, planted.a_ND @ turn_DD, planted.groups, 6)
    }
    assert explained["rotation and shift"] == pytest.approx(1.0, abs=1e-8)
    assert explained["one shift"] < 0.3
    shifted = planted_shift(0, uniform=True, noise_b=0.0)
    explained = {row["map"]: row["explained"] for row in map_rows(shifted.a_ND, shifted.b_ND, shifted.groups, 6)}
    assert all(value > 0.99 for value in explained.values())


def test_procrustes_finds_a_planted_rotation_and_its_weight_is_one():
    rng = np.random.default_rng(0)
    a_ND = rng.normal(size=(200, 10))
    turn_DD, _ = np.linalg.qr(rng.normal(size=(10, 10)))
    found = fit_rotation(a_ND, a_ND @ turn_DD + 3)
    assert found.predict(a_ND) == pytest.approx(a_ND @ turn_DD + 3, abs=1e-8)
    linear_DD = np.eye(10) + found.basis_DP @ found.weight_PD
    assert linear_DD.T @ linear_DD == pytest.approx(np.eye(10), abs=1e-8)


def test_a_low_rank_map_is_found_at_its_rank_and_not_below():
    rng = np.random.default_rng(0)
    a_ND = rng.normal(size=(600, 20))
    change_DD = rng.normal(size=(20, 3)) @ rng.normal(size=(3, 20))
    b_ND, groups = a_ND + a_ND @ change_DD + 1, np.arange(600)
    left = {}
    for rank in (1, 3):
        found = fit_ridge_map(a_ND, b_ND, groups, rank=rank)
        assert np.linalg.matrix_rank(found.weight_PD, tol=1e-6) == rank
        left[rank] = ((found.predict(a_ND) - b_ND) ** 2).sum() / ((b_ND - a_ND) ** 2).sum()
    assert left[3] < 1e-3 < 0.1 < left[1]
