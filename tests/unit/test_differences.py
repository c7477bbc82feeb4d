"""Promises about steering from data differences: signs, selection, sets of samples, and how targeted it is."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from hacl.compare.difference_run import (
    DifferenceStates,
    FineVector,
    FineVectors,
    capture_sets,
    fine_vectors,
    from_source,
    make_steerers,
    steer_by_difference,
)
from hacl.compare.difference_sets import SampleSets, by_answer, by_answer_type, by_style
from hacl.compare.differences import (
    answer_effect,
    best_targets,
    coarse_vector,
    concept_differences,
    keep_by_effect,
    upper_cluster,
    word_scores,
)
from hacl.compare.forced import Side
from hacl.compare.sequential import forced_states
from hacl.compare.styles import STYLES, Style, answer_type, plain_answer
from hacl.compare.targetedness import is_right, targetedness
from hacl.representations.readout import Readout
from hacl.representations.samples import Sample
from tests.reference.planted_tuning import make_world


def test_differences_lead_from_the_first_named_to_the_second():
    source, target = np.array([[1.0, 0.0], [5.0, 5.0]]), np.array([[0.0, 2.0], [7.0, 7.0], [1.0, 1.0]])
    found = concept_differences(source, target)
    assert found.shape == (2, 3, 2)
    for i in range(2):
        for j in range(3):
            assert np.array_equal(source[i] + found[i, j], target[j])
    own = concept_differences(source)
    assert np.array_equal(own, -own.transpose(1, 0, 2)) and not own[0, 0].any()
    assert np.array_equal(coarse_vector(source, target), target.mean(0) - source.mean(0))


@pytest.mark.parametrize("wrong", [np.zeros((0, 2)), np.zeros(2), np.zeros((3, 4))])
def test_sets_without_states_or_of_other_widths_have_no_difference(wrong):
    with pytest.raises(ValueError, match="target states"):
        coarse_vector(np.ones((3, 2)), wrong)


def one_hot_readout(tokens):
    return Readout(np.eye(len(tokens), dtype=np.float32), None, "none", 0.0, list(tokens))


def test_vectors_are_scored_by_the_words_they_raise():
    readout = one_hot_readout(["Red", " green", "cat", "red", "x"])
    vectors = np.array([[1.0, 0, 0, 1, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [-1, 0, 0, -1, 0]])
    scores = word_scores(vectors, readout, ["red"], "final_norm")
    assert scores.argmax() == 0 and scores.argmin() == 3 and scores[1] < 0 and scores[2] < 0
    assert word_scores(vectors, readout, ["Green"], 3).argmax() == 1
    np.testing.assert_allclose(word_scores(7 * vectors, readout, ["red"], 3), scores, atol=1e-6)
    with pytest.raises(ValueError, match="by effect"):
        word_scores(vectors, readout, ["elephant"], 3)
    assert best_targets([[0.1, 0.9], [2.0, -1.0]]) == [(1, 0, 2.0), (0, 1, 0.9)]


def test_the_effect_score_by_hand():
    """Rises: no +6, none +5, 3 +1 (yes fell): two clusters {6, 5} and {1}, score 5 - 1."""
    before = ["yes"] * 12 + ["no"] * 2
    after = ["no"] * 8 + ["none"] * 5 + ["3"]
    found = answer_effect(before, after)
    assert found.targets == ("no", "none") and found.score == 4 and found.gains == (("no", 6), ("none", 5), ("3", 1))
    assert answer_effect(before, before).targets == ()
    single = answer_effect(["a", "a", "b"], ["b", "b", "b"])
    assert single.targets == ("b",) and single.score == 2
    assert answer_effect(before, after, top=1).targets == ("no",)


def test_the_upper_cluster_is_the_best_cut():
    draw = np.random.default_rng(0)
    for _ in range(20):
        values = np.sort(draw.integers(0, 30, size=6).astype(float))[::-1]
        costs = {}
        for cut in range(1, 6):
            costs[cut] = sum(np.var(part) * len(part) for part in (values[:cut], values[cut:]))
        assert costs[upper_cluster(values)] == pytest.approx(min(costs.values()))


def test_one_vector_is_kept_for_each_set_of_answers():
    effects = {
        "first": answer_effect(["a"] * 9, ["b"] * 9), "again": answer_effect(["a"] * 5, ["b"] * 5),
        "other": answer_effect(["a"] * 3, ["c"] * 3), "none": answer_effect(["a"], ["a"]),
    }  # fmt: skip
    assert keep_by_effect(effects, 5) == ["first", "other"]
    assert keep_by_effect(effects, 5, distinct=False) == ["first", "again", "other"]
    assert keep_by_effect(effects, 1) == ["first"]


def test_targetedness_by_hand():
    """Five samples: two changed to a target word, one changed without, one had the word before, one did not change."""
    before = ["a man runs", "a cat", "a dog", "a red car", "a tree"]
    after = ["a red man runs", "a RED cat", "a fat dog", "a bright red car", "a tree "]
    found = targetedness(
        ["i", "j", "k", "l", "m"], before, after, ["red", "dark green"], avoided=["man"],
        outside=(["o", "p", "q", "r"], ["x", "y", "z", "w"], ["x", "y", "z", "red"]),
    )  # fmt: skip
    assert found.changed.estimate == 0.8 and found.target_share.estimate == 0.5
    assert found.changed_outside.estimate == 0.25
    assert found.target_texts == (1, 3) and found.avoided_texts == (1, 1)
    assert found.accuracy == {} and found.longest_repeat == (0.0, 0.0)
    json.dumps(found.to_json(), allow_nan=False)


def test_words_count_as_wholes_and_phrases_together():
    one = ["i"]
    assert targetedness(one, ["a"], ["snow"], ["no"]).target_texts == (0, 0)
    assert targetedness(one, ["a"], ["10"], ["1"]).target_texts == (0, 0)
    assert targetedness(one, ["a"], ["No, it is."], ["no"]).target_texts == (0, 1)
    assert targetedness(one, ["a"], ["the dark green car"], ["dark green"]).target_texts == (0, 1)
    assert targetedness(one, ["a"], ["dark, and not green"], ["dark green"]).target_texts == (0, 0)
    same = targetedness(one, ["a"], ["a"], ["b"])
    assert same.target_share.estimate is None and same.changed.estimate == 0
    loop = targetedness(one, ["a"], ["black black black"], ["black"])
    assert loop.longest_repeat == (0.0, 2.0)
    with pytest.raises(ValueError, match="no target word"):
        targetedness(one, ["a"], ["b"], [])
    with pytest.raises(ValueError, match="one entry per sample"):
        targetedness(["i", "j"], ["a"], ["b"], ["b"])


def test_accuracy_is_measured_by_type_before_and_after():
    types, references = ["yes/no", "yes/no", "number"], [["yes"], ["no"], ["3"]]
    found = targetedness(
        ["i", "j", "k"], ["Yes.", "no", "3"], ["no", "no", "the 3"], ["no"], types=types, references=references
    ).accuracy
    assert {kind: (a["samples"], a["before"], a["after"]) for kind, a in found.items()} == {
        "yes/no": (2, 1.0, 0.5), "number": (1, 1.0, 1.0), "all": (3, 1.0, pytest.approx(2 / 3)),
    }  # fmt: skip
    assert found["yes/no"]["difference"].estimate == -0.5
    assert is_right("Red", ["red", "red", "blue", "red"]) == 1 and is_right("blue", ["red", "red", "blue"]) == 1 / 3


def qa(*answers):
    return [Sample(f"s{i}", None, "what is it", answer) for i, answer in enumerate(answers)]


def test_sets_by_answer_and_by_kind_of_answer():
    samples = qa("Yes", "no", "two", "7", "a red car", "no.", "nothing", None)
    sets = by_answer(samples, "yes", "no")
    assert [s.id for s in sets.source] == ["s0"] and [s.id for s in sets.target] == ["s1", "s5"]
    assert (sets.words, sets.avoided) == (("no",), ("yes",)) and sets.select_target == "last_prompt"
    sets = by_answer_type(samples, "yes/no", "number")
    assert [s.id for s in sets.source] == ["s0", "s1", "s5"] and sets.words == ("7", "two")
    with pytest.raises(ValueError, match="no sample belongs to the target"):
        by_answer(samples, "yes", "maybe")
    with pytest.raises(ValueError, match="answer type 'colour'"):
        by_answer_type(samples, "colour", "number")
    assert [answer_type(a) for a in ("Yes, it is", "12", "three", "12 cats", "")] == [
        "yes/no", "number", "number", "other", "other",
    ]  # fmt: skip
    assert plain_answer(" The cat. ") == "cat"


def test_sets_by_style_and_the_words_of_styles():
    samples = qa("a red car", "a car", "a man in a park", "a person in a park", "a credit card")
    colour = by_style(samples, "colour")
    assert [s.id for s in colour.target] == ["s0"] and len(colour.source) == 4
    assert colour.select_source == "mean_generated" and colour.select_target == "predicts:@style"
    neutral = by_style(samples, "gender_neutral")
    assert ([s.id for s in neutral.source], [s.id for s in neutral.target]) == (["s2"], ["s3"])
    assert neutral.select_source == "predicts:@avoided" and "man" in neutral.avoided
    own = by_style(samples, Style(("card",)))
    assert [s.id for s in own.target] == ["s4"]
    with pytest.raises(ValueError, match="style 'loud'"):
        by_style(samples, "loud")
    for name, style in STYLES.items():
        assert len(set(style.words)) == len(style.words) >= 15, name
        assert not set(style.words) & set(style.avoids), name
        assert all(word == word.lower() for word in (*style.words, *style.avoids))


@pytest.fixture(scope="module")
def world(tiny_llava, tmp_path_factory):
    return make_world(tiny_llava, tmp_path_factory.mktemp("world"), count=24)


@pytest.fixture(scope="module")
def split(world):
    """Captions that name a place or not, as one-word answers; the last eight images are measured on."""
    answers = ["red", "green", "blue", "yellow"]
    samples = [
        Sample(s.id, s.image, "what colour is it", answers[i % 4], s.image_id) for i, s in enumerate(world.samples)
    ]
    return by_answer(samples[:16], "red", "green"), samples[16:]


def test_captured_sets_give_the_mean_difference_of_the_states_at_the_last_prompt_token(world, split, tmp_path):
    sets, _ = split
    states = capture_sets(world.original, world.processor, sets, 1, tmp_path, progress=False)
    side, means = Side(world.original, world.processor), []
    for samples in (sets.source, sets.target):
        found, _ = forced_states(side, samples, [s.answer for s in samples], [1], positions="last_prompt")
        means.append(found[1].mean(0))
    np.testing.assert_allclose(coarse_vector(states.source_ND, states.target_ND), means[1] - means[0], atol=1e-4)


def test_styles_are_captured_at_the_words_of_the_style(world, tmp_path):
    sets = by_style(world.samples[:16], Style(("left", "right"), ("top", "bottom")))
    states = capture_sets(world.original, world.processor, sets, 0, tmp_path, progress=False)
    assert len(states.source_ND) == len(sets.source) and len(states.target_ND) == len(sets.target)


def planted_states(seed=0):
    """Source clusters at 0 and 1, target clusters at 2 and 3 of the axes; token 2 is the word."""
    draw = np.random.default_rng(seed)
    centre = 10 * np.eye(6)
    source, target = (
        np.concatenate([centre[k] + 0.1 * draw.normal(size=(20, 6)) for k in pair]) for pair in ((0, 1), (2, 3))
    )
    return DifferenceStates(source, target, 0, one_hot_readout(["a", "b", "word", "d", "e", "f"])), centre


def test_the_fine_vector_kept_leads_to_the_concept_of_the_target_word():
    states, centre = planted_states()
    sets = SampleSets("planted", qa("x"), qa("y"), words=("word",))
    fine = fine_vectors(states, sets, concepts=2, seed=0)
    for vector in fine.ranked:
        start = int(np.abs(fine.centres_KD[vector.source]).argmax())
        np.testing.assert_allclose(fine.vector(vector), centre[2] - centre[start], atol=0.2)


def test_a_vector_for_its_source_concept_leaves_every_other_state_alone():
    states, centre = planted_states()
    centres = np.stack([centre[0], centre[1]])
    fine = FineVectors(concept_differences(centres, centre[2:3]), centres, [])
    steerer = from_source(fine, [FineVector(1, 0, 1.0)], 0, assign="state")
    h = torch.as_tensor(np.stack([centre[0] + 0.3, centre[1] + 0.3]), dtype=torch.float32)[None]
    step = steerer.step(0, h)[0].numpy()
    assert not step[0].any()
    np.testing.assert_allclose(step[1], centre[2] - centre[1], atol=1e-5)
    sets = SampleSets("planted", qa("x"), qa("y"), words=("word",))
    made = make_steerers(states, fine_vectors(states, sets, 2, 0), keep=1, assign="state", seed=0)
    assert list(made) == ["coarse", "fine_all", "fine_source", "random"]
    assert made["random"].values[0].norm() == pytest.approx(made["coarse"].values[0].norm())


@pytest.mark.parametrize("select", ("words", "effect"))
def test_one_call_makes_the_vectors_and_measures_them(world, split, tmp_path, select):
    sets, measured = split
    report = steer_by_difference(
        world.original, world.processor, sets, measured, layer=1, folder=tmp_path / "states", alphas=[1.0, 8.0],
        outside=world.tasks.outside, concepts=2, select=select, max_new_tokens=3, progress=False,
    )  # fmt: skip
    names = {name for name, _ in report.results}
    assert {"coarse", "random"} <= names and (select == "effect" or names >= {"fine_all", "fine_source"})
    count = len(measured) // (2 if select == "effect" else 1)
    assert all(t.samples == count for t in report.results.values())
    assert {"other", "all"} == set(report.results["coarse", 1.0].accuracy)
    path = report.write(tmp_path)
    content = json.loads(path.read_text())
    assert len(content["rows"]) == len(report.results) and content["meta"]["states"]["source"] == 4
    assert (tmp_path / "difference_rows.csv").read_text().count("\n") == 1 + len(report.results)
    assert "| coarse | 8 |" in (tmp_path / "difference.md").read_text()


def test_an_image_that_vectors_were_chosen_on_is_not_reported_on(world, split, tmp_path, monkeypatch):
    """Two questions per image, all first ones before all second ones: halves of the list would share every image."""
    from hacl.compare import difference_run

    sets, measured = split
    twice = [*measured, *(Sample(f"{s.id}#1", s.image, "and now", s.answer, s.group) for s in measured)]
    seen, real = {}, difference_run._by_effect

    def choose(fine, ask, choice, *rest):
        seen["chosen"] = {sample.group for sample in choice}
        return real(fine, ask, choice, *rest)

    def count(image_ids, *rest, **named):
        seen["measured"] = set(image_ids)
        return targetedness(image_ids, *rest, **named)

    monkeypatch.setattr(difference_run, "_by_effect", choose)
    monkeypatch.setattr(difference_run, "targetedness", count)
    steer_by_difference(
        world.original, world.processor, sets, twice, layer=1, folder=tmp_path, concepts=2, select="effect",
        max_new_tokens=2, progress=False,
    )  # fmt: skip
    assert seen["chosen"] and seen["measured"] and not seen["chosen"] & seen["measured"]
    assert seen["chosen"] | seen["measured"] == {s.group for s in measured}


def test_what_made_the_vectors_is_not_measured_on(world, split, tmp_path):
    sets, measured = split
    with pytest.raises(ValueError, match="keep images apart"):
        steer_by_difference(
            world.original, world.processor, sets, [*measured, *sets.source], layer=1, folder=tmp_path, progress=False
        )
    with pytest.raises(ValueError, match="words or effect"):
        steer_by_difference(
            world.original, world.processor, sets, measured, layer=1, folder=tmp_path, select="luck", progress=False
        )
