"""Traps of stock transformers 5.23 that the adapters, templates and tiny models step around.

A failure here means that a release has changed one of them: look whether the way around it may go.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, BlipImageProcessor

from tests.families import build
from tests.families.common import encode, extended_tokenizer, prompt, save, text_config
from tests.tiny import build_tokenizer

WORDS = "describe the image ."
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8))


def load(name: str, folder):
    build(name, folder)
    return AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def test_a_qwen2_checkpoint_loses_another_class_of_tokenizer_in_silence(tmp_path):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = extended_tokenizer({})
    save(tmp_path, Qwen2ForCausalLM(Qwen2Config(**text_config(tokenizer))), tokenizer)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded).__name__ == "Qwen2Tokenizer" and type(tokenizer).__name__ == "TokenizersBackend"
    assert tokenizer.tokenize("a red square") == ["a", "red", "square"] != loaded.tokenize("a red square")


def test_the_processor_of_smolvlm_needs_num2words_for_images_too(monkeypatch):
    from transformers.models.smolvlm import processing_smolvlm

    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    with pytest.raises(ImportError, match="num2words"):
        processing_smolvlm.SmolVLMProcessor(None, build_tokenizer(), None)


def test_the_processor_of_blip_2_fails_where_the_tokenizer_names_its_image_token():
    from transformers import Blip2Processor

    images, tokenizer = BlipImageProcessor(size={"height": 32, "width": 32}), build_tokenizer()
    with pytest.raises(AttributeError, match="content"):
        Blip2Processor(images, tokenizer, num_query_tokens=4)(images=PICTURE, text="a", return_tensors="pt")


def test_the_processor_of_blip_2_forgets_a_chat_template(tmp_path):
    _, processor = load("blip_2", tmp_path)
    processor.chat_template = "{{ messages }}"
    processor.save_pretrained(tmp_path)
    assert AutoProcessor.from_pretrained(tmp_path).chat_template is None


def test_the_processor_of_instructblip_pads_the_text_of_the_qformer_on_the_side_of_the_decoder(tmp_path):
    _, processor = load("instructblip", tmp_path)
    assert (processor.qformer_tokenizer.padding_side, processor.tokenizer.padding_side) == ("right", "left")
    batch = encode(processor, [[PICTURE], [PICTURE]], ["a", "a red square"])
    assert batch["qformer_attention_mask"][0].tolist() == [0, 0, 1]


def test_the_labels_of_a_paligemma_prompt_make_the_loss_not_a_number(tmp_path):
    model, processor = load("paligemma", tmp_path)
    batch = processor(images=[[PICTURE]], text=[prompt(processor, WORDS)], return_tensors="pt")
    assert (batch["labels"] == -100).all() and model(**batch).loss.isnan()


def test_paligemma_lets_an_answer_see_its_next_token_where_no_token_types_are_given(tmp_path):
    model, processor = load("paligemma", tmp_path)
    batch = processor(images=[[PICTURE]], text=["<image>a"], suffix=["red square"], return_tensors="pt")
    other = batch["input_ids"].clone()
    other[0, -1] = processor.tokenizer.convert_tokens_to_ids("blue")
    types = {"token_type_ids": batch["token_type_ids"]}
    with torch.no_grad():
        for given, leaks in (({}, True), (types, False)):
            one, two = (
                model(input_ids=ids, pixel_values=batch["pixel_values"], **given).logits
                for ids in (batch["input_ids"], other)
            )
            assert torch.equal(one[0, -2], two[0, -2]) != leaks


def test_a_sampled_image_token_ends_generation_without_a_cache(tmp_path):
    model, processor = load("llava", tmp_path)
    image = model.config.image_token_id
    options = {"max_new_tokens": 2, "do_sample": False, "prefix_allowed_tokens_fn": lambda *_: [image]}
    inputs = encode(processor, [[PICTURE]], [prompt(processor, WORDS)])
    model.generate(**inputs, **options, use_cache=True)
    with pytest.raises(ValueError, match="do not match"):
        model.generate(**inputs, **options, use_cache=False)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl"])
def test_a_qwen_model_places_bare_embeddings_by_the_image_it_saw_last(name, tmp_path):
    model, processor = load(name, tmp_path)
    embeds = model.get_input_embeddings()(torch.tensor([[5, 6, 7]]))
    with torch.no_grad():
        model(inputs_embeds=embeds)
        model(**encode(processor, [[PICTURE], [PICTURE]], [prompt(processor, WORDS)] * 2))
        assert int(model.model.rope_deltas[0]) == -30
        with pytest.raises(RuntimeError):
            model(inputs_embeds=embeds)
