"""Promises about what a concept comparison reports: words, correlations, drift, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from hacl.compare.concept_recovery import ConceptReport, concept_recovery
from hacl.compare.correlations import correlate
from hacl.compare.drift import drift
from hacl.compare.headline import gain_columns
from hacl.compare.plain import csv_text, plain
from hacl.compare.recovery_split import Options, make_split, recovery, recovery_draws
from hacl.compare.resampling import image_draws, numbered_groups, split_rows
from hacl.compare.transfer import transfer
from hacl.representations.grounding import WordRule
from hacl.representations.readout import Readout
from tests.reference.planted_shift import Planted, planted_shift

FAST = {"splits": 2, "bootstrap": 100, "mas": 20}


@cache
def report() -> ConceptReport:
    planted = planted_shift(0)
    return concept_recovery(planted.a_ND, planted.b_ND, planted.groups, 6, **FAST)


def head_of(planted: Planted) -> Readout:
    """Words of the original's concepts are animals, those of the shifts are colours."""
    animals = ["dog", "cat", "horse", "bird", "cow", "sheep"]
    colours = ["red", "blue", "green", "white", "black", "brown"]
    unit = np.concatenate([planted.centre_KD, planted.shift_KD])
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    return Readout(unit.astype(np.float32), None, "none", 0.0, [*animals, *colours])


def test_words_of_the_shifted_concept_come_closer_to_those_of_the_tuned_one():
    planted = planted_shift(0, shortest=3.0)
    rule = WordRule.default(words=2)
    found = concept_recovery(
        planted.a_ND, planted.b_ND, planted.groups, 6, words=head_of(planted), word_rule=rule, parity=True, **FAST
    )
    for row in found.rows:
        assert len(row["words_tuned"]) == row["t_overlap_of"] == 2
        assert row["t_overlap_before"] >= 50.0 and row["t_overlap_after"] == 100.0
        assert row["normalized_improved_cosine"] == pytest.approx(row["gain"] / row["cosine_before"])
    assert sum(row["t_overlap_before"] == 50.0 for row in found.rows) >= 4
    assert found.settings["word_rule"]["words"] == 2


def test_correlations_are_those_of_scipy_named_by_both_axes_with_n_interval_and_p():
    rng = np.random.default_rng(0)
    x = rng.normal(size=20)
    y = x + rng.normal(size=20)
    pearson, spearman = correlate([*x, None, 1.0], [*y, 2.0, None], "consistency", "held-out R")
    assert pearson["r"] == pytest.approx(pearsonr(x, y).statistic) and pearson["p"] == pytest.approx(
        pearsonr(x, y).pvalue
    )
    assert spearman["r"] == pytest.approx(spearmanr(x, y).statistic)
    expected = pearsonr(x, y).confidence_interval()
    assert (pearson["low"], pearson["high"]) == pytest.approx(tuple(expected))
    assert spearman["low"] < spearman["r"] < spearman["high"] and pearson["n"] == spearman["n"] == 20
    assert (pearson["x"], pearson["y"], pearson["coefficient"]) == ("consistency", "held-out R", "pearson")


def test_correlations_without_enough_or_varying_values_are_undefined():
    assert all(row["r"] is None for row in correlate([1.0, 2.0], [1.0, 2.0], "x", "y"))
    assert all(row["r"] is None for row in correlate([1.0] * 5, [1, 2, 3, 4, 5], "x", "y"))
    assert all(row["low"] is None for row in correlate([1, 2, 3], [1, 2, 4], "x", "y"))
    with pytest.raises(ValueError, match="give pairs"):
        correlate([1.0], [1.0, 2.0], "x", "y")


def test_the_report_correlates_consistency_and_magnitude_with_held_out_recovery():
    rows = report().correlations
    assert [row["coefficient"] for row in rows] == ["pearson", "spearman"] * 3
    assert rows[0]["x"].startswith("consistency") and rows[4]["x"].startswith("magnitude")
    moved = report().rows
    expected = pearsonr([row["magnitude"] for row in moved], [row["R_held"] for row in moved]).statistic
    assert rows[4]["r"] == pytest.approx(expected) and rows[4]["n"] == 6


def test_a_difference_beyond_noise_but_of_no_size_is_not_called_concept_specific():
    tiny = {"gain_over_global": 0.004, "gain_over_global_low": 0.002, "gain_over_global_high": 0.006}
    assert "is not shown to be concept-specific" in replace(report(), headline=report().headline | tiny).verdict()
    large = {name: 10 * value for name, value in tiny.items()}
    assert "is concept-specific" in replace(report(), headline=report().headline | large).verdict()


def test_a_saved_report_is_plain_json_with_a_csv_per_table(tmp_path):
    path = report().save(tmp_path)
    content = json.loads(path.read_text())
    assert content["headline"]["gain_over_global"] == report().headline["gain_over_global"]
    assert content["settings"]["seed"] == 0 and len(content["rows"]) == 6
    first = content["rows"][0]
    assert content["similarity"][0][first["matched"]] == pytest.approx(first["match_cosine"])
    names = {p.name for p in tmp_path.glob("*.csv")}
    assert names == {f"concept_recovery_{t}.csv" for t in ("concepts", "controls", "alpha", "correlations", "splits")}
    table = list(csv.DictReader(io.StringIO((tmp_path / "concept_recovery_concepts.csv").read_text())))
    assert float(table[0]["R_held"]) == pytest.approx(report().rows[0]["R_held"])


