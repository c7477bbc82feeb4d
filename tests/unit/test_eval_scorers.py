"""Promises of the text scorers: hand-made cases, exact counts, nothing undefined passed off as a number."""

import subprocess
import sys
from collections import Counter

import pytest

from hacl.evaluation.chair import MentionExtractor, score_chair
from hacl.evaluation.coco_objects import coco_vocabulary
from hacl.evaluation.pope import (
    SPLITS,
    build_questions,
    distinct_questions,
    score_pope,
    score_splits,
)
from hacl.evaluation.scorers.pope import parse_official, parse_strict

VOCABULARY = {
    "cup": "cup",
    "mug": "cup",
    "dog": "dog",
    "hot dog": "hot dog",
    "hot dog stand": None,
    "knife": "knife",
    "bus": "bus",
    "city": "city",
    "person": "person",
    "man": "person",
    "dining table": "table",
}


@pytest.fixture
def extractor():
    return MentionExtractor(VOCABULARY)


def named(extractor, caption):
    return [mention.object for mention in extractor.mentions(caption)]


def test_synonyms_plurals_and_capitals_map_to_the_object(extractor):
    caption = "Two Mugs, three knives; buses in cities. Men and people at dining tables"
    assert named(extractor, caption) == ["cup", "knife", "bus", "city", "person", "person", "table"]


def test_a_double_word_hides_the_words_inside_it(extractor):
    assert named(extractor, "a hot dog and a dog") == ["hot dog", "dog"]
    assert named(extractor, "a hot dog stand") == []


def test_possessives_count_and_parts_of_words_do_not(extractor):
    assert named(extractor, "the dog's cupboard near a busy man") == ["dog", "person"]


def test_offsets_give_back_the_words_as_written(extractor):
    caption = "A Hot  Dogs thing"
    mention = extractor.mentions(caption)[0]
    assert caption[mention.start : mention.end] == mention.word == "Hot  Dogs"


def test_chair_counts_mentions_captions_and_recall_as_defined(extractor):
    report = score_chair(
        ["1", "2", "3"],
        ["a cup, a mug and a dog", "a dog", "nothing at all"],
        {"1": {"cup", "knife"}, "2": {"dog"}, "3": {"bus"}},
        extractor,
    )
    assert report.metrics["CHAIRi"] == 1 / 4
    assert report.metrics["CHAIRs"] == 1 / 3
    assert report.metrics["Recall"] == 2 / 4
    assert report.metrics["mean_length"] == pytest.approx((7 + 2 + 3) / 3)
    assert [item["hallucinated"] for item in report.items] == [["dog"], [], []]
    start, end = report.items[0]["marks"][0]
    assert report.items[0]["caption"][start:end] == "dog"
    assert report.counts["captions_without_object"] == 1


def test_captions_without_any_object_give_null_and_a_warning(extractor):
    report = score_chair(["1"], ["nothing"], {"1": {"cup"}}, extractor)
    assert report.metrics["CHAIRi"] is None and any("CHAIRi" in warning for warning in report.warnings)
    assert report.metrics["CHAIRs"] == 0 and report.metrics["Recall"] == 0


def test_two_captions_of_one_image_are_added_up_by_image(extractor):
    report = score_chair(["1", "1"], ["a dog", "a cup"], {"1": {"cup"}}, extractor)
    assert report.by_image()["CHAIRi"] == {"1": [1, 2]}


def test_an_image_without_annotation_is_an_error_not_a_hallucination(extractor):
    with pytest.raises(ValueError, match="'9'"):
        score_chair(["9"], ["a dog"], {"1": {"cup"}}, extractor)


TRUTH = {f"i{n}": objects for n, objects in enumerate([("a", "b"), ("a", "b"), ("a", "c"), ("a", "d"), ("e", "f")])}


@pytest.mark.parametrize("split", SPLITS)
def test_questions_are_balanced_true_and_the_same_for_the_same_seed(split):
    questions = build_questions(TRUTH, split, seed=3, per_image=4)
    assert questions == build_questions(TRUTH, split, seed=3, per_image=4)
    assert Counter(q.label for q in questions) == {"yes": 10, "no": 10}
    assert all((q.object in TRUTH[q.image_id]) == (q.label == "yes") for q in questions)


