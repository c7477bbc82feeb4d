"""Promises of the POPE scorer: what the published scripts print on the same answers, joined by id."""

import json
import random

import pytest

from hacl.evaluation import InputError, score
from hacl.evaluation.scorers.pope import PARSERS, parse_official, parse_opera, parse_strict

# reply: what the official script, OPERA's and the strict parser make of it
READINGS = {
    "Yes": ("yes", "yes", "yes"),
    "no": ("no", "no", "no"),
    "": ("yes", "yes", None),
    "I don't know": ("yes", "no", None),
    "cannot": ("yes", "yes", None),
    "There isn't one": ("yes", "no", None),
    "NO": ("yes", "no", "no"),
    "Nope": ("yes", "yes", None),
    "no!": ("yes", "yes", "no"),
    "no\nthere is none": ("yes", "yes", "no"),
    "No,there is": ("yes", "yes", "no"),
    "No, there is": ("no", "no", "no"),
    "Yes, and there is no doubt": ("no", "no", "yes"),
    "Yes. There is not a cat": ("yes", "no", "yes"),
    ".no": ("yes", "no", "no"),
    "n.o": ("yes", "no", None),
    "no. yes": ("no", "no", "no"),
    "No-one": ("yes", "yes", None),
    "not": ("no", "no", None),
    "noël 🎄": ("yes", "yes", None),
    "**No**": ("yes", "yes", "no"),
    "yes\tno": ("yes", "yes", "yes"),
    "no\u00a0dog": ("yes", "yes", "no"),
}


@pytest.mark.parametrize("reply", READINGS)
def test_replies_are_read_as_each_script_reads_them(reply):
    assert (parse_official(reply), parse_opera(reply), parse_strict(reply)) == READINGS[reply]


def by_lines(replies, labels, parser):
    """The published arithmetic, over pairs in line order."""
    read = [PARSERS[parser](reply) for reply in replies]
    gold = ["no" if label == "no" else "yes" for label in labels]
    count = {pair: 0 for pair in [("yes", "yes"), ("yes", "no"), ("no", "no"), ("no", "yes")]}
    for pair in zip(read, gold, strict=True):
        count[pair] += 1
    tp, fp, tn, fn = count.values()
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    return {
        "accuracy": (tp + tn) / (tp + tn + fp + fn),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall),
        "yes_ratio": read.count("yes") / len(read),
        **{"TP": tp, "FP": fp, "TN": tn, "FN": fn},
    }


def questions(labels):
    return [
        {"question_id": n, "image": f"i{n // 6}", "text": "Is there a cat?", "label": label}
        for n, label in enumerate(labels, 1)
    ]


@pytest.mark.parametrize("parser", ["official", "opera"])
@pytest.mark.parametrize("seed", range(5))
def test_every_digit_is_that_of_the_published_arithmetic(parser, seed):
    draw = random.Random(seed)
    size = draw.randrange(40, 400)
    labels = [draw.choice(["yes", "no", "No", "unsure"]) for _ in range(size)]
    replies = [draw.choice(list(READINGS)) for _ in range(size)]
    rows = [{"question_id": n, "answer": reply, "question": "?"} for n, reply in enumerate(replies, 1)]
    draw.shuffle(rows)
    report = score("pope", rows, questions(labels), parser=parser)
    assert report.metrics == by_lines(replies, labels, parser)
    for item in report.items:
        assert item["parsed"] == PARSERS[parser](replies[item["question_id"] - 1])


def test_a_confusion_matrix_worked_out_by_hand():
    cells = {("yes", "yes"): 3, ("yes", "no"): 1, ("no", "yes"): 2, ("no", "no"): 4}  # (reply, label): questions
    pairs = [pair for pair, count in cells.items() for _ in range(count)]
    answers = [{"question_id": n, "answer": reply, "question": "?"} for n, (reply, _) in enumerate(pairs)]
    asked = [{"question_id": n, "image": "a", "text": "?", "label": label} for n, (_, label) in enumerate(pairs)]
    found = score("pope", answers, asked).metrics
    assert (found["TP"], found["FP"], found["FN"], found["TN"]) == (3, 1, 2, 4)
    assert found["accuracy"] == pytest.approx(0.7) and found["f1"] == pytest.approx(2 / 3)


def test_sums_by_image_add_up_to_the_metrics():
    draw = random.Random(0)
    labels = [draw.choice(["yes", "no"]) for _ in range(60)]
    rows = [{"question_id": n, "answer": draw.choice(["yes", "no", "hm"])} for n in range(1, 61)]
    for parser in PARSERS:
        report = score("pope", rows, questions(labels), parser=parser)
        for name, table in report.by_image().items():
            top, bottom = (sum(pair[side] for pair in table.values()) for side in (0, 1))
            assert report.metrics[name] == pytest.approx(top / bottom), name
            assert len(table) == 11 and report.intervals[name][0] <= report.metrics[name] <= report.intervals[name][1]


