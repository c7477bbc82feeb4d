"""Promises of the MMHal-Bench scorer: ratings found as the published summary finds them, or strictly."""

import random

import pytest

from hacl.evaluation import InputError, score
from hacl.evaluation.scorers.mmhal import TYPES, parse_official, parse_strict


@pytest.mark.parametrize(
    "review, official, strict",
    [("Good. Rating: 4, somewhat informative", 4, 4), ("rating: 0", 0, 0), ("RATING: 6", 6, 6),
     ("Rating: 60", 6, None), ("Rating: 10", 1, None), ("Rating: 7", None, None), ("Rating:5", None, 5),
     ("**Rating:** 5", None, 5), ("**Rating: 5**", 5, 5), ("Rating: **3**", None, 3), ("Rating:  2", None, 2),
     ("Rating: 2 or rather Rating: 3", None, None), ("Rating: 2 ... rating: 2", 2, 2), ("no number", None, None),
     ("", None, None), ("Rating: 4.5", 4, None), ("Rating: 5.0", 5, 5), ("My rating: 3/6", 3, 3),
     ("operating: 4", 4, None), ("Rating = 1", None, 1), ("评分 Rating: 2 😀", 2, 2), ("Rating: -1", None, None)],
)  # fmt: skip
def test_a_rating_is_read_as_each_parser_reads_it(review, official, strict):
    assert (parse_official(review), parse_strict(review)) == (official, strict)


def reviews(seed=0):
    draw = random.Random(seed)
    texts = [f"Rating: {n}" for n in range(7)] + ["**Rating:** 5", "none", "Rating: 1 Rating: 2"]
    return [{"index": index, "review": draw.choice(texts)} for index in range(96)]


@pytest.mark.parametrize("seed", range(3))
def test_means_are_those_of_the_published_summary_in_any_order(seed):
    rows = reviews(seed)
    scores = [parse_official(row["review"]) or 0 for row in rows]
    random.Random(seed).shuffle(rows)
    report = score("mmhal", rows)
    assert report.metrics["average_score"] == sum(scores) / 96
    assert report.metrics["hallucination_rate"] == sum(value < 3 for value in scores) / 96
    for name, table in report.by_image().items():  # the evidence that intervals and comparisons are made of
        assert report.metrics[name] == pytest.approx(sum(top for top, _ in table.values()) / 96)
    for position, name in enumerate(TYPES):
        own = scores[position::8]
        assert report.groups[name]["average_score"] == report.groups["per_question_type"][name] == sum(own) / 12
    assert [item["score"] for item in report.items] == [scores[row["index"]] for row in rows]
    failed = sum(parse_official(row["review"]) is None for row in rows)
    assert report.metrics["parse_failure_rate"] == failed / 96 and any(str(failed) in w for w in report.warnings)


def test_strict_leaves_unread_reviews_out_of_the_means_and_reports_them():
    rows = [{"index": n, "review": "**Rating:** 4" if n % 2 else "no rating"} for n in range(96)]
    report = score("mmhal", rows, judge_parser="strict")
    assert report.metrics == {"average_score": 4.0, "hallucination_rate": 0.0, "parse_failure_rate": 0.5}
    assert report.groups["attribute"]["average_score"] is None
    assert [item["score"] for item in report.items[:2]] == [None, 4]


def test_indices_may_count_from_one():
    rows = reviews()
    shifted = [{**row, "index": str(row["index"] + 1)} for row in rows]
    report = score("mmhal", shifted)
    assert report.groups == score("mmhal", rows).groups and any("shifted" in line for line in report.warnings)


@pytest.mark.parametrize(
    "change, message",
    [(lambda rows: rows.pop(5), "1 of 96 questions have no review: index 5"),
     (lambda rows: rows.append(dict(rows[3])), "prediction 97: index 3 is reviewed twice"),
     (lambda rows: rows.append({"index": 96, "review": ""}), "count the 96 questions from 0"),
     (lambda rows: rows.append({"index": 120, "review": ""}), "index 120"),
     (lambda rows: rows[0].update(index="first"), "'first' is no number"),
     (lambda rows: rows[0].update(review=None), "'review' must be text")],
)  # fmt: skip
def test_reviews_that_do_not_fit_are_refused(change, message):
    rows = reviews()
    change(rows)
    with pytest.raises(InputError, match=message):
        score("mmhal", rows)


def test_a_part_of_the_questions_can_be_scored_with_a_warning():
    report = score("mmhal", reviews()[:16], allow_missing=True)
    assert report.counts["reviews"] == 16 and any("80 of 96" in line for line in report.warnings)
