"""AMBER: every quirk of the published script, in cases small enough to check by hand."""

from __future__ import annotations

import random

import pytest

from hacl.evaluation.scorers import InputError, score
from hacl.evaluation.scorers.amber import parse_exact, parse_strict
from hacl.evaluation.scorers.amber_figures import EXISTENCE_EPSILON, AnswerCounts, answer_figures

RELATION = {
    "person": ["people", "man"],
    "man": ["person"],
    "ship": ["boat"],
    "lake": ["water"],
    "dog": [],
    "cat": [],
    "sun": [],
    "orange": ["tangerine"],
    "can": [],
    "flower": [],
    "wolf": [],
}
SAFE = ["orange", "light"]


def image(truth, hallu=()):
    return {"type": "generative", "truth": list(truth), "hallu": list(hallu)}


def question(kind, truth):
    return {"type": kind, "truth": truth}


STATE, NUMBER, ACTION = (f"discriminative-attribute-{kind}" for kind in ("state", "number", "action"))
EXISTENCE = "discriminative-hallucination"


def references(*entries):
    annotations = [{"id": position, **entry} for position, entry in enumerate(entries, 1)]
    return {"annotations": annotations, "relation": RELATION, "safe_words": SAFE}


def caption_report(entry, nouns, **options):
    predictions = [{"id": 1, "response": "ignored, the nouns are given"}]
    return score("amber", predictions, references(entry), nouns={1: nouns}, **options)


def answers_report(entries, replies, **options):
    predictions = [{"id": position, "response": reply} for position, reply in enumerate(replies, 1)]
    return score("amber", predictions, references(*entries), **options)


def test_a_listed_noun_that_nothing_explains_counts_and_unlisted_nouns_do_not():
    report = caption_report(image(["dog", "lake"], ["sun"]), ["dog", "sun", "sun", "telescope"], rounding="none")
    assert report.metrics["CHAIR"] == pytest.approx(200 / 3)  # dog, sun, sun: repetition counts
    assert report.metrics["Cover"] == 50 and report.metrics["Hal"] == 100 and report.metrics["Cog"] == 100
    item = report.items[0]
    assert item["nouns"] == ["dog", "sun", "sun"] and item["hallucinated"] == ["sun", "sun"]


def test_denominators_start_at_a_thousandth():
    report = caption_report(image(["dog", "lake", "ship"], ["sun"]), ["dog", "lake", "sun"])
    # 1/3.001, 2/3.001, 100 - 0/1.001, 1/1.001
    assert report.groups["generative"] == {"CHAIR": 33.3, "Cover": 66.6, "Hal": 100.0, "Cog": 99.9}


def test_a_single_clean_caption_has_a_hal_of_a_tenth():
    assert caption_report(image(["dog"]), ["dog"]).metrics["Hal"] == 0.1  # 100 - 1/1.001 * 100 = 0.0999


def test_a_relative_covers_the_word_it_is_listed_for_and_relatives_come_first():
    report = caption_report(image(["person", "man"]), ["man"])
    assert report.items[0]["covered"] == ["person"]  # "man" is met as a relative of "person" before it is met itself
    report = caption_report(image(["man", "person"]), ["man"])
    assert report.items[0]["covered"] == ["person"]
    assert report.metrics["Cover"] == 50.0


def test_a_truth_word_listed_twice_is_covered_once_but_counted_twice():
    report = caption_report(image(["ship", "ship"]), ["ship", "boat", "ship"], rounding="none")
    assert report.metrics["Cover"] == 50 and report.metrics["CHAIR"] == 0


def test_safe_words_are_never_wrong_and_stay_in_the_denominator():
    report = caption_report(image(["dog"], ["orange"]), ["orange", "sun"], rounding="none")
    assert report.metrics["CHAIR"] == 50
    assert report.metrics["Cog"] == 0  # passed over before the list of typical hallucinations is looked at


def test_a_word_that_is_truth_and_typical_hallucination_counts_as_truth_only():
    report = caption_report(image(["sun"], ["sun", "cat"]), ["sun"], rounding="none")
    assert report.metrics["Cog"] == 0 and report.metrics["Cover"] == 100


def test_a_noun_on_the_hallucination_list_may_still_be_excused_by_similarity():
    report = caption_report(image(["dog"], ["wolf"]), ["wolf"], similarity={"wolf|dog": 0.85}, rounding="none")
    assert report.metrics["CHAIR"] == 0 and report.metrics["Hal"] == 0
    assert report.metrics["Cover"] == 100 and report.metrics["Cog"] == 100


