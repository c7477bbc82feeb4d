"""What is special in the BLIP line: the image stands before BOS, and InstructBLIP's image features read the prompt."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Blip2Config,
    Blip2ForConditionalGeneration,
    T5Config,
)

from hacl.config import ObjectiveConfig
from hacl.data.dataset import TrainingDataset
from hacl.data.model_inputs import prompt_inputs
from hacl.data.templates import SequenceEncoder
from hacl.models.adapters import UnsupportedModelError, find_adapter
from tests.families import build
from tests.families.common import VISION
from tests.families.facts import FACTS, SHAPES
from tests.families.loaded import Family
from tests.families.qformer import QFORMER
from tests.families.test_packed import encoder_of, records
from tests.tiny_families import draw_images

PROMPT = "describe the image ."


@pytest.fixture(scope="module", params=["blip_2", "instructblip"])
def blip(request, tmp_path_factory) -> Family:
    return load(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def instructblip(tmp_path_factory) -> Family:
    return load("instructblip", tmp_path_factory)


def load(name: str, tmp_path_factory) -> Family:
    folder: Path = build(name, tmp_path_factory.mktemp(name))
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    images = [Image.open(path).convert("RGB") for path in draw_images(tmp_path_factory.mktemp("images"), list(SHAPES))]
    return Family(name, FACTS[name], model, AutoProcessor.from_pretrained(folder), images)


def test_a_prompt_is_what_the_stock_processor_makes_of_it(blip):
    image = blip.images[1]
    stock = blip.processor(images=image, text=f"<s>{PROMPT}", return_tensors="pt")  # the tiny tokenizer adds no BOS
    found = prompt_inputs(encoder_of(blip), [image])
    assert found["input_ids"].tolist() == stock["input_ids"].tolist()
    torch.testing.assert_close(found["pixel_values"], stock["pixel_values"])
    assert set(found) - {"token_type_ids"} == set(stock)


def test_an_image_of_a_sample_is_asked_the_prompt_of_its_sequence(instructblip, tmp_path):
    encoder = encoder_of(instructblip)
    dataset = TrainingDataset(
        records(instructblip, tmp_path)[:1], encoder, image_root=tmp_path, objective=ObjectiveConfig(), seed=0
    )
    ids = dataset[0].pixels[0]["qformer_input_ids"]
    assert ids.tolist() == instructblip.processor.qformer_tokenizer([PROMPT])["input_ids"]


@torch.no_grad()
def test_image_features_are_those_for_a_prompt_and_of_no_other_image_of_the_batch(instructblip):
    adapter, images = find_adapter(instructblip.model), encoder_of(instructblip).images
    asked = ("what ?", "describe the small blue square on the left .", "where is it ?")
    shown = [images.tensors(instructblip.images[0], prompt=prompt) for prompt in asked]
    together = adapter.image_embeddings(images.format.collate(shown)).unflatten(0, (3, -1))
    for features, alone in zip(together, shown, strict=True):
        torch.testing.assert_close(features, adapter.image_embeddings(alone), rtol=0, atol=1e-5)
    assert (together[0] - together[2]).abs().max() > 1e-2


def test_an_instructblip_image_without_a_prompt_is_refused(instructblip):
    with pytest.raises(ValueError, match="depend on the prompt"):
        encoder_of(instructblip).images.tensors(instructblip.images[0])


def test_a_chat_template_is_refused_where_the_image_stands_before_the_text(blip):
    blip.processor.chat_template = blip.tokenizer.chat_template
    try:
        with pytest.raises(ValueError, match="data.template=plain"):
            SequenceEncoder(blip.processor, template="chat", prompt="", max_length=64, max_caption_length=64)
    finally:
        blip.processor.chat_template = None


def test_blip_2_over_an_encoder_and_a_decoder_is_refused():
    text = T5Config(d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=64)
    config = Blip2Config(vision_config=VISION, qformer_config=QFORMER, text_config=text.to_dict(), num_query_tokens=2)
    with torch.device("meta"):
        model = Blip2ForConditionalGeneration(config)
    with pytest.raises(UnsupportedModelError, match="T5ForConditionalGeneration.*over OPT"):
        find_adapter(model)