def test_strict_counts_what_it_cannot_read_as_wrong_and_says_so():
    rows = [{"question_id": n, "answer": reply} for n, reply in enumerate(["yes", "hm", "hm", "no"], 1)]
    report = score("pope", rows, questions(["yes", "yes", "no", "no"]), parser="strict")
    assert report.metrics["unparsed"] == 0.5 and report.metrics["accuracy"] == 0.5 and report.metrics["recall"] == 0.5
    assert report.metrics["yes_ratio"] == 0.25 and report.metrics["TN"] == 1 and report.counts["unparsed"] == 2
    assert any("2 replies" in line for line in report.warnings)
    with pytest.raises(InputError, match="'unsure'"):
        score("pope", rows, questions(["yes", "yes", "no", "unsure"]), parser="strict")


@pytest.mark.parametrize(
    "change, message",
    [(lambda rows: rows.append(dict(rows[0])), "question_id 1 is answered twice"),
     (lambda rows: rows.pop(0), "1 of 4 questions have no answer: question_id 1"),
     (lambda rows: rows.append({"question_id": 9, "answer": "no"}), "question_id 9 is not in the references"),
     (lambda rows: rows.append({"question_id": [1], "answer": "no"}), "'question_id' must be"),
     (lambda rows: rows[1].update(answer=None), "prediction 2: 'answer' must be text"),
     (lambda rows: rows[1].update(answer=["yes"]), "prediction 2: 'answer' must be text"),
     (lambda rows: rows[1].pop("answer"), "prediction 2: no 'answer'"),
     (lambda rows: rows[1].pop("question_id"), "prediction 2: no 'question_id'")],
)  # fmt: skip
def test_answers_that_do_not_fit_the_questions_are_refused_by_place_and_id(change, message):
    rows = [{"question_id": n, "answer": "no"} for n in range(1, 5)]
    change(rows)
    with pytest.raises(InputError, match=message.replace("[", r"\[")):
        score("pope", rows, questions(["yes", "no"] * 2))


def test_missing_answers_can_be_left_out_with_a_warning():
    rows = [{"question_id": n, "answer": "yes"} for n in (2, 3, 4)]
    report = score("pope", rows, questions(["yes", "no", "yes", "no"]), allow_missing=True)
    assert report.metrics["accuracy"] == 1 / 3 and report.counts == {
        "predictions": 3, "questions": 4, "scored": 3, "unparsed": 0,
    }  # fmt: skip
    assert any("question_id 1" in line for line in report.warnings)


def test_an_id_is_the_same_as_a_number_and_as_text():
    asked = [{**row, "question_id": str(row["question_id"])} for row in questions(["yes", "no"])]
    rows = [{"question_id": n, "answer": "no"} for n in (1, 2)]
    assert score("pope", rows, asked).metrics["accuracy"] == 0.5
    texts = [{"question_id": str(n), "answer": "no"} for n in (1, 2)]
    assert score("pope", texts, questions(["yes", "no"])).metrics["accuracy"] == 0.5
    with pytest.raises(InputError, match="answered twice"):
        score("pope", rows + texts, asked)


def test_a_question_asked_twice_is_refused():
    with pytest.raises(InputError, match="question_id 1 is asked twice"):
        score("pope", [{"question_id": 1, "answer": "no"}], questions(["yes"]) * 2)


def test_a_reply_of_a_megabyte_and_any_script_are_read():
    long = "Yes " + "there is a döner 🥙 and 猫 " * 40_000 + "no"
    rows = [{"question_id": 1, "answer": long}, {"question_id": 2, "answer": "いいえ"}]
    report = score("pope", rows, questions(["no", "no"]))
    assert [item["parsed"] for item in report.items] == ["no", "yes"]


def test_a_folder_with_the_upstream_files_needs_the_split(tmp_path):
    for split in ("random", "popular"):
        text = "".join(json.dumps(row) + "\n" for row in questions(["yes", "no"]))
        (tmp_path / f"coco_pope_{split}.json").write_text(text)
    rows = [{"question_id": n, "answer": "no"} for n in (1, 2)]
    report = score("pope", rows, tmp_path, split="random")
    assert list(report.meta["inputs"])[0].endswith("coco_pope_random.json")
    for split in (None, "adversarial"):
        with pytest.raises(InputError, match="coco_pope_popular.json, coco_pope_random.json"):
            score("pope", rows, tmp_path, split=split)
