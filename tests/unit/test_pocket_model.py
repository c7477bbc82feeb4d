"""Promises of the pocket model: its words, its chat template, and that stock classes reopen what it saves."""

import random

import pytest
import torch

from hacl.data.templates import SequenceEncoder
from hacl.models.adapters import find_adapter
from hacl.models.pocket import NUM_IMAGE_TOKENS, pocket_model, pocket_processor, pocket_tokenizer
from hacl.pocket.draw import draw_scene
from hacl.pocket.hallucinate import TYPES, hallucinations
from hacl.pocket.language import PROMPTS, describe, questions
from hacl.pocket.pretrain import DialogueEncoder, dialogue_loss
from hacl.pocket.scenes import sample_scene
from hacl.pocket.tower import cell_labels, normalise, scene_pixels


@pytest.fixture(scope="module")
def processor():
    return pocket_processor()


@pytest.fixture(scope="module")
def model():
    return pocket_model(seed=1)


def test_the_tokenizer_knows_every_word_the_world_can_say():
    tokenizer = pocket_tokenizer()
    rng = random.Random(0)
    for index in range(200):
        scene = sample_scene(rng.choice(["train", "val_broken"]), index, 0)
        caption = describe(scene, rng)
        texts = [caption.render(), *PROMPTS, *(q for q, _ in questions(scene, 3, rng))]
        texts += [h.text for h in hallucinations(scene, caption, TYPES, rng)]
        for text in texts:
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert tokenizer.unk_token_id not in ids, text
            assert tokenizer.decode(ids) == text


def test_common_evaluation_questions_are_read_without_unknown_words():
    tokenizer = pocket_tokenizer()
    ids = tokenizer.encode("Is there an anchor in the image? Please answer yes or no.")
    assert tokenizer.unk_token_id not in ids and ids[0] == tokenizer.bos_token_id


def test_the_model_has_about_a_million_parameters(model):
    assert 0.9e6 < sum(parameter.numel() for parameter in model.parameters()) < 1.2e6


def test_the_seed_decides_the_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = pocket_model(seed=2), pocket_model(seed=2)
    assert torch.equal(torch.rand(1), expected)
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_checkpoint_reopens_with_stock_classes_and_gives_the_same_logits(model, processor, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor, FastVlmForConditionalGeneration

    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is FastVlmForConditionalGeneration
    assert not info["missing_keys"] and not info["unexpected_keys"]
    reopened = AutoProcessor.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "describe the scene ."}]}]
    image = draw_scene(sample_scene("train", 0, 0))
    batches = []
    for each in (processor, reopened):
        text = each.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        batches.append(each(text=text, images=image, return_tensors="pt"))
    for name, value in batches[0].items():
        torch.testing.assert_close(value, batches[1][name], rtol=0, atol=1e-6)
    assert (batches[0]["input_ids"] == model.config.image_token_id).sum() == NUM_IMAGE_TOKENS
    with torch.no_grad():
        torch.testing.assert_close(model(**batches[0]).logits, again(**batches[1]).logits, rtol=0, atol=1e-5)


def test_padding_on_the_left_does_not_change_what_is_generated(model, processor):
    image = draw_scene(sample_scene("train", 3, 0))
    texts = ["<user> <image> describe the scene . <assistant> ", "<user> <image> is there a ball ? <assistant> "]
    both = processor(text=texts, images=[image, image], padding=True, return_tensors="pt")
    together = model.generate(**both, max_new_tokens=6, do_sample=False)[:, both["input_ids"].shape[1] :]
    for row, text in enumerate(texts):
        alone = processor(text=text, images=image, return_tensors="pt")
        single = model.generate(**alone, max_new_tokens=6, do_sample=False)[:, alone["input_ids"].shape[1] :]
        assert together[row].tolist()[: single.shape[1]] == single[0].tolist()


def test_pre_training_builds_the_ids_that_the_chat_template_renders(processor):
    quick = DialogueEncoder(processor.tokenizer.get_vocab())
    slow = SequenceEncoder(processor, template="chat", prompt=PROMPTS[0], max_length=512, max_caption_length=64)
    turns = [("is there a ball ?", "yes"), ("are there two boats ?", "no")]
    built = quick.encode(turns, image=0)
    said = [(role, text) for question, answer in turns for role, text in (("user", question), ("assistant", answer))]
    rendered = slow.conversation_sequence([("user", f"<image>\n{turns[0][0]}"), *said[1:]])
    assert built.ids == rendered.ids and built.is_label == rendered.is_label
    caption = "there is a red ball and two blue boats ."
    built, rendered = quick.encode([(PROMPTS[0], caption)], image=0), slow.caption_sequence(caption)
    assert built.ids == rendered.ids and built.is_label == rendered.is_label


def test_cached_features_and_pixels_give_the_same_pre_training_loss(model):
    scenes = [sample_scene("train", index, 0) for index in range(3)]
    encoder, adapter = DialogueEncoder(pocket_tokenizer().get_vocab()), find_adapter(model)
    batch = [
        encoder.encode([(PROMPTS[0], describe(s, random.Random(0)).render())], image=i) for i, s in enumerate(scenes)
    ]
    pixels = normalise(scene_pixels(scenes))
    with torch.no_grad():
        features = adapter.vision_features(pixels)
        ours = dialogue_loss(adapter, batch, features)
        longest = max(len(item.ids) for item in batch)
        ids = torch.tensor([item.ids + [0] * (longest - len(item.ids)) for item in batch])
        labels = torch.tensor(
            [
                [i if f else -100 for i, f in zip(item.ids, item.is_label, strict=True)]
                + [-100] * (longest - len(item.ids))
                for item in batch
            ]
        )
        stock = model(input_ids=ids, pixel_values=pixels, labels=labels).loss
    torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-5)


def test_the_drawings_are_normalised_as_the_processor_does(processor):
    scene = sample_scene("train", 1, 0)
    expected = processor.image_processor(draw_scene(scene), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(normalise(scene_pixels([scene])), expected, rtol=0, atol=1e-5)


def test_cell_labels_point_at_the_cells_that_hold_things():
    scenes = [sample_scene("train", index, 0) for index in range(20)]
    kinds, colours = cell_labels(scenes)
    assert (kinds > 0).sum().item() == sum(len(scene.things) for scene in scenes)
    assert torch.equal(kinds > 0, colours >= 0)
