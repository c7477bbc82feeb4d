"""Promises of `convert_llava.py join` and `tower`: parts of others compute in the stock classes what they computed."""

import json

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessor,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from scripts import convert_llava
from tests.reference.joined_llava import MEAN, VISION, block_states, joined_logits, open_clip_model, save_open_clip
from tests.reference.original_llava import text_tokenizer

PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
WIDTH = 24


def convert(*arguments) -> int:
    return convert_llava.main([str(argument) for argument in arguments])


def save_llm(folder, **changes):
    tokenizer = text_tokenizer()
    sizes = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(3)
    config = LlamaConfig(vocab_size=len(tokenizer), **sizes, tie_word_embeddings=False, **changes)
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    """(open_clip's model, folder of the stock tower made of it)"""
    folder = tmp_path_factory.mktemp("tower")
    model, config = open_clip_model()
    save_open_clip(folder / "open_clip", model, config)
    assert convert("tower", folder / "open_clip", "--out", folder / "stock") == 0
    return model, folder / "stock"


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("change", [{}, {"mlp_ratio": 2.5}, {"norm_kwargs": {"eps": 1e-3}}, {"patch_dropout": 0.5}])
def test_a_tower_of_open_clip_has_its_states_in_the_stock_class(quick_gelu, change, tmp_path, capsys):
    model, config = open_clip_model(change, quick_gelu=quick_gelu)
    folder = save_open_clip(tmp_path / "open_clip", model, config)
    assert convert("tower", folder, "--out", tmp_path / "stock") == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-2])
    assert summary == {"width": 32, "layers": 3, "image_tokens": 16}
    stock = CLIPVisionModel.from_pretrained(tmp_path / "stock").eval()
    with torch.no_grad():
        found = stock(PIXELS, output_hidden_states=True)
    for ours, theirs in zip(found.hidden_states, block_states(model.visual, PIXELS), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    features = found.pooler_output @ model.visual.proj
    torch.testing.assert_close(features, model.encode_image(PIXELS), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"ls_init_value": 0.1}, "vision_cfg.ls_init_value=0.1: the stock CLIPVisionModel does not compute"),
        ({"no_ln_pre": True}, "vision_cfg.no_ln_pre=True"),
        ({"attentional_pool": True}, "vision_cfg.attentional_pool=True"),
        ({"pool_type": "avg"}, "vision_cfg.pool_type='avg'"),
        ({"qk_norm": True}, "vision_cfg.qk_norm=True"),
        ({"act_kwargs": {"approximate": "tanh"}}, "vision_cfg.act_kwargs="),
        ({"norm_kwargs": {"bias": False}}, "plain layer norms"),
        ({"timm_model_name": "vit_so400m"}, "a tower of timm is no CLIP ViT"),
        ({"layers": [3, 4, 6, 3]}, "vision_cfg.layers=[3, 4, 6, 3]: the stock CLIPVisionModel takes one number"),
        ({"image_size": [32, 64]}, "vision_cfg.image_size=[32, 64]"),
        ({"head_width": 7}, "vision_cfg.width=32: no multiple of head_width=7"),
        ({"rotary": True}, "vision_cfg.rotary=True"),
        ({"layers": 2}, "weights do not fill the model: missing [], unexpected ['encoder.layers.2."),
        ({"width": 64}, "weights do not fit the model: "),
    ],
)
def test_a_tower_that_the_stock_class_does_not_compute_is_refused_and_nothing_is_left(
    vision, message, tmp_path, capsys
):
    model, config = open_clip_model()
    config["vision_cfg"] = {**VISION, **vision}
    folder = save_open_clip(tmp_path / "open_clip", model, config)
    assert convert("tower", folder, "--out", tmp_path / "stock") == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["open_clip"]


def test_images_are_prepared_as_the_checkpoint_says(tmp_path, capsys):
    model, config = open_clip_model()
    folder = save_open_clip(tmp_path / "a", model, config, interpolation="bilinear", resize_mode="squash")
    assert convert("tower", folder, "--out", tmp_path / "squash") == 0
    images = CLIPImageProcessor.from_pretrained(tmp_path / "squash")
    assert list(images.image_mean) == MEAN and not images.do_center_crop and int(images.resample) == 2
    assert dict(images.size) == {"height": 32, "width": 32}
    folder = save_open_clip(tmp_path / "b", model, config)
    assert convert("tower", folder, "--out", tmp_path / "crop") == 0
    images = CLIPImageProcessor.from_pretrained(tmp_path / "crop")
    assert dict(images.size) == {"shortest_edge": 32} and images.do_center_crop and int(images.resample) == 3
    folder = save_open_clip(tmp_path / "c", model, config, resize_mode="longest")
    assert convert("tower", folder, "--out", tmp_path / "pad") == 2
    assert "resize_mode='longest'" in capsys.readouterr().err


