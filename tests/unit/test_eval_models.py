"""Promises of evaluation with a model: batches change nothing, likelihoods are stock, states are those of training."""

import numpy as np
import pytest
import torch

from hacl.config import DataConfig, ObjectiveConfig
from hacl.data.records import read_records
from hacl.data.templates import SequenceEncoder
from hacl.evaluation.diagnostics import entanglement, modality_gap
from hacl.evaluation.generation import answer_questions, generate_captions, generate_texts, prompt_row
from hacl.evaluation.inputs import evaluating, image_paths, make_encoder
from hacl.evaluation.likelihood import _derangement, caption_margins, choice_scores, log_likelihoods
from hacl.evaluation.states import collect_states
from hacl.training.objective import HaclModel
from tests.tiny import write_tiny_records


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    return folder, read_records(write_tiny_records(folder, 6))


@pytest.fixture
def loaded(tiny_model):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    return AutoModelForImageTextToText.from_pretrained(tiny_model), AutoProcessor.from_pretrained(tiny_model)


def test_batching_and_left_padding_do_not_change_greedy_text(loaded, world):
    model, processor = loaded
    images = image_paths(world[1], world[0])
    prompts = [
        "describe",
        "what colour is the object near the left",
        "",
        "is there a red square",
        "what",
        "describe it",
    ]
    for template in ("plain", "chat"):
        one = generate_texts(model, processor, images, prompts, template=template, batch_size=1, max_new_tokens=6)
        many = generate_texts(model, processor, images, prompts, template=template, batch_size=4, max_new_tokens=6)
        assert one == many and any(one)


def test_a_prompt_ends_where_the_answer_of_training_begins(loaded):
    encoder = make_encoder(loaded[1], "chat", "describe it")
    whole = encoder.caption_sequence("a red square")
    ids = prompt_row(encoder, "describe it", (48, 48)).ids
    assert whole.ids[: len(ids)] == ids and whole.is_label[len(ids)] and not any(whole.is_label[: len(ids)])


def test_the_image_reaches_the_caption_prompt_and_none_leaves_it_out(loaded, world):
    encoder = make_encoder(loaded[1], "plain", "describe")
    token = encoder.image_token_id
    assert prompt_row(encoder, "describe", (48, 48)).ids.count(token) == encoder.num_image_tokens
    assert prompt_row(encoder, "describe", None).ids.count(token) == 0
    paths = image_paths(world[1], world[0])
    assert len(generate_captions(*loaded, paths, max_new_tokens=2, progress=False)) == len(paths)


def test_log_likelihoods_are_those_of_the_stock_forward_pass(loaded, world):
    model, processor = loaded
    records, paths = world[1], image_paths(world[1], world[0])
    texts = [record.captions[0] for record in records]
    texts[1] = "a red square on the left and a blue circle"
    images = [*paths[:4], None, None]
    result = log_likelihoods(model, processor, images, texts, prompt="describe", batch_size=4)
    encoder = make_encoder(processor, "plain", "describe")
    for i, (image, text) in enumerate(zip(images, texts, strict=True)):
        sequence = encoder.caption_sequence(text, with_image=image is not None)
        ids = torch.tensor([sequence.ids])
        labels = torch.where(torch.tensor([sequence.is_label]), ids, -100)
        from hacl.evaluation.inputs import pixels_of

        extra = {"pixel_values": pixels_of(processor, [image], ids.device)} if image is not None else {}
        with evaluating(model):
            loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, **extra).loss
        assert result.tokens[i] == sum(sequence.is_label)
        assert -result.mean[i] == pytest.approx(float(loss), rel=1e-4)


def test_answers_by_likelihood_agree_with_the_scores_and_are_always_parsed(loaded, world):
    paths = image_paths(world[1], world[0])
    questions = ["is there a red square"] * len(paths)
    scores = choice_scores(*loaded, paths, questions, ("yes", "no"), progress=False)
    answers = answer_questions(*loaded, paths, questions, by="likelihood", progress=False)
    assert answers == ["yes" if row[0] > row[1] else "no" for row in scores]
    with pytest.raises(ValueError, match="by="):
        answer_questions(*loaded, paths, questions, by="guess")


