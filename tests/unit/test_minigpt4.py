"""Promises of scripts/convert_minigpt4.py: MiniGPT-4's parts compute in the stock BLIP-2 class what they computed."""

import json

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from hacl.data.templates import SequenceEncoder
from hacl.evaluation.generation import Generator
from scripts import convert_minigpt4
from tests.reference.minigpt4 import QFORMER, QUERIES, WIDTH, MiniGPT4

TURNS = [("user", "<image>\ndescribe the image"), ("assistant", "a red square")]


def convert(paths, out, **other) -> int:
    options = {"blip2": paths["blip2"], "llm": paths["llm"], "projection": paths["minigpt4.pth"], "out": out, **other}
    return convert_minigpt4.main([str(w) for n, v in options.items() if v is not None for w in (f"--{n}", v)])


@pytest.fixture(scope="module")
def composed(tmp_path_factory):
    """(reference, folder of its parts, folder of the stock model)"""
    folder = tmp_path_factory.mktemp("minigpt4")
    reference = MiniGPT4()
    paths = reference.save(folder)
    assert convert(paths, folder / "stock") == 0
    return reference, paths, folder / "stock"


def open_stock(folder):
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


def test_the_composed_model_has_the_logits_of_its_parts(composed):
    reference, _, folder = composed
    model, processor = open_stock(folder), AutoProcessor.from_pretrained(folder)
    image = Image.effect_noise((50, 40), 90).convert("RGB")
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "describe the image"}]}],
        add_generation_prompt=True,
    )
    assert text == "###Human: <Img><image></Img> describe the image ###Assistant: "
    inputs = processor(text=f"<s>{text}", images=image, return_tensors="pt")
    ids = inputs["input_ids"][0].tolist()
    assert ids.count(processor.image_token_id) == QUERIES and ids[0] == 1
    at = ids.index(processor.image_token_id)
    wanted = reference.logits(ids[:at], inputs["pixel_values"], ids[at + QUERIES :])
    with torch.no_grad():
        found = model(**inputs).logits[0, :, : wanted.shape[1]]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    other = reference.logits(ids[:at], -inputs["pixel_values"], ids[at + QUERIES :])
    assert (other - wanted).abs().max() > 1e-2  # the image is seen


def test_a_reply_ends_before_the_mark_that_stops_it(composed):
    model, processor = open_stock(composed[2]), AutoProcessor.from_pretrained(composed[2])
    generator = Generator(model, processor, template="chat")
    words, mark = [5, 6], processor.tokenizer.convert_tokens_to_ids("###")
    reply = generator._reply([*words, mark, 9])
    assert reply.stopped and reply.ids == (*words, mark) and reply.text == processor.tokenizer.decode(words)


def test_generation_goes_on_as_the_parts_do_and_ends_of_turns_stop_it(composed):
    reference, _, folder = composed
    model, processor = open_stock(folder), AutoProcessor.from_pretrained(folder)
    mark = processor.tokenizer.convert_tokens_to_ids("###")
    assert model.generation_config.eos_token_id == [2, mark]
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before, after = [1, 5, 6], [9, 12]
    row = torch.tensor([[*before, *[processor.image_token_id] * QUERIES, *after]])
    model.generation_config.eos_token_id = None
    found = model.generate(pixel_values=pixels, input_ids=row, max_new_tokens=4, do_sample=False)[0].tolist()[-4:]
    for token in found:
        assert int(reference.logits(before, pixels, after)[-1].argmax()) == token
        after = [*after, token]


def test_labels_are_the_answer_and_the_mark_that_ends_it(composed):
    processor = AutoProcessor.from_pretrained(composed[2])
    encoder = SequenceEncoder(processor, template="chat", prompt="", max_length=99, max_caption_length=9)
    sequence = encoder.conversation_sequence([*TURNS, ("user", "where is it"), ("assistant", "on the left")])
    kept = [token for token, label in zip(sequence.ids, sequence.is_label, strict=True) if label]
    words = processor.tokenizer.convert_ids_to_tokens
    assert " ".join(words(kept)) == "a red square ### </s> on the <unk> ### </s>"
    assert words(sequence.ids[:7]) == "<s> ### Human : < Img >".split()
    assert sequence.image_spans == [(7, 7 + QUERIES)]
    assert words(sequence.ids[7 + QUERIES :][:8]) == "</ Img > describe the image ### Assistant".split()


def test_without_a_projection_it_is_new_and_the_same_for_the_same_seed(composed, tmp_path, capsys):
    _, paths, _ = composed
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert convert(paths, tmp_path / name, projection=None, seed=seed) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-2])["projection"] == "new"
    maps = [open_stock(tmp_path / name).language_projection.weight for name in "abc"]
    assert torch.equal(maps[0], maps[1]) and not torch.equal(maps[0], maps[2])
    assert maps[0].shape == (WIDTH, QFORMER)


def test_the_q_former_stays_in_fp32_beside_a_decoder_in_bf16(composed, tmp_path):
    assert convert(composed[1], tmp_path / "half", dtype="bfloat16") == 0
    from safetensors.torch import load_file

    tensors = load_file(tmp_path / "half/model.safetensors")
    kinds = {name.partition(".")[0]: tensor.dtype for name, tensor in tensors.items()}
    assert kinds["qformer"] == kinds["query_tokens"] == torch.float32
    assert kinds["vision_model"] == kinds["language_model"] == kinds["language_projection"] == torch.bfloat16


class Payload:
    def __reduce__(self):
        return (print, ("opened",))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"llama_proj.weight": torch.zeros(WIDTH, QFORMER)}, "missing ['llama_proj.bias']"),
        (
            {"llama_proj.weight": torch.zeros(WIDTH, QFORMER), "llama_proj.bias": torch.zeros(WIDTH),
             "llama_model.base_model.lora_A": torch.zeros(1)},
            "this one also has ['llama_model.base_model.lora_A'] (MiniGPT-v2 is another model)",
        ),
        (
            {"llama_proj.weight": torch.zeros(WIDTH, 4 * QFORMER), "llama_proj.bias": torch.zeros(WIDTH)},
            f"llama_proj.weight is ({WIDTH}, {4 * QFORMER}), but Q-Former and decoder need ({WIDTH}, {QFORMER})",
        ),
        ({"llama_proj.weight": Payload()}, "not a state dict of tensors alone"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_is_not_minigpt4s_is_refused_by_name(state, message, composed, tmp_path, capsys):
    torch.save({"model": state}, tmp_path / "other.pth")
    assert convert(composed[1], tmp_path / "stock", projection=tmp_path / "other.pth") == 2
    shown = capsys.readouterr()
    assert message in shown.err and "other.pth" in shown.err and "opened" not in shown.out
    assert [path.name for path in tmp_path.iterdir()] == ["other.pth"]


def test_parts_that_do_not_fit_are_refused_by_name(composed, tmp_path, capsys):
    _, paths, stock = composed
    assert convert({**paths, "blip2": paths["llm"]}, tmp_path / "out") == 2
    assert "a llama model; the tower and the Q-Former must be those of a BLIP-2" in capsys.readouterr().err
    assert convert({**paths, "llm": paths["blip2"]}, tmp_path / "out") == 2
    assert "a model of type 'blip-2'; the decoder must be a Llama" in capsys.readouterr().err
    assert convert(paths, stock) == 2
    assert "exists; remove it or choose another --out" in capsys.readouterr().err
    assert convert({**paths, "minigpt4.pth": tmp_path / "none.pth"}, tmp_path / "out") == 2
    assert "none.pth: no such file" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
