"""Promises of the MME scorer: the published arithmetic, with the two questions of an image paired by id."""

import random

import pytest

from hacl.evaluation import InputError, score
from hacl.evaluation.scorers.mme import COGNITION, PERCEPTION, parse_official, parse_strict

REPLIES = ("Yes", "No", "yes, it is", "No.", "None", "Nope", " yes", "Answer: yes", "", "It is 🐈")


@pytest.mark.parametrize(
    "reply, official, strict",
    [("Yes", "yes", "yes"), ("NO", "no", "no"), ("None of them", "no", "other"), ("Not", "no", "other"),
     ("Nope", "no", "other"), ("Snow", "no", "other"), ("Answer: yes", "other", "other"), (" yes", "yes", "yes"),
     ("  yes", "other", "yes"), ("\nno", "no", "no"), ("", "other", "other"), ("no yes", "no", "no"),
     ("eyes", "yes", "other"), ("**No**", "no", "no"), ("***No", "other", "no"), ("Maybe", "other", "other")],
)  # fmt: skip
def test_replies_are_read_from_their_first_four_characters(reply, official, strict):
    assert (parse_official(reply), parse_strict(reply)) == (official, strict)


def rows_of(category, images, draw):
    return [
        {"category": category, "question_id": f"{category}/{n}.png", "answer": gold, "prediction": draw.choice(REPLIES)}
        for n in range(images)
        for gold in ("Yes", "No")
    ]


def by_lines(rows):
    """The published arithmetic for one subtask, whose lines come in pairs."""
    right = [row["answer"].lower() == parse_official(row["prediction"]) for row in rows]
    both = [first and second for first, second in zip(right[::2], right[1::2], strict=True)]
    return sum(right) / len(right) * 100 + sum(both) / len(both) * 100


@pytest.mark.parametrize("seed", range(3))
def test_totals_are_those_of_the_published_arithmetic_to_the_last_digit(seed):
    draw = random.Random(seed)
    table = {name: rows_of(name, draw.randrange(3, 60), draw) for name in PERCEPTION + COGNITION}
    rows = [row for rows in table.values() for row in rows]
    draw.shuffle(rows)
    report = score("mme", rows)
    expected = {name: by_lines(table[name]) for name in table}
    assert {name: report.groups[name]["score"] for name in table} == expected
    assert report.metrics["perception"] == sum(expected[name] for name in PERCEPTION)
    assert report.metrics["cognition"] == sum(expected[name] for name in COGNITION)
    assert report.metrics["hallucination"] == sum(expected[n] for n in ("existence", "count", "position", "color"))
    assert [item["question_id"] for item in report.items] == [row["question_id"] for row in rows]
    for name, pairs in report.by_image().items():
        value = report.metrics.get(name, expected.get(name))
        top, bottom = (sum(pair[side] for pair in pairs.values()) for side in (0, 1))
        assert value == pytest.approx(top / bottom)
        assert report.intervals[name][0] <= value <= report.intervals[name][1]


def test_replies_that_are_neither_are_wrong_but_outside_precision_and_recall():
    rows = [
        {"category": "count", "question_id": n, "answer": gold, "prediction": reply}
        for n, pair in enumerate([("yes", "no"), ("Answer: yes", "yes")])
        for gold, reply in zip(("Yes", "No"), pair, strict=True)
    ]
    report = score("mme", rows)
    assert report.groups["count"] == {"score": 100.0, "acc": 0.5, "acc_plus": 0.5, "precision": 0.5, "recall": 1.0}
    assert report.counts["other"] == 1
    assert report.metrics["perception"] == 100.0 and report.metrics["cognition"] is None
    assert any("cognition lacks" in line for line in report.warnings)


def test_questions_with_ids_of_their_own_are_paired_by_image():
    rows = rows_of("scene", 4, random.Random(0))
    for number, row in enumerate(rows):
        row.update(image=row["question_id"], question_id=number)
    named = score("mme", [{**row, "question_id": row["image"]} for row in rows])
    assert score("mme", rows).groups == named.groups


@pytest.mark.parametrize(
    "change, message",
    [(lambda rows: rows.append(dict(rows[0])), "prediction 9: scene image"),
     (lambda rows: rows.pop(), "1 images have one answer in place of two: scene/scene/3.png"),
     (lambda rows: rows[0].update(category="scenes"), "did you mean 'scene'"),
     (lambda rows: rows[0].update(answer="maybe"), "it must be yes or no"),
     (lambda rows: rows[0].update(prediction=None), "prediction 1: 'prediction' must be text"),
     (lambda rows: rows[0].pop("category"), "prediction 1: no 'category'")],
)  # fmt: skip
def test_rows_that_do_not_fit_are_refused_by_place(change, message):
    rows = rows_of("scene", 4, random.Random(0))
    change(rows)
    with pytest.raises(InputError, match=message):
        score("mme", rows)


def test_the_same_question_twice_is_a_duplicate_even_if_the_other_is_gone():
    rows = [{**row, "question": row["answer"] + "?"} for row in rows_of("scene", 2, random.Random(0))]
    with pytest.raises(InputError, match="scene/0.png"):
        score("mme", [rows[0], rows[0], *rows[2:]])


def test_a_single_answer_can_be_scored_with_a_warning():
    rows = rows_of("scene", 4, random.Random(0))
    report = score("mme", rows[1:], allow_missing=True)
    assert any("scene/0.png" in line for line in report.warnings)
    assert report.groups["scene"]["acc"] == sum(item["right"] for item in report.items) / 7