def test_weights_alone_need_the_name_of_an_architecture(tmp_path, capsys, monkeypatch):
    import open_clip

    model, config = open_clip_model()
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"epoch": 3, "name": "own", "state_dict": state}, tmp_path / "epoch_3.pt")
    assert convert("tower", tmp_path / "epoch_3.pt", "--out", tmp_path / "stock") == 2
    assert "give --architecture" in capsys.readouterr().err
    assert convert("tower", tmp_path / "epoch_3.pt", "--architecture", "ViT-Z", "--out", tmp_path / "stock") == 2
    assert "open_clip knows no architecture 'ViT-Z'" in capsys.readouterr().err
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: config)
    assert convert("tower", tmp_path / "epoch_3.pt", "--architecture", "tiny", "--out", tmp_path / "stock") == 0
    stock = CLIPVisionModel.from_pretrained(tmp_path / "stock").eval()
    with torch.no_grad():
        found = stock(PIXELS).last_hidden_state
    torch.testing.assert_close(found, block_states(model.visual, PIXELS)[-1], atol=1e-5, rtol=1e-5)


def test_the_known_architectures_of_open_clip_are_taken_or_refused_by_their_layout():
    import open_clip

    from hacl.models.open_clip_vision import clip_vision_config

    taken, refused = set(), set()
    for name in open_clip.list_models():
        try:
            clip_vision_config(open_clip.get_model_config(name))
        except ValueError:
            refused.add(name)
        else:
            taken.add(name)
    assert {"ViT-B-32", "ViT-L-14", "ViT-L-14-336", "ViT-L-14-quickgelu", "ViT-H-14", "ViT-bigG-14"} <= taken
    assert {"RN50", "coca_ViT-L-14", "EVA02-L-14", "ViT-SO400M-14-SigLIP", "convnext_base"} <= refused


@pytest.mark.parametrize("kind", ["linear", "mlp2x_gelu"])
def test_the_joined_model_is_the_decoder_over_projected_states_of_the_tower(kind, tower, tmp_path, capsys):
    open_clip, vision = tower
    llm = save_llm(tmp_path / "vicuna")
    out = tmp_path / "joined"
    assert convert("join", tmp_path / "vicuna", "--vision", vision, "--projector", kind, "--out", out) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-2])["projector"] == kind
    model = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32).eval()
    projector = {name: tensor for name, tensor in model.model.multi_modal_projector.state_dict().items()}
    assert projector["linear_1.weight"].std() > 0.05  # uniform within 1 / sqrt(32), not the 0.02 of the stock class
    image = model.config.image_token_id
    states = block_states(open_clip.visual, PIXELS[:1])[-2]
    wanted = joined_logits(llm, states, projector, [1, 9, image, 12, 20], image)
    row = torch.tensor([[1, 9, *[image] * 16, 12, 20]])
    with torch.no_grad():
        found = model(input_ids=row, pixel_values=PIXELS[:1]).logits[0, :, : wanted.shape[1]]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert AutoProcessor.from_pretrained(out).image_token_id == image


def test_the_same_seed_gives_the_same_projector_and_another_another(tower, tmp_path):
    save_llm(tmp_path / "vicuna")
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        out = tmp_path / name
        assert convert("join", tmp_path / "vicuna", "--vision", tower[1], "--seed", seed, "--out", out) == 0
        model = AutoModelForImageTextToText.from_pretrained(out)
        weights.append(model.model.multi_modal_projector.linear_2.weight.detach())
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_table_that_serves_as_lm_head_becomes_two(tower, tmp_path):
    llm = save_llm(tmp_path / "tied")
    llm.lm_head.weight = llm.model.embed_tokens.weight
    llm.config.tie_word_embeddings = True
    llm.save_pretrained(tmp_path / "tied")
    assert convert("join", tmp_path / "tied", "--vision", tower[1], "--out", tmp_path / "joined") == 0
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "joined")
    assert model.lm_head.weight.data_ptr() != model.get_input_embeddings().weight.data_ptr()
    assert torch.equal(model.lm_head.weight[: llm.config.vocab_size], llm.model.embed_tokens.weight)


def test_parts_that_do_not_fit_are_refused_and_nothing_is_left(tower, tmp_path, capsys):
    save_llm(tmp_path / "vicuna")
    model, config = open_clip_model()
    raw = save_open_clip(tmp_path / "raw", model, config)
    assert convert("join", tmp_path / "vicuna", "--vision", raw, "--out", tmp_path / "out") == 2
    assert "is an open_clip checkpoint; convert its tower first" in capsys.readouterr().err
    content = json.loads((tmp_path / "vicuna/config.json").read_text())
    (tmp_path / "vicuna/config.json").write_text(json.dumps(content | {"model_type": "opt"}))
    assert convert("join", tmp_path / "vicuna", "--vision", tower[1], "--out", tmp_path / "out") == 2
    assert "a model of type 'opt'; the decoder must be a Llama" in capsys.readouterr().err
    (tmp_path / "vicuna/config.json").write_text(json.dumps(content | {"num_hidden_layers": 3}))
    assert convert("join", tmp_path / "vicuna", "--vision", tower[1], "--out", tmp_path / "out") == 2
    assert "weights do not fill the model: missing" in capsys.readouterr().err
    assert convert("join", tmp_path / "vicuna", "--vision", tower[1], "--out", raw) == 2
    assert "exists; remove it or choose another --out" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", "vicuna"]
