"""Promises of scripts/convert_llava.py: an original LLaVA or HACL folder computes the same in stock classes."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, LlamaForCausalLM

from hacl.training.export import load_exported_heads
from scripts import convert_llava
from tests.reference.original_llava import IMAGE_INDEX, WIDTH, OriginalLlava, text_tokenizer

IDS = [1, 9, IMAGE_INDEX, 12, 20, 7, 15]
PIXELS = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def convert(*arguments) -> int:
    return convert_llava.main([str(argument) for argument in arguments])


@torch.no_grad()
def stock_logits(folder, ids=IDS, pixels=PIXELS):
    """Logits of the stock class at the positions of the original's sequence."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    image, at = model.config.image_token_id, ids.index(IMAGE_INDEX)
    row = [*ids[:at], *[image] * 16, *ids[at + 1 :]]
    return model(input_ids=torch.tensor([row]), pixel_values=pixels).logits[0]


def assert_same(original, folder):
    wanted = original.logits(IDS, PIXELS)
    found = stock_logits(folder)[:, : wanted.shape[1]]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "mlp2x_gelu"])
@pytest.mark.parametrize("tower", [False, True])
def test_an_imported_model_has_the_logits_of_the_original(kind, tower, tmp_path, capsys):
    original = OriginalLlava(kind)
    vision = original.save_tower(tmp_path / "clip")
    if tower:
        OriginalLlava(kind, seed=9).save_tower(tmp_path / "clip")  # the weights of the folder count, not these
    folder = original.save(tmp_path / "original", original.tensors(tower=tower))
    assert convert("import", folder, "--vision", vision, "--out", tmp_path / "stock") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-2])["projector"] == kind
    assert_same(original, tmp_path / "stock")


def test_the_processor_writes_as_many_tokens_as_the_tower_gives_and_new_rows_never_win(tmp_path):
    original = OriginalLlava()
    folder = original.save(tmp_path / "original")
    assert convert("import", folder, "--vision", original.save_tower(tmp_path / "c"), "--out", tmp_path / "stock") == 0
    from PIL import Image

    processor = AutoProcessor.from_pretrained(tmp_path / "stock")
    inputs = processor(text="<image> describe", images=Image.new("RGB", (40, 30)), return_tensors="pt")
    assert int((inputs["input_ids"] == processor.image_token_id).sum()) == 16
    logits = stock_logits(tmp_path / "stock")
    rows = original.llm.config.vocab_size
    assert logits.shape[1] % 64 == 0 and logits.shape[1] > rows
    assert (logits[:, rows:].amax(dim=1) < logits[:, :rows].amax(dim=1)).all()
    chat = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "describe"}]}],
        add_generation_prompt=True,
    )
    assert chat == "USER: <image>\ndescribe ASSISTANT:"


def test_images_are_padded_to_squares_where_the_original_does_so(tmp_path):
    original = OriginalLlava()
    folder = original.save(tmp_path / "original")
    (folder / "config.json").write_text(json.dumps(original.config() | {"image_aspect_ratio": "pad"}))
    vision = original.save_tower(tmp_path / "clip")
    assert convert("import", folder, "--vision", vision, "--out", tmp_path / "stock") == 0
    from PIL import Image

    pixels = AutoProcessor.from_pretrained(tmp_path / "stock").image_processor
    wide = pixels(Image.new("RGB", (64, 32), (255, 0, 0)), return_tensors="pt")["pixel_values"][0, 0]
    assert wide.shape == (32, 32) and wide[16].mean() > 1 > wide[2].mean()  # red band, mean colour above it
    assert wide[2].abs().max() < 0.02


def test_a_projector_alone_is_put_beside_its_language_model(tmp_path):
    original = OriginalLlava()
    tensors = original.tensors(tower=False)
    alone = {name: tensor for name, tensor in tensors.items() if "mm_projector" in name}
    folder = original.save(tmp_path / "pretrain", alone, "mm_projector.bin")
    original.llm.save_pretrained(tmp_path / "vicuna")
    text_tokenizer().save_pretrained(tmp_path / "vicuna")
    vision = original.save_tower(tmp_path / "clip")
    common = ["import", folder, "--vision", vision, "--out", tmp_path / "stock"]
    assert convert(*common) == 2
    assert convert(*common, "--base", tmp_path / "vicuna") == 0
    assert_same(original, tmp_path / "stock")


def test_lora_matrices_are_merged_as_peft_merges_them(tmp_path):
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    original = OriginalLlava()
    original.llm.save_pretrained(tmp_path / "vicuna")
    folder, tensors = tmp_path / "lora", original.tensors(tower=False)
    others = {f"base_model.model.{n}": t for n, t in tensors.items() if "mm_projector" in n}
    original.save(folder, others, "non_lora_trainables.bin")
    (folder / "tokenizer_config.json").rename(tmp_path / "vicuna" / "tokenizer_config.json")
    (folder / "tokenizer.json").rename(tmp_path / "vicuna" / "tokenizer.json")
    llm = LlamaForCausalLM.from_pretrained(tmp_path / "vicuna")
    tuned = get_peft_model(llm, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
    tuned.save_pretrained(folder / "peft")
    torch.save(get_peft_model_state_dict(tuned), folder / "adapter_model.bin")
    (folder / "adapter_config.json").write_bytes((folder / "peft" / "adapter_config.json").read_bytes())
    vision = original.save_tower(tmp_path / "clip")
    out = tmp_path / "stock"
    assert convert("import", folder, "--vision", vision, "--base", tmp_path / "vicuna", "--out", out) == 0
    plain = original.logits(IDS, PIXELS)
    original.llm = tuned.merge_and_unload()
    assert_same(original, out)
    assert (original.logits(IDS, PIXELS) - plain).abs().max() > 1e-2


def test_heads_and_temperature_of_hacl_come_along_and_its_queue_does_not(tmp_path, capsys):
    original = OriginalLlava("linear", heads=True)
    vision = original.save_tower(tmp_path / "clip")
    folder = original.save(tmp_path / "hacl")
    assert convert("import", folder, "--vision", vision, "--out", tmp_path / "stock") == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-2])
    assert summary["dropped"] == ["model.image_queue", "model.queue_ptr"]
    heads = load_exported_heads(tmp_path / "stock", WIDTH)
    states = torch.randn(3, WIDTH)
    for ours, name in ((heads.project_image, "vision_projector"), (heads.project_text, "text_projector")):
        torch.testing.assert_close(ours(states), original.heads[name](states))
    assert torch.exp(-heads.log_inverse_temperature()).item() == pytest.approx(0.05)


