"""Promises about teacher forcing and generating under a session: positions, rows and text are those that were asked."""

from __future__ import annotations

import pytest
import torch

from hacl.compare.behaviour_tasks import Tasks, Variant, generate, measure
from hacl.compare.divergence import Setting
from hacl.compare.forced import ForcedReader, Side, forced_batches
from hacl.evaluation.inputs import pixels_of
from hacl.representations.samples import Sample
from hacl.steering import MeanSteerer, TableSteerer, steering
from tests.reference.planted_tuning import LAYER, constant, make_world

POLICIES = ("all", "prompt", "generated", "last-1", "text", "image")


@pytest.fixture(scope="module", params=["llava", "fast_vlm"])
def world(request, tmp_path_factory):
    return make_world(request.getfixturevalue(f"tiny_{request.param}"), tmp_path_factory.mktemp("world"), count=4)


def mixed(world):
    """Samples with and without an image, of unlike lengths."""
    return [*world.samples[:2], Sample("blind", None, "what is it", "a red square on the left")]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_padded_batch_of_embeddings_is_steered_where_the_stock_forward_is(world, policy):
    samples, side = mixed(world), Side(world.original, world.processor)
    steerer = MeanSteerer({LAYER: constant()})
    variant = Variant(Setting("mean", 0.7, None, policy), steerer)
    (batch,) = forced_batches(side, samples, [s.answer for s in samples], batch_size=8)
    with side.open() as device, variant.forced(side, batch):
        reader = ForcedReader(side, device)
        found = reader.log_probs(batch, reader.embed(batch))
    for row, sample in enumerate(batch.samples):
        sequence = batch.sequences[row]
        inputs = {"input_ids": torch.tensor([sequence.ids])}
        if sample.image is not None:
            inputs["pixel_values"] = pixels_of(world.processor, [sample.image], torch.device("cpu"))
        elif policy == "image":
            continue
        with (
            torch.no_grad(),
            steering(world.original, steerer, alpha=0.7, policy=policy) as s,
            s.rows(prompt_lengths=[batch.prompts[row]]),
        ):
            logits = world.original(**inputs).logits[0]
        places = [t - 1 for t, flag in enumerate(sequence.is_label) if flag]
        expected = torch.log_softmax(logits[places], dim=-1)
        torch.testing.assert_close(found[batch.labels[:, 0] == row], expected, atol=5e-4, rtol=1e-4)


def test_texts_come_back_in_order_and_do_not_depend_on_the_batch(world):
    samples, side = mixed(world), Side(world.original, world.processor)
    variant = Variant(Setting("mean", 1.0), MeanSteerer({LAYER: constant()}))
    alone = [generate(side, [sample], 6, variant=variant)[0] for sample in samples]
    assert generate(side, samples, 6, variant=variant, batch_size=3) == alone
    assert generate(side, samples[::-1], 6, variant=variant, batch_size=2) == alone[::-1]
    assert generate(side, samples, 6) != alone
    assert generate(side, [], 6) == []


def test_vectors_of_their_own_follow_their_samples_through_sorting_and_batches(world):
    samples, side = mixed(world), Side(world.original, world.processor)
    own = {sample.id: constant(seed=number) for number, sample in enumerate(samples)}
    table = TableSteerer({LAYER: torch.stack(list(own.values()))}, list(own))
    found = generate(side, samples, 6, variant=Variant(Setting("table", 1.0), table), batch_size=2)
    for sample, text in zip(samples, found, strict=True):
        one = Variant(Setting("mean", 1.0), MeanSteerer({LAYER: own[sample.id]}))
        assert generate(side, [sample], 6, variant=one) == [text]


def test_only_what_is_given_is_asked_and_images_chosen_on_are_left_out(world):
    side = Side(world.original, world.processor)
    assert measure(side, Tasks()).tables == {}
    rest = world.tasks.without({"0", "1"})
    assert [s.group for s in rest.captions] == ["2", "3"] and {r.image_id for r in rest.margins} == {"2", "3"}
    assert {q.image_id for q in rest.questions["random"]} == {"2", "3"}
    found = measure(side, Tasks(captions=rest.captions))
    assert len(found.captions) == 2 and found.tables == {} and found.answers == {}
    with pytest.raises(ValueError, match="no file for image '2'"):
        measure(side, Tasks(questions=rest.questions))


def test_every_sample_has_its_text(world):
    side = Side(world.original, world.processor)
    with pytest.raises(ValueError, match="2 samples but 1 texts"):
        forced_batches(side, world.samples[:2], ["a"], 2)


def test_the_margin_under_steering_knows_where_prompts_end(world):
    """Policy generated must leave the prompt alone: it differs from steering everything."""
    side = Side(world.original, world.processor)
    tasks = Tasks(margins=world.tasks.margins, image_root=world.tasks.image_root, margin_prompt="describe the image")
    tables = {}
    for policy in ("all", "generated", "last-1"):
        variant = Variant(Setting("mean", 1.0, None, policy), MeanSteerer({LAYER: constant()}))
        tables[policy] = measure(side, tasks, variant).tables["margin"]
    assert tables["all"] != tables["generated"] != tables["last-1"]
    assert measure(side, tasks).tables["margin"] not in tables.values()