def test_similarity_must_exceed_the_threshold():
    case = image(["dog"], [])
    assert caption_report(case, ["wolf"], similarity={"wolf|dog": 0.8}).items[0]["hallucinated"] == ["wolf"]
    loose = caption_report(case, ["wolf"], similarity={"wolf|dog": 0.8}, similarity_threshold=0.7)
    assert loose.items[0]["hallucinated"] == []


def test_an_exact_typical_hallucination_also_marks_the_first_similar_one():
    report = caption_report(image(["sun"], ["cat", "dog"]), ["dog"], similarity={"dog|cat": 0.9})
    assert report.items[0]["invented"] == ["cat", "dog"]
    report = caption_report(image(["sun"], ["dog", "cat"]), ["dog"], similarity={"dog|cat": 0.9})
    assert report.items[0]["invented"] == ["dog"]  # the first similar one is the word itself


def test_similarity_to_a_relative_covers_its_head_word():
    report = caption_report(image(["dog", "lake"]), ["flower"], similarity={"water|flower": 0.9})
    assert report.items[0]["covered"] == ["lake"]


def test_a_caption_without_listed_nouns_is_clean_and_its_undefined_chair_is_told():
    report = caption_report(image(["dog"], ["cat"]), ["telescope"])
    assert report.metrics["CHAIR"] == 0.0 and report.metrics["Hal"] == 0.1
    assert any("CHAIR" in line and "0/0" in line for line in report.warnings)
    assert caption_report(image(["dog"]), [], rounding="none").metrics["CHAIR"] is None


def test_no_is_the_positive_class():
    entries = [question(STATE, truth) for truth in ("no", "no", "no", "yes", "yes")]
    report = answers_report(entries, ["No", "No", "Yes", "No", "Yes"], rounding="none")
    assert report.metrics["Accuracy"] == 60
    assert report.metrics["Precision"] == pytest.approx(200 / 3)  # three times No, two of them right
    assert report.metrics["Recall"] == pytest.approx(200 / 3)
    assert report.metrics["F1"] == pytest.approx(200 / 3)


def test_official_f1_is_computed_from_rounded_precision_and_recall():
    entries = [question(STATE, truth) for truth in ("no", "no", "no", "yes", "yes")]
    report = answers_report(entries, ["No", "No", "Yes", "No", "Yes"])
    # 2/3.001 = 66.6 each; 2 * .666 * .666 / (1.332 + .0001) = 66.595 -> 66.6; accuracy 3/5.001 = 59.988
    expected = {"Accuracy": 60.0, "Precision": 66.6, "Recall": 66.6, "F1": 66.6}
    assert report.groups["discriminative"] == report.groups["state"] == expected
    # attribute adds three kinds: 2/3.003 = 66.6, 3/5.003 = 59.96
    assert report.groups["attribute"] == {"Accuracy": 60.0, "Precision": 66.6, "Recall": 66.6, "F1": 66.6}


def test_attribute_adds_three_offsets_where_the_overall_figure_adds_one():
    report = answers_report([question(STATE, "no")], ["No"])
    assert report.groups["discriminative"]["Accuracy"] == 99.9  # 1/1.001
    assert report.groups["attribute"]["Accuracy"] == 99.7  # 1/1.003
    assert report.groups["state"]["Accuracy"] == 99.9


def test_existence_adds_ten_times_more_to_the_denominator_of_f1():
    existence = answers_report([question(EXISTENCE, "no")], ["No"]).groups["existence"]
    state = answers_report([question(STATE, "no")], ["No"]).groups["state"]
    assert existence["Precision"] == existence["Recall"] == state["Precision"] == 99.9
    assert existence["F1"] == 99.9 and state["F1"] == 99.9  # 2*.999*.999/(1.998+.001)=.9985, with .0001: .99895
    many = answers_report([question(EXISTENCE, "no")] * 10, ["No"] * 10).groups["existence"]
    assert many["Precision"] == 100.0 and many["F1"] == 100.0  # .9995 rounds up
    few = answers_report([question(EXISTENCE, "no")] * 10, ["No"] + ["Yes"] * 9).groups["existence"]
    # P = 1/1.001 = 99.9, R = 1/10.001 = 10.0: 2 * .999 * .1 / (1.099 + .001) = 18.16
    assert few == {"Accuracy": 10.0, "Precision": 99.9, "Recall": 10.0, "F1": 18.2}


