"""Promises about a measured point and its guards: nothing is lost on disk; a better score cannot hide worse text."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
import torch

from hacl.compare.behaviour_tasks import Tasks
from hacl.compare.divergence import Setting
from hacl.compare.forced import Side
from hacl.evaluation.likelihood import log_likelihoods
from hacl.evaluation.runner.decoding import Decoding
from hacl.steering import MeanSteerer
from hacl.study.guards import Guards
from hacl.study.points import Point, Variant, measure_point
from tests.reference.planted_tuning import make_world
from tests.reference.steering_inputs import WIDTH


@pytest.fixture(scope="module")
def world(tiny_llava, tmp_path_factory):
    return make_world(tiny_llava, tmp_path_factory.mktemp("world"), count=8)


@pytest.fixture(scope="module")
def side(world):
    return Side(world.original, world.processor)


@pytest.fixture(scope="module")
def strong():
    vector = 30 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))
    return Variant(Setting("strong", 1.0, (1,), "all"), MeanSteerer({1: vector}))


@pytest.fixture(scope="module")
def unsteered(world, side):
    return measure_point(side, world.tasks, name="none")


def test_a_point_holds_captions_questions_and_what_the_texts_are_like(world, unsteered):
    wanted = {f"pope_random_{name}" for name in ("accuracy", "precision", "recall", "f1", "yes_rate", "unparsed")}
    wanted |= {"CHAIR_i", "CHAIR_s", "recall", "length", "longest_repeat", "distinct_1", "distinct_2", "empty", "nll"}
    assert wanted <= set(unsteered.tables)
    assert len(unsteered.captions) == len(world.tasks.captions) and len(unsteered.outside) == len(world.tasks.outside)
    assert {table for table in unsteered.tables["length"]} == {sample.group for sample in world.samples}


def test_the_likelihood_of_a_steered_text_is_that_of_the_unsteered_model(world, side, strong):
    point = measure_point(side, Tasks(captions=world.samples, max_new_tokens=6), strong, name="strong")
    assert all(text for text in point.captions)
    found = log_likelihoods(
        side.model, side.processor, [s.image for s in world.samples], point.captions,
        prompt=[s.prompt for s in world.samples],
    )  # fmt: skip
    assert point.value("nll") == pytest.approx(-found.total.sum() / found.tokens.sum(), rel=1e-5)


def test_a_point_is_the_same_after_a_file(side, world, strong, unsteered):
    for point in (unsteered, measure_point(side, Tasks(captions=world.samples[:3]), strong, name="strong")):
        text = json.dumps(point.to_json(), allow_nan=False)
        assert Point.from_json(json.loads(text)) == point


def test_several_seeds_add_their_evidence_up_and_need_sampling(side, world):
    tasks = Tasks(captions=world.samples[:4], max_new_tokens=6)
    sampled = Decoding(temperature=1.0)
    both = measure_point(side, tasks, name="none", decoding=sampled, seeds=(0, 1))
    one, two = (measure_point(side, tasks, name="none", decoding=sampled, seeds=(seed,)) for seed in (0, 1))
    assert one.captions != two.captions and both.captions == one.captions
    for image, pair in both.tables["length"].items():
        assert pair == [x + y for x, y in zip(one.tables["length"][image], two.tables["length"][image], strict=True)]
    with pytest.raises(ValueError, match="temperature"):
        measure_point(side, tasks, name="none", seeds=(0, 1))


def test_a_sampled_reply_does_not_depend_on_the_batch(side, world):
    tasks = Tasks(captions=world.samples[:4], max_new_tokens=6)
    sampled = Decoding(temperature=1.0, seed=3)
    alone, together = (
        measure_point(side, tasks, name="none", decoding=sampled, batch_size=size).captions for size in (1, 4)
    )
    assert alone == together


def point_of(**values: float) -> Point:
    outside = values.pop("outside", 0)
    said = ["other"] * outside + ["same"] * (10 - outside)
    return Point("p", None, {name: {"image": [value, 1.0]} for name, value in values.items()}, outside=said)


NORMAL = {
    "nll": 1.0, "length": 10.0, "longest_repeat": 1.0, "distinct_2": 0.9, "empty": 0.0, "recall": 0.5,
    "pope_random_unparsed": 0.0,
}  # fmt: skip


@pytest.mark.parametrize(
    "guard, worse",
    [
        ("max_perplexity_ratio", {"nll": 1.2}),
        ("min_length_ratio", {"length": 5.0}),
        ("max_length_ratio", {"length": 20.0}),
        ("max_repeat_rise", {"longest_repeat": 4.0}),
        ("min_distinct_ratio", {"distinct_2": 0.4}),
        ("max_empty", {"empty": 0.2}),
        ("min_recall_ratio", {"recall": 0.3}),
        ("max_unparsed_rise", {"pope_random_unparsed": 0.1}),
        ("max_outside_changed", {"outside": 8}),
    ],
)
def test_each_guard_forbids_its_own_loss_and_can_be_switched_off(guard, worse):
    unsteered, moved = point_of(**NORMAL), point_of(**{**NORMAL, **worse})
    assert Guards().failures(unsteered, unsteered) == []
    assert len(Guards().failures(moved, unsteered)) == 1
    assert Guards(**{guard: None}).failures(moved, unsteered) == []


def test_every_guard_is_tested_above():
    marks = test_each_guard_forbids_its_own_loss_and_can_be_switched_off.pytestmark
    assert {guard for guard, _ in marks[0].args[1]} == {field.name for field in fields(Guards)}


def test_a_guard_without_its_measure_says_nothing_and_a_limit_must_be_a_number():
    assert Guards().failures(Point("p", None, {}), Point("q", None, {})) == []
    with pytest.raises(ValueError, match="max_empty"):
        Guards(max_empty=float("nan"))


def test_an_image_that_several_rows_show_is_read_once_and_a_prompt_rendered_once(side, world, monkeypatch):
    from hacl.evaluation import generation, inputs

    generator = generation.Generator(side.model, side.processor)
    images = [world.samples[n].image for n in (0, 1, 0, 2, 1)]
    prompts = ["describe the image", "what is it", "what is it", "describe the image", "what is it"]
    alone = [generator.inputs([image], [prompt], "cpu") for image, prompt in zip(images, prompts, strict=True)]
    opened, rendered, plain = [], [], generation.prompt_row
    monkeypatch.setattr(inputs, "load_image", lambda path, load=inputs.load_image: opened.append(path) or load(path))
    monkeypatch.setattr(generation, "prompt_row", lambda *given: rendered.append(given[1]) or plain(*given))
    found = generation.Generator(side.model, side.processor).inputs(images, prompts, "cpu")
    assert len(opened) == 3 and len(rendered) == 2
    for row, single in enumerate(alone):
        assert torch.equal(found["pixel_values"][row], single["pixel_values"][0])
        assert found["input_ids"][row].tolist()[-single["input_ids"].shape[1] :] == single["input_ids"][0].tolist()
    assert side.generator(Decoding()) is side.generator(Decoding())