def test_plain_values_hold_no_numpy_and_no_nan():
    value = {"a": np.float64("nan"), "b": [np.int64(3), np.bool_(True)], "c": np.array([1.0, np.inf]), 4: (1,)}
    assert plain(value) == {"a": None, "b": [3, True], "c": [1.0, None], "4": [1]}
    assert csv_text([{"a": 1, "b": ["x", "y"]}, {"a": None, "c": 2}]) == "a,b,c\n1,x y,\n,,2\n"


def test_drift_starts_at_nothing_and_grows_with_the_checkpoints():
    planted = planted_shift(0, per_concept=60)
    states = [planted.a_ND + share * (planted.b_ND - planted.a_ND) for share in (0.0, 0.5, 1.0)]
    found = drift(states, ["0", "500", "1000"], planted.groups, 6, words=head_of(planted), bootstrap=50)
    first, middle, last = found.rows
    assert first["cosine"] == pytest.approx(1.0) and first["magnitude"] == 0.0 and first["t_overlap"] == 100.0
    assert 1 > middle["cosine"] > last["cosine"] and 0 < middle["magnitude"] < last["magnitude"]
    assert last["magnitude_low"] < last["magnitude"] < last["magnitude_high"]
    assert last["agreement"] == 1.0 and len(found.concepts) == 18 and found.concepts[0]["words"]
    json.dumps(found.to_json(), allow_nan=False)
    with pytest.raises(ValueError, match="two or more"):
        drift(states[:1], ["0"], planted.groups, 6)


def test_the_headline_interval_averages_splits_draw_by_draw_and_adds_their_spread():
    draws_R1 = np.random.default_rng(0).normal(size=(4000, 1)) * 0.1
    zero_K, zero_RK = np.zeros(2), np.zeros((4000, 2))

    def width(values: list[float], signs: list[int]) -> tuple[float, float]:
        found = [
            (np.full(2, value), zero_K, value + sign * draws_R1 + zero_RK, zero_RK)
            for value, sign in zip(values, signs, strict=True)
        ]
        row = gain_columns(found, ("own", "common", "gain"), 50)
        assert row["own"] == row["gain"] == pytest.approx(np.mean(values)) and row["common"] == 0.0
        return row["own"] - row["own_low"], row["own_high"] - row["own"]

    assert width([0.5, 0.5], [1, 1]) == pytest.approx((0.196, 0.196), abs=0.01)
    assert width([0.5, 0.5], [1, -1]) == pytest.approx((0.0, 0.0), abs=1e-9)
    assert width([0.4, 0.6], [0, 0]) == pytest.approx((0.1 * np.sqrt(2), 0.1 * np.sqrt(2)), abs=0.01)


def test_recovery_and_transfer_of_drawn_images_are_those_of_their_rows_repeated():
    planted = planted_shift(0, per_concept=20)
    a_ND, b_ND = planted.a_ND, planted.b_ND
    image_N, images = numbered_groups(planted.groups)
    fit, held = split_rows(planted.groups, 0.5, 0)
    split = make_split(a_ND, b_ND, image_N, 6, fit, held, Options(min_size=2), 0)
    weight_RG = image_draws(images, 3, 0)
    own_RK, common_RK = recovery_draws(a_ND, b_ND, image_N, split, weight_RG)
    carried = transfer(a_ND, b_ND, image_N, split, weight_RG, min_size=2)
    assert split.ok_K.sum() >= 4
    for r, weight_G in enumerate(weight_RG):
        times_N = weight_G[image_N].astype(int)

        def mean(x_ND, rows, times_N=times_N):
            return np.repeat(x_ND[rows], times_N[rows], axis=0).mean(axis=0)

        everything_D = mean(b_ND, fit) - mean(a_ND, fit)
        for k in np.flatnonzero(split.ok_K):
            mine, matched = fit[split.concept_fit == k], held[split.concept_held == split.matches[k].b]
            before_D, shift_D = mean(a_ND, mine), mean(b_ND, mine) - mean(a_ND, mine)
            gap_D = mean(b_ND, matched) - before_D
            assert own_RK[r, k] == pytest.approx(recovery(gap_D, shift_D), abs=1e-9)
            assert common_RK[r, k] == pytest.approx(recovery(gap_D, everything_D), abs=1e-9)
            theirs = held[split.carried_held == k]
            moved_D = mean(b_ND, theirs) - mean(a_ND, theirs)
            assert carried[2][r, k] == pytest.approx(recovery(moved_D, shift_D), abs=1e-9)
            assert carried[3][r, k] == pytest.approx(recovery(moved_D, everything_D), abs=1e-9)