@pytest.mark.parametrize("kind", ["linear", "mlp2x_gelu"])
def test_there_and_back_is_the_same_checkpoint(kind, tmp_path):
    original = OriginalLlava(kind, heads=True)
    wanted = original.tensors(tower=True)
    vision = original.save_tower(tmp_path / "clip")
    folder = original.save(tmp_path / "original", wanted)
    assert convert("import", folder, "--vision", vision, "--out", tmp_path / "stock") == 0
    assert convert("export", tmp_path / "stock", "--out", tmp_path / "no-name") == 2  # a tower of no known size
    name = ["--vision-name", "nowhere/clip"]
    assert convert("export", tmp_path / "stock", "--out", tmp_path / "back", *name) == 0
    found = load_file(tmp_path / "back" / "model.safetensors")
    kept = {n: t for n, t in wanted.items() if "queue" not in n}
    assert set(found) == set(kept)
    for key, tensor in kept.items():
        torch.testing.assert_close(found[key], tensor, atol=1e-7, rtol=1e-6, msg=key)
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    for key in ("mm_projector_type", "mm_vision_tower", "mm_vision_select_layer", "mm_vision_select_feature"):
        assert config[key] == original.config()[key]


def test_a_projector_alone_can_be_written(tmp_path):
    original = OriginalLlava()
    vision = original.save_tower(tmp_path / "clip")
    assert convert("import", original.save(tmp_path / "o"), "--vision", vision, "--out", tmp_path / "stock") == 0
    out = ["--out", tmp_path / "p", "--vision-name", "x", "--projector-only"]
    assert convert("export", tmp_path / "stock", *out) == 0
    names = set(load_file(tmp_path / "p" / "mm_projector.safetensors"))
    assert names == {f"model.mm_projector.{at}.{part}" for at in (0, 2) for part in ("weight", "bias")}


def spoil(tensors, config, case):
    if case == "unknown":
        tensors["model.surprise.weight"] = torch.zeros(1)
    elif case == "deep":
        tensors["model.mm_projector.4.weight"] = torch.zeros(1)
    elif case == "short":
        del tensors["model.layers.1.mlp.up_proj.weight"]
    elif case == "marks":
        config["mm_use_im_start_end"] = True
    elif case == "blind":
        for name in [n for n in tensors if "mm_projector" in n]:
            del tensors[name]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("unknown", "no LLaVA or HACL checkpoint has, the first ['model.surprise.weight']"),
        ("deep", "the stock class holds a linear one (weight, bias) or mlp2x_gelu"),
        ("short", "weights do not fill the model: missing"),
        ("marks", "mm_use_im_start_end puts marks around images"),
        ("blind", "this is not a LLaVA checkpoint"),
    ],
)
def test_what_the_stock_class_cannot_hold_is_refused_and_nothing_is_left(case, message, tmp_path, capsys):
    original = OriginalLlava()
    tensors, config = original.tensors(tower=False), original.config()
    spoil(tensors, config, case)
    folder = original.save(tmp_path / "original", tensors)
    (folder / "config.json").write_text(json.dumps(config))
    vision = original.save_tower(tmp_path / "clip")
    assert convert("import", folder, "--vision", vision, "--out", tmp_path / "stock") == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip", "original"]


class Payload:
    def __reduce__(self):
        return (print, ("opened",))


def test_a_pickle_that_holds_more_than_tensors_is_not_opened(tmp_path, capsys):
    original = OriginalLlava()
    folder = original.save(tmp_path / "original", {"model.norm.weight": Payload()})
    assert convert("import", folder, "--vision", original.save_tower(tmp_path / "clip"), "--out", tmp_path / "s") == 2
    shown = capsys.readouterr()
    assert "pytorch_model.bin: not a state dict of tensors alone" in shown.err and "opened" not in shown.out


def test_shards_are_read_by_their_index_and_a_shard_elsewhere_is_refused(tmp_path, capsys):
    original = OriginalLlava()
    folder = original.save(tmp_path / "original")
    (folder / "pytorch_model.bin").unlink()
    tensors = list(original.tensors(tower=False).items())
    halves = {"a.safetensors": dict(tensors[:9]), "b.safetensors": dict(tensors[9:])}
    names = {name: shard for shard, part in halves.items() for name in part}
    for shard, part in halves.items():
        save_file(part, folder / shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    vision = original.save_tower(tmp_path / "clip")
    assert convert("import", folder, "--vision", vision, "--out", tmp_path / "stock") == 0
    assert_same(original, tmp_path / "stock")
    index.write_text(json.dumps({"weight_map": names | {"x": "../b.safetensors"}}))
    assert convert("import", folder, "--vision", vision, "--out", tmp_path / "again") == 2
    assert "is no file of this folder" in capsys.readouterr().err