def test_popular_takes_the_most_frequent_absent_object_and_adversarial_the_partner():
    popular = build_questions(TRUTH, "popular", per_image=2)
    assert [q.object for q in popular if q.image_id == "i4" and q.label == "no"] == ["a"]
    alone = {"x": ("c",), "y": ("f",)}
    adversarial = build_questions(alone, "adversarial", per_image=2, counts_from=TRUTH)
    assert {q.image_id: q.object for q in adversarial if q.label == "no"} == {"x": "a", "y": "e"}


def test_splits_share_their_yes_questions_and_their_ids():
    splits = {split: build_questions(TRUTH, split, per_image=2) for split in SPLITS}
    yes = [{q.question_id for q in questions if q.label == "yes"} for questions in splits.values()]
    assert yes[0] == yes[1] == yes[2]
    assert len(distinct_questions(splits)) == len({q.question_id for qs in splits.values() for q in qs})
    answers = {q.question_id: "yes" for q in distinct_questions(splits)}
    assert all(report.metrics["yes_ratio"] == 1 for report in score_splits(splits, answers).values())


def test_pope_counts_are_those_of_the_confusion_table():
    questions = build_questions(TRUTH, "random", per_image=4)
    wrong_yes = next(q.question_id for q in questions if q.label == "no")
    wrong_no, mute = [q.question_id for q in questions if q.label == "yes"][:2]
    answers = {q.question_id: q.label for q in questions} | {wrong_yes: "Yes.", wrong_no: "No, none", mute: "hm"}
    report = score_pope(list(reversed(questions)), answers)
    assert [report.metrics[name] for name in ("TP", "FP", "TN", "FN")] == [8, 1, 9, 2]
    assert report.metrics["accuracy"] == 17 / 20
    assert report.metrics["precision"] == 8 / 9 and report.metrics["recall"] == 8 / 10
    assert report.metrics["f1"] == pytest.approx(2 * (8 / 9) * 0.8 / (8 / 9 + 0.8))
    assert report.metrics["yes_ratio"] == 9 / 20 and report.metrics["unparsed"] == 1 / 20


def test_a_model_that_never_says_yes_has_no_precision():
    questions = build_questions(TRUTH, "random", per_image=2)
    report = score_pope(questions, {q.question_id: "no" for q in questions})
    assert report.metrics["precision"] is None and report.metrics["recall"] == 0 and report.metrics["f1"] == 0


def test_an_unanswered_question_is_an_error_unless_allowed():
    questions = build_questions(TRUTH, "random", per_image=2)
    answers = {q.question_id: "no" for q in questions[1:]}
    with pytest.raises(ValueError, match="no answer"):
        score_pope(questions, answers)
    report = score_pope(questions, answers, allow_missing=True)
    assert report.counts["scored"] == len(report.items) == len(questions) - 1 and report.warnings


def test_the_parsers_differ_where_they_are_said_to():
    replies = ["Yes.", "no", "", "I don't know", "Nope", "Not at all", "Yes, and there is no doubt"]
    assert [parse_official(r) for r in replies] == ["yes", "no", "yes", "yes", "yes", "yes", "no"]
    assert [parse_strict(r) for r in replies] == ["yes", "no", None, None, None, None, "yes"]


def test_the_coco_words_name_eighty_categories_and_hide_phrases_that_are_no_objects():
    vocabulary = coco_vocabulary()
    assert len({name for name in vocabulary.values() if name}) == 80
    extractor = MentionExtractor(vocabulary)
    caption = "Two women with tennis racquets near a baseball field, a bus stop and hot dogs; a football player, buses"
    assert named(extractor, caption) == ["person", "tennis racket", "hot dog", "person", "bus"]


def test_scorers_import_neither_torch_nor_transformers():
    code = (
        "import sys, hacl.evaluation.chair, hacl.evaluation.pope, hacl.evaluation.coco_objects, "
        "hacl.evaluation.statistics; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