@pytest.mark.parametrize("reply", ["No.", "no", "No, there is none", " No", "NO", ""])
def test_a_reply_that_is_not_exactly_no_is_wrong_and_invisible_in_precision(reply):
    entries = [question("discriminative-relation", "no"), question("relation", "no")]
    report = answers_report(entries, ["No", reply])
    assert report.groups["relation"]["Precision"] == 99.9
    assert report.groups["relation"]["Accuracy"] == report.groups["relation"]["Recall"] == 50.0
    assert report.counts["unparsed"] == 1 and any("exactly Yes or No" in line for line in report.warnings)
    assert report.items[1]["parsed"] is None


def test_the_strict_parser_takes_whole_words_and_refuses_both():
    assert parse_exact("Yes.") is None
    assert parse_strict("No, there is none.") == "no" and parse_strict("YES!") == "yes"
    assert parse_strict("I know that nothing is not there") is None and parse_strict("yes and no") is None
    report = answers_report([question(STATE, "no")], ["No."], answer_parser="strict")
    assert report.metrics["Accuracy"] == 99.9


def test_without_a_no_the_official_precision_is_zero_and_the_plain_one_is_null():
    entries = [question(EXISTENCE, "no"), question(STATE, "yes")]
    report = answers_report(entries, ["Yes", "Yes"])
    assert report.metrics["Precision"] == 0.0 and report.groups["number"]["F1"] == 0.0
    assert any("Precision" in line and "0/0" in line for line in report.warnings)
    plain = answers_report(entries, ["Yes", "Yes"], rounding="none")
    assert plain.metrics["Precision"] is None and plain.groups["number"] == dict.fromkeys(plain.groups["number"])


def test_the_amber_score_needs_both_tasks():
    entries = [image(["dog"], ["sun"]), question(STATE, "no")]
    predictions = [{"id": 1, "response": "x"}, {"id": 2, "response": "No"}]
    report = score("amber", predictions, references(*entries), nouns={1: ["dog", "sun"]})
    assert report.metrics["CHAIR"] == 50.0 and report.metrics["F1"] == 99.9
    assert report.metrics["amber_score"] == pytest.approx((100 - 50.0 + 99.9) / 2)
    only = answers_report([question(STATE, "no")], ["No"])
    assert only.metrics["amber_score"] is None and only.groups["generative"]["CHAIR"] is None


def slow_caption(nouns, truth, hallu, similar):
    """Flag lists, position by position: the obvious way to count one caption."""
    kept = [noun for noun in nouns if noun in RELATION or any(noun in words for words in RELATION.values())]

    def table(words):
        entries = [(relative, owner) for owner, word in enumerate(words) for relative in RELATION[word]]
        return entries + [(word, owner) for owner, word in enumerate(words)]

    def mark(flags, entries, test):
        for word, owner in entries:
            if test(word):
                flags[owner] = 1
                return True
        return False

    covered, invented, wrong = [0] * len(truth), [0] * len(hallu), []
    for noun in kept:
        if noun in SAFE or mark(covered, table(truth), lambda word, noun=noun: word == noun):
            continue
        mark(invented, table(hallu), lambda word, noun=noun: word == noun)
        mark(invented, table(hallu), lambda word, noun=noun: similar(noun, word) > 0.8)
        if not mark(covered, table(truth), lambda word, noun=noun: similar(noun, word) > 0.8):
            wrong.append(noun)
    return len(wrong), len(kept), sum(covered), sum(invented)


def test_random_captions_count_like_the_slow_twin():
    draw = random.Random(7)
    words = sorted(set(RELATION) | {word for relatives in RELATION.values() for word in relatives}) + ["telescope"]
    table = {f"{draw.choice(words)}|{draw.choice(words)}": draw.random() for _ in range(120)}

    def similar(word, other):
        return 1.0 if word == other else table.get(f"{word}|{other}", table.get(f"{other}|{word}", 0.0))

    heads = sorted(RELATION)
    entries = [image(draw.choices(heads, k=4), draw.choices(heads, k=3)) for _ in range(60)]
    nouns = {position: draw.choices(words, k=draw.randrange(9)) for position in range(1, 61)}
    predictions = [{"id": position, "response": ""} for position in nouns]
    report = score("amber", predictions, references(*entries), nouns=nouns, similarity=table)
    rows = [slow_caption(nouns[i], e["truth"], e["hallu"], similar) for i, e in enumerate(entries, 1)]
    wrong, kept, covered, invented = (sum(column) for column in zip(*rows, strict=True))
    assert report.groups["generative"] == {
        "CHAIR": round(wrong / (kept + 0.001) * 100, 1),
        "Cover": round(covered / 240.001 * 100, 1),
        "Hal": round(100 - sum(not row[0] for row in rows) / 60.001 * 100, 1),
        "Cog": round(invented / 180.001 * 100, 1),
    }
    draw.shuffle(predictions)
    again = score("amber", predictions, references(*entries), nouns=nouns, similarity=table)
    assert again.metrics == report.metrics and again.groups == report.groups
    assert [item["id"] for item in again.items] == [row["id"] for row in predictions]


