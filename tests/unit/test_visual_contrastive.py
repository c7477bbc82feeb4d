"""Promises of visual contrastive decoding: the definition, token by token, in any batch, at two decoder calls each."""

import copy
import json

import pytest
import torch

from hacl.evaluation.generation import Generator
from hacl.evaluation.inputs import image_paths
from hacl.evaluation.runner.decoding import Decoding, VisualContrast
from hacl.evaluation.visual_contrastive import VisualContrastProcessor, contrast, distort, noise_scales
from tests.reference.visual_contrastive import greedy_reply, noise_level
from tests.tiny import write_tiny_records

QUESTIONS = ("what", "is there a red square in the image", "describe", "how many")
TOKENS = 9


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    from hacl.data.records import read_records

    folder = tmp_path_factory.mktemp("contrast")
    return image_paths(read_records(write_tiny_records(folder, len(QUESTIONS))), folder)


@pytest.fixture
def loaded(tiny_model):
    """A model that attends to its image: a random one hardly does, and its two streams would agree."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(tiny_model).double().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "language_model" in name and weight.ndim == 2:
                weight *= 8
        processor = AutoProcessor.from_pretrained(tiny_model)
        model.lm_head.weight[processor.image_token_id] = 0  # never the likeliest: a reply must not name the image token
    return model, processor


def generator(loaded, vcd=None, **settings):
    return Generator(*loaded, decoding=Decoding(max_new_tokens=TOKENS, vcd=vcd, **settings))


def ids(replies):
    return [reply.ids for reply in replies]


@pytest.mark.parametrize("step", [0, 1, 137, 500, 999])
def test_the_noise_follows_the_diffusion_schedule(step):
    image, noise = noise_scales(step)
    assert image**2 == pytest.approx(noise_level(step), rel=1e-9)
    assert image**2 + noise**2 == pytest.approx(1)


def test_later_steps_leave_less_of_the_image():
    kept = [noise_scales(step)[0] for step in range(0, 1000, 37)]
    assert kept == sorted(kept, reverse=True) and kept[0] > 0.99 and kept[-1] < 0.35


def test_noise_depends_on_seed_and_image_and_on_nothing_else():
    pixels = torch.rand(3, 3, 4, 4)
    alone = [distort(pixels[i : i + 1], 500, seed=1)[0] for i in range(3)]
    assert torch.equal(torch.stack(alone), distort(pixels, 500, seed=1))
    assert not torch.equal(distort(pixels, 500, seed=1), distort(pixels, 500, seed=2))
    image, scale = noise_scales(500)
    noise = (distort(pixels, 500) - image * pixels) / scale
    assert not torch.allclose(noise[0], noise[1])


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.1), (0.5, 0.0), (2.0, 0.6)])
def test_every_token_is_that_of_the_definition(loaded, images, alpha, beta):
    """Rows of different lengths in one padded batch, against one row at a time without a cache."""
    asked = generator(loaded, VisualContrast(alpha, beta, 600), seed=5)
    found = ids(asked.replies(images, QUESTIONS))
    plain = ids(generator(loaded).replies(images, QUESTIONS))
    model, processor = loaded
    for row, (image, question) in enumerate(zip(images, QUESTIONS, strict=True)):
        inputs = asked.inputs([image], [question], torch.device("cpu"))
        noised = distort(inputs["pixel_values"], 600, seed=5)
        wanted, history = greedy_reply(
            model,
            inputs["input_ids"][0].tolist(),
            inputs["pixel_values"],
            noised,
            alpha=alpha,
            beta=beta,
            tokens=TOKENS,
            eos=asked.eos,
        )
        ranked = [sorted(scores)[-2:] for scores in history]
        assert min(high - low for low, high in ranked) > 1e-5, "a near tie proves nothing"
        assert list(found[row]) == wanted
    assert found != plain


def test_scores_equal_those_of_the_definition_behind_a_growing_cache(loaded, images):
    from tests.reference.visual_contrastive import next_scores

    model, _ = loaded
    inputs = generator(loaded).inputs(images[:1], QUESTIONS[:1], torch.device("cpu"))
    noised = distort(inputs["pixel_values"], 500)
    processor = VisualContrastProcessor(model, VisualContrast(1.5, 0.05), {**inputs, "pixel_values": noised})
    text = inputs["input_ids"]
    for new in ([], [9], [12], [7]):
        text = torch.cat([text, torch.tensor([new], dtype=torch.long)], dim=1)
        plain = model(input_ids=text, pixel_values=inputs["pixel_values"]).logits[:, -1]
        found = processor(text, plain.detach())[0].tolist()
        wanted = next_scores(model, text[0].tolist(), inputs["pixel_values"], noised, alpha=1.5, beta=0.05)
        assert found == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.8, "top_k": 20}, {"repetition_penalty": 1.3}])
def test_zero_alpha_and_beta_decode_as_without_bit_for_bit(loaded, images, settings):
    off = VisualContrast(alpha=0.0, beta=0.0)
    assert ids(generator(loaded, off, **settings).replies(images, QUESTIONS)) == ids(
        generator(loaded, **settings).replies(images, QUESTIONS)
    )
    scores = torch.randn(2, 50)
    assert torch.equal(contrast(scores, torch.randn(2, 50), 0.0, 0.0), scores)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.9, "top_p": 0.9, "seed": 3}])
def test_a_batch_changes_no_reply(loaded, images, settings):
    asked = generator(loaded, VisualContrast(1.0, 0.1), **settings)
    together = ids(asked.replies(images, QUESTIONS, names=QUESTIONS))
    alone = [
        ids(asked.replies([image], [question], names=[question]))[0]
        for image, question in zip(images, QUESTIONS, strict=True)
    ]
    assert together == alone


def test_a_token_costs_two_decoder_calls_and_a_reply_two_tower_calls(loaded, images):
    model, processor = copy.deepcopy(loaded[0]), loaded[1]
    calls = {"decoder": 0, "tower": 0}
    for name, module in (("decoder", model.model.language_model), ("tower", model.model.vision_tower)):
        module.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
    replies = generator((model, processor), VisualContrast()).replies(images, QUESTIONS)
    longest = max(len(reply.ids) for reply in replies)
    assert calls == {"decoder": 2 * longest, "tower": 2}


def test_an_implausible_token_is_never_taken(loaded, images):
    """With beta 1 only the likeliest token is plausible, so any alpha gives the plain reply."""
    strict = generator(loaded, VisualContrast(alpha=50.0, beta=1.0))
    assert ids(strict.replies(images, QUESTIONS)) == ids(generator(loaded).replies(images, QUESTIONS))


def test_a_reply_that_must_go_on_never_stops_early(loaded, images):
    asked = generator(loaded, VisualContrast(alpha=1.0, beta=1.0), min_new_tokens=TOKENS)
    assert [len(row) for row in ids(asked.replies(images, QUESTIONS))] == [TOKENS] * len(QUESTIONS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1.0}, "vcd_alpha=-1.0"),
        ({"beta": 1.5}, "vcd_beta=1.5"),
        ({"noise": 1000}, "vcd_noise=1000"),
    ],
)
def test_settings_outside_their_range_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        VisualContrast(**settings)


def test_beams_and_questions_without_an_image_are_refused(loaded, images):
    with pytest.raises(ValueError, match="num_beams=1"):
        Decoding(num_beams=2, vcd=VisualContrast())
    with pytest.raises(ValueError, match="without one"):
        generator(loaded, VisualContrast()).replies([images[0], None], QUESTIONS[:2])


def test_runs_without_it_keep_the_settings_they_had():
    """Otherwise every older folder of replies would be refused as made by another configuration."""
    assert "vcd" not in Decoding().to_json()
    assert Decoding(vcd=VisualContrast(0.5)).to_json()["vcd"] == {"alpha": 0.5, "beta": 0.1, "noise": 500}


def test_evaluate_records_it_and_refuses_half_of_it(tiny_llava, tmp_path, capsys):
    from scripts import evaluate

    write_tiny_records(tmp_path / "data", 3)
    rows = [{"question_id": n, "image": f"{n}.png", "text": "is there a red square", "label": "yes"} for n in range(3)]
    names = sorted(path.name for path in (tmp_path / "data" / "images").iterdir())
    for row, name in zip(rows, names, strict=False):
        row["image"] = name
    (tmp_path / "pope_random.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ["--model", str(tiny_llava), "--benchmark", "pope", "--data", f"pope={tmp_path}"]
    common += ["--images", str(tmp_path / "data" / "images"), "--out", str(tmp_path / "run"), "--template", "plain"]
    assert evaluate.main([*common, "--vcd-beta", "0.2"]) == 2
    assert "give --vcd-alpha too" in capsys.readouterr().err
    assert evaluate.main([*common, "--vcd-alpha", "1", "--vcd-beta", "0.2", "--vcd-noise", "900"]) == 0
    run = json.loads((tmp_path / "run" / "pope" / "run.json").read_text())
    assert run["config"]["decoding"]["vcd"] == {"alpha": 1.0, "beta": 0.2, "noise": 900}
    assert evaluate.main(common) == 2, "replies of two ways of decoding must not mix"


def test_evaluate_refuses_a_question_without_an_image_before_the_model_is_loaded(tiny_llava, tmp_path, capsys):
    from scripts import evaluate

    row = {"id": 1, "scenario": "Fraud", "question": "is there a red square"}
    (tmp_path / "mm_safety.jsonl").write_text(json.dumps(row) + "\n")
    options = ["--model", str(tiny_llava), "--benchmark", "mm_safety", "--data", f"mm_safety={tmp_path}"]
    options += ["--template", "plain", "--out", str(tmp_path / "run"), "--vcd-alpha", "1"]
    assert evaluate.main(options) == 2
    assert "mm_safety.jsonl:1, id 1 and 0 more have none" in (shown := capsys.readouterr().err)
    assert "Loading weights" not in shown
