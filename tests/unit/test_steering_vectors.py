"""Promises about vectors: how they are applied, drawn, combined, and kept in an artefact that knows its model."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from hacl.models.identity import fingerprint
from hacl.steering import (
    ArtefactError,
    ComposeSteerer,
    MeanSteerer,
    Provenance,
    RandomSteerer,
    Shift,
    TableSteerer,
    load_steerer,
    save_steerer,
    steering,
)  # fmt: skip
from hacl.steering.norms import measure_norms
from hacl.steering.operators import add
from hacl.steering.vectors import config_hash
from tests.reference import steering_steps as twin
from tests.reference.steering_inputs import WIDTH, generate, load, prompts, vectors

pytestmark = pytest.mark.filterwarnings("error::hacl.steering.SteeringWarning")


def shift(vector, alpha=1.0):
    return Shift(vector.float()[None, None], torch.tensor(alpha).reshape(1, 1, 1))


@pytest.mark.parametrize("mode", ("none", "preserve", "clip"))
@pytest.mark.parametrize("alpha", (0.3, -2.0))
def test_each_norm_mode_is_its_formula(mode, alpha):
    torch.manual_seed(0)
    states, vector = torch.randn(2, 3, 8), 3 * torch.randn(8)
    found = add(states, shift(vector, alpha), mode, clip=0.4)
    for state, new in zip(states.flatten(0, 1), found.flatten(0, 1), strict=True):
        expected = twin.apply(mode, state, alpha * vector.double(), 0.4)
        torch.testing.assert_close(new.double(), expected, atol=1e-6, rtol=1e-6)
    if mode == "preserve":
        torch.testing.assert_close(found.norm(dim=-1), states.norm(dim=-1), atol=1e-5, rtol=1e-6)
    if mode == "clip":
        steps = (found - states).norm(dim=-1) / states.norm(dim=-1)
        assert (steps <= 0.4 + 1e-6).all()


@pytest.mark.parametrize("mode", ("none", "preserve", "clip"))
def test_zero_states_and_zero_vectors_stay_finite_and_inputs_are_not_changed(mode):
    for states, vector in ((torch.zeros(1, 2, 4), torch.ones(4)), (torch.ones(1, 2, 4), torch.zeros(4))):
        kept = states.clone()
        assert torch.isfinite(add(states, shift(vector), mode)).all() and torch.equal(states, kept)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_the_step_is_rounded_once(dtype):
    torch.manual_seed(1)
    states, vector = torch.randn(2, 5, 64).to(dtype), torch.randn(64)
    found = add(states, shift(vector, 1.7))
    assert found.dtype == dtype and torch.equal(found, states + (1.7 * vector).to(dtype))


@pytest.mark.parametrize("mode", ("none", "unit", "preserve", "clip"))
def test_bfloat16_runs_are_finite_and_shift_as_fp32_does(tiny_model, mode):
    settings = {"norm": mode, "clip": 0.5, "norms": {0: 3.0}}
    shifts = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = load(tiny_model, dtype)
        states: list[torch.Tensor] = []
        keep = states.append
        block = model.model.language_model.layers[0]
        inputs = prompts(model).batch()
        inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
        for alpha in (0.0, 1.0):
            with torch.no_grad(), steering(model, MeanSteerer(vectors(0), **settings), alpha=alpha):
                handle = block.register_forward_hook(lambda m, a, output, keep=keep: keep(output))
                assert torch.isfinite(model(**inputs).logits).all()
                handle.remove()
        assert states[1].dtype == dtype
        shifts[dtype] = (states[1].float() - states[0].float())[inputs["attention_mask"].bool()].flatten()
    assert torch.cosine_similarity(shifts[torch.float32], shifts[torch.bfloat16], dim=0) > 0.999


def test_unit_measures_alpha_in_lengths_of_a_typical_state(tiny_model):
    model = load(tiny_model)
    inputs = prompts(model).batch()
    norms = measure_norms(model, [inputs], [0, "layers.1"])
    with torch.no_grad():
        rows = prompts(model)
        states = [twin.forward(model, ids, pixels)[1] for ids, pixels in zip(rows.ids, rows.pixels, strict=True)]
    for layer in (0, 1):
        lengths = torch.cat([row[layer] for row in states]).norm(dim=-1)
        assert norms[layer] == pytest.approx(float(lengths.median()), rel=1e-4)
    found = []
    for size in (1.0, 50.0):
        with steering(model, MeanSteerer(vectors(1, size=size), norm="unit", norms=norms), alpha=0.5, trace=True) as s:
            found.append(generate(model, inputs)[1])
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)
    direction = vectors(1)[1] / vectors(1)[1].norm()
    with steering(model, MeanSteerer({1: 0.5 * norms[1] * direction})):
        torch.testing.assert_close(generate(model, inputs)[1], found[0], atol=1e-5, rtol=1e-5)
    assert 0.2 < s.trace.ratios()[1] < 1.2


def test_unit_without_lengths_and_unknown_modes_are_refused(tiny_llava):
    with pytest.raises(ValueError, match="norms="):
        MeanSteerer(vectors(0), norm="unit")
    with pytest.raises(ValueError, match="preserve"):
        MeanSteerer(vectors(0), norm="keep")
    model = load(tiny_llava)
    with pytest.raises(ValueError, match="no length for layer 1"):
        with steering(model, MeanSteerer(vectors(1), norm="unit", norms={0: 1.0})):
            generate(model, prompts(model).batch())


def test_a_vector_in_the_prefill_is_the_vector_and_not_one_of_its_components(tiny_model):
    """The released mean steering indexed a (D) vector once more and added a scalar to all dimensions."""
    model, rows = load(tiny_model), prompts(load(tiny_model))
    with torch.no_grad():
        before = twin.forward(model, rows.ids[0], rows.pixels[0])[1][1]
        seen = []
        with steering(model, MeanSteerer(vectors(1))):
            handle = model.model.language_model.layers[1].register_forward_hook(lambda m, a, o: seen.append(o[0]))
            model(**rows.batch([0]))
            handle.remove()
    torch.testing.assert_close(seen[0] - before, vectors(1)[1].expand_as(before), atol=1e-4, rtol=1e-4)


def test_random_directions_are_seeded_matched_in_length_and_never_alike():
    reference = MeanSteerer(vectors(0, 1), alpha=2.0, policy="generated")
    first, again, other = (RandomSteerer.like(reference, seed=seed) for seed in (0, 0, 1))
    for layer in (0, 1):
        value = first.vectors({}, None)[layer]
        assert torch.equal(value, again.vectors({}, None)[layer])
        assert float(value.norm()) == pytest.approx(float(reference.values[layer].norm()), rel=1e-5)
        assert abs(torch.cosine_similarity(value, other.vectors({}, None)[layer], dim=0)) < 0.8
    assert not torch.allclose(first.vectors({}, None)[0], first.vectors({}, None)[1])
    assert (first.alpha, first.policy) == (2.0, "generated")


def test_random_directions_per_sample_follow_the_id():
    steerer = RandomSteerer({3: 2.0}, 16, seed=4, per_sample=True)
    first, second = steerer.vectors({}, ["a", "b"])[3], steerer.vectors({}, ["b", "c"])[3]
    assert torch.equal(first[1], second[0]) and not torch.equal(first[0], first[1])
    with pytest.raises(ValueError, match="sample_ids"):
        steerer.vectors({}, None)


def steerers():
    table = TableSteerer(vectors(0, 1, rows=2), ["a", "b"], alpha=0.5, policy="last-2")
    mean = MeanSteerer({0: vectors(0)[0], "layers.1": vectors(1)[1]}, norm="clip", clip=0.3)
    unit = MeanSteerer(vectors(1)[1], norm="unit", norms={1: 4.0, "layers.0": 2.0})
    plain = MeanSteerer(vectors(0, 1))
    return [
        mean, unit, table, RandomSteerer.like(table, seed=2), RandomSteerer({0: 1.0}, WIDTH, seed=1, per_sample=True),
        ComposeSteerer([plain, RandomSteerer.like(plain, seed=3)], [1.0, -0.25], alpha=3.0),
    ]  # fmt: skip


@pytest.fixture
def provenance(tiny_llava):
    return Provenance.of(tiny_llava, token_rule="mean of the answer", config={"layers": [0, 1]}, samples=40)


@pytest.mark.parametrize("index", range(6))
def test_every_method_comes_back_from_its_artefact_as_it_was(tiny_llava, tmp_path, provenance, index):
    steerer = steerers()[index]
    folder = save_steerer(steerer, tmp_path / "artefact", provenance)
    back = load_steerer(folder, model=tiny_llava)
    steerer.model = fingerprint(tiny_llava)
    assert type(back) is type(steerer) and back.fingerprint() == steerer.fingerprint()
    assert back.common() == steerer.common() and back.layers == steerer.layers
    ids = ["b", "a"]
    for layer, value in steerer.vectors({}, ids).items():
        assert torch.equal(back.vectors({}, ids)[layer], value)


def test_the_artefact_says_where_it_comes_from_and_holds_no_pickle(tiny_llava, tmp_path, provenance):
    folder = save_steerer(MeanSteerer(vectors(0), alpha=1.5, policy="generated"), tmp_path, provenance)
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "vectors.safetensors"]
    content = json.loads((folder / "manifest.json").read_text())
    assert (content["kind"], content["layers"], content["alpha"], content["policy"]) == ("mean", [0], 1.5, "generated")
    found = content["provenance"]
    assert found["model"] == fingerprint(tiny_llava) and found["token_rule"] == "mean of the answer"
    assert found["config_hash"] == config_hash({"layers": [0, 1]}) and found["notes"] == {"samples": 40}
    assert {"hacl", "torch", "transformers"} <= found["versions"].keys()
    assert load_file(folder / "vectors.safetensors")["layer=0"].dtype == torch.float32


def test_an_artefact_of_another_model_is_refused_on_loading_and_on_entering(
    tiny_llava, tiny_fast_vlm, tmp_path, provenance
):
    folder = save_steerer(MeanSteerer(vectors(0)), tmp_path, provenance)
    with pytest.raises(ArtefactError, match="another|made for the model"):
        load_steerer(folder, model=tiny_fast_vlm)
    steerer = load_steerer(folder, model=load(tiny_llava))
    other = load(tiny_fast_vlm)
    with pytest.raises(ArtefactError, match="made for the model"), steering(other, steerer):
        pass
    with steering(load(tiny_llava), steerer, alpha=0.0):
        pass


def test_damage_is_found_and_named(tiny_llava, tmp_path, provenance):
    good = save_steerer(MeanSteerer(vectors(0)), tmp_path / "good", provenance)
    tensors, manifest = "vectors.safetensors", "manifest.json"

    def damaged(name, change):
        folder = shutil.copytree(good, tmp_path / name)
        change(folder)
        return folder

    def edit(key, value):
        def change(folder):
            content = json.loads((folder / manifest).read_text())
            (folder / manifest).write_text(json.dumps(content | {key: value}))

        return change

    cases = [
        (lambda folder: (folder / manifest).unlink(), FileNotFoundError, "interrupted"),
        (lambda folder: (folder / tensors).unlink(), ArtefactError, tensors),
        (lambda folder: (folder / tensors).write_bytes((good / tensors).read_bytes()[:-4]), ArtefactError, tensors),
        (lambda folder: (folder / manifest).write_text("{"), ArtefactError, "not JSON"),
        (edit("format", "hacl-steering-9"), ArtefactError, "hacl-steering-9"),
        (edit("kind", "magic"), ArtefactError, "known: compose, concept, .*lowrank, mean"),
    ]
    for index, (change, kind, message) in enumerate(cases):
        with pytest.raises(kind, match=message):
            load_steerer(damaged(str(index), change), model=tiny_llava)


def test_a_mask_is_no_part_of_an_artefact(tmp_path, provenance):
    steerer = MeanSteerer(vectors(0), policy=torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="one batch"):
        save_steerer(steerer, tmp_path, provenance)


def test_sums_of_what_cannot_be_summed_are_refused():
    plain = MeanSteerer(vectors(0))
    with pytest.raises(ValueError, match="nest"):
        ComposeSteerer([plain, MeanSteerer(vectors(0), norm="preserve")])
    with pytest.raises(ValueError, match="one weight for each"):
        ComposeSteerer([plain], [1, 2])
    with pytest.raises(ValueError, match="different models"):
        ComposeSteerer([MeanSteerer(vectors(0), model="a" * 16), MeanSteerer(vectors(0), model="b" * 16)])


@pytest.mark.parametrize("value", ({0: torch.ones(2, 3)}, {}, {0: torch.tensor([1.0, float("nan")])}))
def test_vectors_that_are_none_are_refused(value):
    with pytest.raises(ValueError, match="vector|layer 0"):
        MeanSteerer(value)
