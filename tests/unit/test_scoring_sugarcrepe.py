"""Promises of the SugarCrepe scorer: strictly above or wrong, seven accuracies, gaps noticed."""

import random

import pytest

from hacl.evaluation import InputError, score
from hacl.evaluation.scorers.sugarcrepe import SUBSETS


def pairs(subset, size, seed=0):
    draw = random.Random(seed)
    return [
        {"subset": subset, "index": n, "pos_score": draw.choice([0.1, 0.2, 0.3]), "neg_score": 0.2} for n in range(size)
    ]


def test_each_subset_has_its_accuracy_and_ties_are_wrong():
    rows = [row for number, subset in enumerate(SUBSETS) for row in pairs(subset, 30 + number, number)]
    random.Random(1).shuffle(rows)
    report = score("sugarcrepe", rows)
    for subset in SUBSETS:
        own = [row for row in rows if row["subset"] == subset]
        expected = sum(row["pos_score"] > row["neg_score"] for row in own) / len(own)
        assert report.groups[subset] == {"accuracy": expected} and report.metrics[f"{subset}_accuracy"] == expected
    assert sum(SUBSETS.values()) == 7511 and list(report.groups) == list(SUBSETS)
    assert report.counts["ties"] == sum(row["pos_score"] == row["neg_score"] for row in rows)
    assert [item["right"] for item in report.items] == [row["pos_score"] > row["neg_score"] for row in rows]


def test_a_full_subset_raises_no_warning_of_its_size():
    report = score("sugarcrepe", pairs("swap_obj", 245))
    assert not any("published set" in line for line in report.warnings)
    assert any("swap_att is not there" in line for line in report.warnings)
    assert any("published set has 666" in line for line in score("sugarcrepe", pairs("swap_att", 20)).warnings)


def test_a_score_that_is_not_a_number_is_wrong():
    rows = [{"subset": "add_obj", "index": 0, "pos_score": float("nan"), "neg_score": 0}]
    report = score("sugarcrepe", rows)
    assert report.groups["add_obj"]["accuracy"] == 0 and any("not a number" in line for line in report.warnings)


@pytest.mark.parametrize(
    "change, message",
    [(lambda rows: rows.pop(4), "1 predictions are missing: add_att 4"),
     (lambda rows: rows.append(dict(rows[2])), "add_att index 2 is scored twice"),
     (lambda rows: rows[0].update(subset="add_attr"), "did you mean 'add_att'"),
     (lambda rows: rows[0].update(pos_score="0.3"), "'pos_score' must be"),
     (lambda rows: rows[0].update(neg_score=True), "'neg_score' must be"),
     (lambda rows: rows[0].pop("index"), "no 'index'")],
)  # fmt: skip
def test_scores_that_do_not_fit_are_refused(change, message):
    rows = pairs("add_att", 10) + pairs("swap_att", 10)
    change(rows)
    with pytest.raises(InputError, match=message):
        score("sugarcrepe", rows)


def test_gaps_can_be_left_out_with_a_warning_and_one_numbering_of_the_whole_file_has_none():
    rows = pairs("add_att", 10)
    report = score("sugarcrepe", rows[:4] + rows[5:], allow_missing=True)
    assert report.counts["add_att"] == 9 and any("add_att 4" in line for line in report.warnings)
    mixed = [{**row, "subset": ("add_att", "swap_att")[n % 2]} for n, row in enumerate(rows)]
    assert score("sugarcrepe", mixed).counts["swap_att"] == 5


def test_intervals_are_over_images_where_rows_name_them():
    rows = [{**row, "filename": f"{row['index'] // 2}.jpg"} for row in pairs("swap_obj", 245)]
    assert len(score("sugarcrepe", rows).by_image()["swap_obj_accuracy"]) == 123
