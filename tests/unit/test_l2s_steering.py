"""Promises of Learn-to-Steer in a model: from extracted states to generated words, and the cases it must reduce to."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from hacl.evaluation.generation import Generator
from hacl.evaluation.runner.decoding import Decoding
from hacl.steering import (
    ArtefactError,
    ContextSpec,
    L2SSteerer,
    MeanSteerer,
    SteeringNet,
    TableSteerer,
    load_steerer,
    steering,
)
from hacl.steering.l2s_import import import_upstream_net
from hacl.steering.targets import SteeringData
from tests.reference.planted_model import ANSWERS, plant
from tests.reference.steering_inputs import WIDTH, generate, load, prompts, vectors
from tests.tiny import COLOURS, SHAPES, build_tiny_model, write_tiny_records

ROOT = Path(__file__).resolve().parents[2]


def steer(*words):
    """Run scripts/steer.py in this process; its exit status."""
    spec = importlib.util.spec_from_file_location("steer_script", ROOT / "scripts" / "steer.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script.main([str(word) for word in words])


# A planted model, from a file of rows to generated words.


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """(folder of the model, folder of the extracted states, the rows)."""
    folder = tmp_path_factory.mktemp("planted")
    model = plant(build_tiny_model(folder / "model", "llava", seed=3))
    (folder / "images").mkdir()
    for number, colour in enumerate(COLOURS.values()):
        Image.new("RGB", (32, 32), colour).save(folder / "images" / f"{number}.png")
    draw, rows = random.Random(0), []
    for number in range(240):
        colour = list(ANSWERS)[number % 4]
        words = draw.sample(["small", "large", "one", "two", "three", "near", "object", *SHAPES], 3)
        prompt = f"is the {words[0]} {words[1]} by the {words[2]} {colour}"
        rows.append({"id": f"q{number}", "image": f"{draw.randrange(4)}.png", "prompt": prompt, "behaviour": colour,
                     "group": f"g{number // 2}"})  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = {name: {"pos": {"answer": pos}, "neg": {"answer": neg}} for name, (pos, neg) in ANSWERS.items()}
    (folder / "behaviours.json").write_text(json.dumps({"format": "hacl-behaviours-1", "by_behaviour": pairs}))
    status = steer(
        "extract", "--model", model, "--rows", folder / "rows.jsonl", "--behaviours", folder / "behaviours.json",
        "--images", folder / "images", "--layers", 0, "--context-layer", 1, "--batch-size", 16,
        "--out", folder / "states",
    )  # fmt: skip
    assert status == 0
    return model, folder / "states", {row["id"]: row for row in rows}


def fit(planted, method, out):
    _, states, _ = planted
    status = steer(
        "fit", "--data", states, "--method", method, "--alpha", 4, "--policy", "last-1", "--out", out,
        "--set", "lr=0.005", "--set", "hidden=32", "--set", "input_norm=standardise",
    )  # fmt: skip
    assert status == 0
    return json.loads((out / "fit.json").read_text())


def success(planted, artefact=None, ids=None):
    """Share of test rows whose first word is the planted one."""
    folder, states, rows = planted
    data = SteeringData(states)
    ids = ids or [data.column("id")[n] for n in data.split()["test"]]
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    generator = Generator(model, processor, decoding=Decoding(max_new_tokens=1))
    images = [states.parent / "images" / rows[name]["image"] for name in ids]
    asked = [rows[name]["prompt"] for name in ids]
    if artefact is None:
        replies = generator.replies(images, asked)
    else:
        with steering(model, load_steerer(artefact, model=model)) as s, s.rows(sample_ids=ids):
            replies = generator.replies(images, asked)
    right = [r.text == ANSWERS[rows[name]["behaviour"]][0] for r, name in zip(replies, ids, strict=True)]
    return sum(right) / len(right)


def test_planted_words_appear_with_a_vector_per_prompt_and_not_with_a_constant_one(planted, tmp_path):
    assert success(planted) <= 0.5
    report = fit(planted, "l2s", tmp_path / "l2s")
    assert success(planted, tmp_path / "l2s") >= 0.99
    assert report["test"]["l2s"]["r2"] > 0.9 and report["test"]["mean"]["r2"] <= 0.01
    assert report["test"]["shuffled"]["r2"] < 0
    fit(planted, "p2s", tmp_path / "p2s")
    assert success(planted, tmp_path / "p2s") == 1
    for method in ("mean", "pca", "random"):
        fit(planted, method, tmp_path / method)
        assert success(planted, tmp_path / method) <= 0.5


def test_inspect_tells_how_little_a_constant_vector_can_carry(planted, tmp_path, capsys):
    _, states, _ = planted
    assert steer("inspect", states, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 240 and found["groups"] == 120 and found["shared_prefix"] == 240
    assert found["behaviours"] == dict.fromkeys(sorted(ANSWERS), 60)
    assert found["layers"]["0"]["mean_over_target_length"] < 0.1
    fit(planted, "mean", tmp_path / "mean")
    capsys.readouterr()
    assert steer("inspect", tmp_path / "mean") == 0
    text = capsys.readouterr().out
    assert "kind: mean" in text and "token_rule: last_answer, positive minus negative" in text


def test_the_command_names_what_is_wrong_and_ends_with_two(planted, tmp_path, capsys):
    assert steer("fit", "--data", tmp_path, "--method", "l2s", "--out", tmp_path / "out") == 2
    assert str(tmp_path) in capsys.readouterr().err
    _, states, _ = planted
    assert steer("fit", "--data", states, "--method", "l2s", "--set", "rate=1", "--out", tmp_path / "out") == 2
    assert "unknown training setting 'rate'" in capsys.readouterr().err
    assert steer("extract", "--model", "x", "--layers", 1, "--out", tmp_path / "o") == 2
    assert "--rows" in capsys.readouterr().err


def test_an_artefact_of_another_model_is_refused(planted, tmp_path, tiny_llava):
    fit(planted, "l2s", tmp_path / "l2s")
    with pytest.raises(ArtefactError, match="another|made for the model"):
        load_steerer(tmp_path / "l2s", model=tiny_llava)


def test_captions_and_their_hallucinated_captions_make_a_network_for_several_layers(tmp_path, tiny_llava):
    write_tiny_records(tmp_path, 24)
    states, out = tmp_path / "states", tmp_path / "out"
    assert steer("extract", "--model", tiny_llava, "--records", tmp_path / "records.jsonl", "--images", tmp_path,
                 "--prompt", "describe the picture", "--layers", "0-1", "--pooling", "mean_answer",
                 "--out", states) == 0  # fmt: skip
    data = SteeringData(states)
    first = next(row for row in data.rows if row["id"] == "sample-0#0")
    assert first["pos"]["answer"] == "a red square on the left" and first["neg"]["answer"] != first["pos"]["answer"]
    assert first["behaviour"] == "attribute" and first["group"] == "0"
    assert steer("fit", "--data", states, "--method", "l2s", "--set", "epochs=2", "--out", out) == 0
    model = load(tiny_llava)
    steerer = load_steerer(out, model=tiny_llava)
    assert steerer.layers == (0, 1) and steerer.read == ContextSpec(0)
    with steering(model, steerer, alpha=3.0) as s:
        generate(model, prompts(model).batch())
    assert s.stats.positions[0] == s.stats.positions[1] > 0


# What it must reduce to, in any model.


@pytest.fixture(scope="module", params=["llava", "fast_vlm"])
def model(request):
    return load(request.getfixturevalue(f"tiny_{request.param}"))


def network(layers=(1,), read=0, **changes):
    torch.manual_seed(11)
    net = SteeringNet(WIDTH, 8, WIDTH * len(layers), **changes)
    with torch.no_grad():
        net.outer.weight.mul_(4)
    return L2SSteerer(net, read=ContextSpec(read), layers=layers)


def test_one_pass_and_two_give_the_same(model):
    found = []
    for context in ("single", "pass"):
        with steering(model, network((0, 1)), context=context) as s:
            found.append(generate(model, prompts(model).batch()))
        assert s.stats.context_passes == (context == "pass")
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-5, rtol=1e-5)


def test_every_layer_gets_its_own_part_of_the_output(model):
    both = network((0, 1))
    states = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0))
    found = both.vectors({both.read: states}, None)
    whole = both.net(states)
    assert torch.equal(found[0], whole[:, :WIDTH]) and torch.equal(found[1], whole[:, WIDTH:])


def test_a_network_that_says_nothing_is_the_unsteered_model(model):
    method = network()
    method.net.outer.weight.zero_()
    inputs = prompts(model).batch()
    plain = generate(model, inputs)[1]
    with steering(model, method):
        assert torch.equal(generate(model, inputs)[1], plain)


def test_a_network_that_says_one_thing_is_the_mean_and_so_is_a_table_of_equal_rows(model):
    vector, inputs = vectors(1)[1], prompts(model).batch()
    method = network(out_bias=True)
    method.net.outer.weight.zero_()
    method.net.outer.bias.copy_(vector)
    with steering(model, MeanSteerer({1: vector})):
        mean = generate(model, inputs)[1]
    with steering(model, method):
        assert torch.equal(generate(model, inputs)[1], mean)
    with steering(model, TableSteerer({1: vector.expand(3, -1)}, list("abc"))) as s, s.rows(sample_ids=list("abc")):
        assert torch.equal(generate(model, inputs)[1], mean)


@pytest.mark.parametrize("changes", [{}, {"act": "gelu", "depth": 2, "out_bias": True, "input_norm": "standardise"},
                                     {"depth": 0, "out_bias": True}])  # fmt: skip
def test_an_artefact_gives_the_same_vectors(tmp_path, tiny_llava, changes):
    from hacl.steering import Provenance, save_steerer

    method = network((0, 1), **changes)
    method.net.set_statistics(torch.randn(20, WIDTH) * 3 + 1)
    save_steerer(method, tmp_path / "a", Provenance.of(tiny_llava, token_rule="test", config={}))
    state = torch.random.get_rng_state()
    again = load_steerer(tmp_path / "a", model=tiny_llava)
    assert torch.equal(torch.random.get_rng_state(), state)
    contexts = {method.read: torch.randn(4, WIDTH)}
    for layer, value in method.vectors(contexts, None).items():
        assert torch.equal(again.vectors(contexts, None)[layer], value)


def test_vectors_in_bf16_point_where_those_in_fp32_do(tiny_llava, monkeypatch):
    method, found = network(read=0), []
    plain = L2SSteerer.vectors
    monkeypatch.setattr(L2SSteerer, "vectors", lambda self, *given: found.append(plain(self, *given)) or found[-1])
    for dtype in (torch.float32, torch.bfloat16):
        model = load(tiny_llava, dtype)
        inputs = prompts(model).batch()
        inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
        with steering(model, method):
            assert torch.isfinite(generate(model, inputs)[1]).all()
    single, half = (vectors[1] for vectors in found)
    assert half.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(single, half).min() > 0.999


def test_a_network_of_another_width_is_refused(model):
    net = SteeringNet(WIDTH + 1, 4, WIDTH)
    with pytest.raises(ValueError, match="belongs to another model"):
        with steering(model, L2SSteerer(net, read=ContextSpec(0), layers=[1])):
            generate(model, prompts(model).batch())


# Networks of the released code.


def upstream_state(hidden=7, seed=0):
    draw = torch.Generator().manual_seed(seed)
    shapes = {"encoder.weight": (hidden, WIDTH), "encoder.bias": (hidden,), "decoder.weight": (WIDTH, hidden)}
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


@pytest.mark.parametrize("nested", (False, True))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
def test_a_released_network_computes_its_formula(tmp_path, nested, dtype):
    state = {name: value.to(dtype) for name, value in upstream_state().items()}
    torch.save({"steering_model": state, "epoch": 3} if nested else state, tmp_path / "net.pt")
    method = import_upstream_net(tmp_path / "net.pt", read=ContextSpec(0), layer=1, alpha=2.2)
    x = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1))
    first, bias, second = (value.double().numpy() for value in state.values())
    import numpy as np

    expected = np.tanh(x.double().numpy() @ first.T + bias) @ second.T
    np.testing.assert_allclose(method.vectors({ContextSpec(0): x}, None)[1].numpy(), expected, rtol=1e-4, atol=1e-4)
    assert method.net.sizes["hidden"] == 7 and method.alpha == 2.2


def test_a_released_network_becomes_an_artefact(tmp_path, tiny_llava):
    torch.save(upstream_state(), tmp_path / "net.pt")
    assert steer("import-network", "--network", tmp_path / "net.pt", "--model", tiny_llava, "--context-layer", 0,
                 "--layer", 1, "--alpha", 2.2, "--out", tmp_path / "out") == 0  # fmt: skip
    x = {ContextSpec(0): torch.randn(2, WIDTH)}
    expected = import_upstream_net(tmp_path / "net.pt", read=ContextSpec(0), layer=1).vectors(x, None)[1]
    found = load_steerer(tmp_path / "out", model=tiny_llava)
    assert torch.equal(found.vectors(x, None)[1], expected) and found.alpha == 2.2


def test_a_file_that_is_no_released_network_is_refused_and_nothing_in_it_is_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such network"):
        import_upstream_net(tmp_path / "none.pt", read=ContextSpec(0), layer=1)
    for name, content in {
        "other": {"encoder.weight": torch.zeros(2, 2)},
        "shapes": {**upstream_state(), "encoder.bias": torch.zeros(9)},
        "list": [1, 2],
        "code": {"encoder.weight": print},
    }.items():
        torch.save(content, tmp_path / f"{name}.pt")
        with pytest.raises(ValueError, match=name):
            import_upstream_net(tmp_path / f"{name}.pt", read=ContextSpec(0), layer=1)
    (tmp_path / "text.pt").write_text("not a network")
    with pytest.raises(ValueError, match="text.pt"):
        import_upstream_net(tmp_path / "text.pt", read=ContextSpec(0), layer=1)
