"""Evaluation over right-padded rows, with images embedded once, is the stock forward pass of each row, by family."""

from __future__ import annotations

import pytest
import torch

from hacl.config import ObjectiveConfig
from hacl.evaluation.generation import with_prompt
from hacl.evaluation.inputs import make_encoder, written
from hacl.evaluation.likelihood import log_likelihoods
from hacl.evaluation.states import image_states
from hacl.models.adapters import find_adapter
from hacl.training.objective import HaclModel
from tests.families.loaded import Family

TEXTS = ("a red square on the left", "no", "the small blue cross", "a yellow circle")
PROMPT = "describe the image ."


def stock_states(family: Family, encoder, sequence, image):
    """(T, D) after the final norm."""
    ids = torch.tensor([sequence.ids])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if image is not None:
        inputs |= encoder.images.tensors(image, prompt=encoder.prompt)
    prompt = sequence.is_label.index(True) if True in sequence.is_label else len(ids[0]) - 1  # of an image, EOS aside
    inputs |= family.token_types(ids, prompt)
    seen = []
    norm = family.decoder.get_submodule(family.facts.norm)
    hook = norm.register_forward_hook(lambda _, args, output: seen.append(output[0]))
    family.model(**inputs)
    hook.remove()
    return seen[0]


@torch.no_grad()
def test_log_likelihoods_are_those_of_stock_forward_passes(family):
    images = [*family.images, None, family.images[0]]
    if not family.facts.text_alone:
        images[2] = family.images[1]
    model, processor, template = family.model, family.processor, family.template
    found = log_likelihoods(model, processor, images, TEXTS, prompt=PROMPT, template=template, batch_size=3)
    encoder = with_prompt(make_encoder(processor, template), PROMPT)
    for row, (image, text) in enumerate(zip(images, TEXTS, strict=True)):
        sequence = encoder.caption_sequence(text, with_image=image is not None, image=written(encoder, image))
        states = stock_states(family, encoder, sequence, image)
        scores = torch.log_softmax(model.get_output_embeddings()(states), dim=-1)
        labels = [t for t, is_label in enumerate(sequence.is_label) if is_label]
        total = sum(float(scores[t - 1, sequence.ids[t]]) for t in labels)
        assert found.tokens[row] == len(labels) and found.total[row] == pytest.approx(total, abs=1e-3)


@torch.no_grad()
def test_image_states_are_read_where_the_training_reads_them(family, tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(2)]
    for path, image in zip(paths, family.images, strict=True):
        image.save(path)
    form = find_adapter(family.model).forms[0]
    model = HaclModel(family.model, ObjectiveConfig(num_hallucinated=0, form=form))
    encoder = make_encoder(family.processor, family.template, PROMPT)
    found = image_states(model, encoder, paths, progress=False)
    for row, image in enumerate(family.images):
        sequence = encoder.caption_sequence("yes", image=written(encoder, paths[row]))
        end = sequence.image_spans[0][1]
        if form == "strict":
            sequence = encoder.strict_image_root(written(encoder, paths[row]))
            end = len(sequence)
        torch.testing.assert_close(
            found[row], stock_states(family, encoder, sequence, image)[end - 1], atol=1e-3, rtol=0
        )