def test_caption_margins_have_a_blind_that_no_image_can_change(loaded, world):
    folder, records = world
    report = caption_margins(*loaded, records, folder, progress=False)
    assert report.counts["pairs"] == sum(len(record.hallucinated) for record in records)
    assert set(report.groups) == {"attribute"}
    again = caption_margins(*loaded, records, folder, progress=False, batch_size=3, seed=1)
    blind = [[item["margin_blind"] for item in found.items] for found in (report, again)]
    assert np.allclose(*blind, atol=1e-5)
    assert any(abs(item["margin"] - item["margin_blind"]) > 1e-6 for item in report.items)
    assert report.metrics["margin_gain_blind"] == pytest.approx(
        report.metrics["margin_accuracy"] - report.metrics["margin_accuracy_blind"]
    )


def test_the_wrong_image_is_never_the_right_one():
    ids = ["a", "b", "a", "c", "d"]
    for seed in range(5):
        assert all(ids[i] != ids[j] for i, j in enumerate(_derangement(ids, seed)))
    with pytest.raises(ValueError, match="two images"):
        _derangement(["a", "a"], 0)


@pytest.mark.parametrize("form", ["in_place", "strict"])
@pytest.mark.parametrize("pool", ["last", "mean"])
def test_collected_states_are_those_the_training_step_reads(loaded, world, form, pool):
    from hacl.data.collate import PackedCollator
    from hacl.data.dataset import TrainingDataset

    model, processor = loaded
    folder, records = world
    data = DataConfig()
    objective = ObjectiveConfig(form=form, image_pool=pool, text_pool=pool, layer=1)
    encoder = SequenceEncoder(
        processor, template="plain", prompt="describe", max_length=data.max_length, max_caption_length=64
    )
    wrapped = HaclModel(model, objective).eval()
    dataset = TrainingDataset(records, encoder, image_root=folder, objective=objective, seed=0)
    batch = PackedCollator(encoder, objective)([dataset[i] for i in range(len(records))])
    with torch.no_grad():
        _, read = wrapped.encode(batch)
        expected = wrapped.read(read, batch)
        post = wrapped.heads.project_image(expected.image_BD)
    found = collect_states(wrapped, encoder, records, folder, batch_size=4, progress=False)
    assert np.allclose(found["pre"].image, expected.image_BD, atol=1e-4)
    assert np.allclose(found["pre"].true, expected.caption_BCD[:, 0], atol=1e-4)
    assert np.allclose(found["pre"].hallucinated, expected.hallucinated_BKD[:, 0], atol=1e-4)
    assert np.allclose(found["post"].image, post, atol=1e-4)
    assert modality_gap(found["post"]).metrics["centroid_distance"] > 0
    assert entanglement(found["pre"]).counts["pairs"] == len(records)


def test_half_precision_models_are_measured_with_heads_in_full_precision(loaded, world):
    model, processor = loaded
    encoder = make_encoder(processor, "plain", "describe")
    full = HaclModel(model, ObjectiveConfig())
    expected = collect_states(full, encoder, world[1], world[0], progress=False)
    half = HaclModel(model.to(torch.bfloat16), ObjectiveConfig(), heads=full.heads)
    found = collect_states(half, encoder, world[1], world[0], progress=False)
    for stage in ("pre", "post"):
        assert np.allclose(found[stage].image, expected[stage].image, atol=0.15)
        assert np.allclose(found[stage].true, expected[stage].true, atol=0.15)
    assert caption_margins(model, processor, world[1], world[0], progress=False).metrics["margin"] is not None
    assert len(generate_captions(model, processor, image_paths(world[1], world[0]), max_new_tokens=2)) == len(world[1])


def test_evaluation_leaves_every_modules_mode_as_it_was(loaded):
    model = loaded[0].train()
    model.lm_head.eval()
    with evaluating(model):
        assert not model.training and not torch.is_grad_enabled()
    assert model.training and not model.lm_head.training and torch.is_grad_enabled()


def test_a_record_with_two_images_is_refused_by_name(world):
    from dataclasses import replace

    record = replace(world[1][0], images=("a.png", "b.png"))
    with pytest.raises(ValueError, match=record.id):
        image_paths([record], world[0])