MIXED = [image(["dog"]), image(["cat"]), question(STATE, "no"), question(EXISTENCE, "no")]


def test_missing_repeated_and_unknown_ids_are_errors():
    rows = [{"id": number, "response": "No"} for number in (1, 2, 3, 4)]
    assert score("amber", rows, references(*MIXED)).counts["missing"] == 0
    with pytest.raises(InputError, match="4"):
        score("amber", rows[:3], references(*MIXED))
    report = score("amber", rows[:3], references(*MIXED), allow_missing=True)
    assert any("1 ids of" in line and "4" in line for line in report.warnings)
    with pytest.raises(InputError, match="answered twice"):
        score("amber", [*rows, rows[0]], references(*MIXED))
    for bad in (0, 5, -1, "1", True, 1.0, None):
        with pytest.raises(InputError, match="id"):
            score("amber", [{"id": bad, "response": "No"}], references(*MIXED), allow_missing=True)
    with pytest.raises(InputError, match="response"):
        score("amber", [{"id": 1, "response": None}], references(*MIXED))


def test_one_task_alone_is_complete_and_the_evaluation_type_can_demand_more():
    captions = [{"id": 1, "response": "a dog"}, {"id": 2, "response": "a cat"}]
    report = score("amber", captions, references(*MIXED))
    assert report.metrics["CHAIR"] == 0.0 and report.metrics["Accuracy"] is None
    with pytest.raises(InputError, match="3, 4"):
        score("amber", captions, references(*MIXED), evaluation_type="a")
    state = score("amber", [{"id": 3, "response": "No"}], references(*MIXED), evaluation_type="da")
    assert state.groups["attribute"]["Accuracy"] == 99.7 and state.groups["existence"]["Accuracy"] is None


def test_annotations_are_found_by_position():
    content = references(*MIXED)
    content["annotations"] = content["annotations"][2:]
    with pytest.raises(InputError, match="entry 1 has id 3"):
        score("amber", [{"id": 1, "response": "No"}], content)


def test_unicode_and_empty_replies_are_scored():
    rows = [{"id": 1, "response": ""}, {"id": 2, "response": "猫 and a cat 🙂"}]
    report = score("amber", rows, references(*MIXED))
    assert report.counts["captions"] == 2 and report.metrics["Cover"] == 50.0


def test_a_reply_of_a_megabyte_is_a_reply():
    rows = [{"id": 1, "response": "a dog " * 170_000}, {"id": 2, "response": "*" * 1_000_000}]
    report = score("amber", rows, references(*MIXED))
    assert report.counts["nouns"] == 170_000 and report.metrics["CHAIR"] == 0.0


def test_intervals_are_in_the_units_of_the_metrics():
    entries = [image(["dog"], ["sun"]) for _ in range(20)]
    nouns = {number: ["dog", "sun"] if number % 2 else ["dog"] for number in range(1, 21)}
    rows = [{"id": number, "response": ""} for number in nouns]
    report = score("amber", rows, references(*entries), nouns=nouns)
    low, high = report.intervals["CHAIR"]
    assert low < report.metrics["CHAIR"] < high and high > 1


def test_what_the_script_adds_under_f1_shows_in_the_last_digit():
    one_of_nine = [AnswerCounts(questions=12, right=1, gold_no=3, said_no=9, right_no=1)]
    assert answer_figures(one_of_nine, official=True)["F1"] == 16.6  # 16.7 with nothing added
    one_of_seven = [AnswerCounts(questions=12, right=1, gold_no=4, said_no=7, right_no=1)]
    assert answer_figures(one_of_seven, official=True)["F1"] == 18.2
    assert answer_figures(one_of_seven, official=True, epsilon=EXISTENCE_EPSILON)["F1"] == 18.1
