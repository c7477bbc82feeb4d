"""Promises about the steps of a comparison on feature stores: joined by sample, named, refused where they differ."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from hacl.compare.paired_features import load_pairs
from hacl.compare.steps import (
    concept_stability,
    drift_of_stores,
    fit_concepts,
    ground_concepts,
    map_kinds,
    measure_shift,
    recover_concepts,
    shift_map,
    shift_words,
)
from hacl.representations.manifest import write_json
from hacl.representations.store import StoreWriter
from tests.reference.planted_shift import Planted, planted_shift

WORDS = ["dog", "cat", "horse", "bird", "cow", "sheep", "red", "blue", "green", "white", "black", "brown"]


def write_store(folder: Path, states_ND: np.ndarray, planted: Planted, model: str, keep: range, **changes) -> Path:
    """A finished store of one planted model with the rows `keep`, and an LM head that reads its directions."""
    config = {
        "model": {"fingerprint": model, "adapter_hash": changes.pop("adapter", None)},
        "selectors": ["last_prompt"],
        "mode": "teacher_forced",
        "occurrences": "all",
        "tokenizer_hash": "t",
        "template_hash": "p",
        "hidden_size": states_ND.shape[1],
        "num_layers": 4,
        "layers": ["2"],
        **changes,
    }
    writer = StoreWriter(folder, config, ["2"], part_bytes=1 << 20)
    rows = [
        {
            "sample": f"s{row}",
            "image_id": planted.groups[row],
            "image": f"{planted.groups[row]}.jpg",
            "selector": config["selectors"][0],
            "key": f"{config['selectors'][0]}#0",
            "position": 3,
            "token_id": 5,
            "token": "x",
            "word": None,
            "text": "a dog",
            "prompt_hash": "h",
        }
        for row in keep
    ]
    writer.add(rows, {"2": torch.tensor(states_ND[list(keep)], dtype=torch.float32)})
    writer.commit({})
    writer.finish()
    directions = np.concatenate([planted.centre_KD, planted.shift_KD])
    directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    save_file({"lm_head": np.ascontiguousarray(directions, dtype=np.float32)}, folder / "readout.safetensors")
    content = {"norm_kind": "rms", "eps": 1e-6, "tokens": WORDS, "norm_weight": False, "norm_bias": False}
    write_json(folder / "readout.json", content)
    return folder


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> tuple[Planted, Path, Path]:
    planted = planted_shift(0, per_concept=60)
    folder = tmp_path_factory.mktemp("stores")
    original = write_store(folder / "original", planted.a_ND, planted, "aaa", range(0, 350))
    tuned = write_store(folder / "tuned", planted.b_ND, planted, "aaa", range(10, 360), adapter="lora")
    return planted, original, tuned


def test_rows_are_joined_by_sample_and_both_models_are_named(stores):
    planted, original, tuned = stores
    features = load_pairs(original, tuned, layer=2)
    assert features.a_ND == pytest.approx(planted.a_ND[10:350], abs=1e-5)
    assert features.b_ND == pytest.approx(planted.b_ND[10:350], abs=1e-5)
    assert (features.dropped_a, features.dropped_b) == (10, 10) and features.groups[0] == planted.groups[10]
    assert features.provenance["original"] == "aaa" and features.provenance["tuned"] == "aaa+lora"
    assert load_pairs(original, tuned, layer=-2).provenance["layer"] == "2"


def test_a_selector_or_layer_that_was_not_captured_is_refused(stores):
    _, original, tuned = stores
    with pytest.raises(ValueError, match="no common row of selector 'at:dog'; common: last_prompt"):
        load_pairs(original, tuned, layer=2, selector="at:dog")
    with pytest.raises(ValueError, match="stored: 2"):
        load_pairs(original, tuned, layer=3)


def test_a_negative_layer_of_a_store_of_unknown_depth_is_refused(tmp_path):
    planted = planted_shift(0, per_concept=2)
    folder = write_store(tmp_path / "imported", planted.a_ND, planted, "aaa", range(12), num_layers=None)
    assert load_pairs(folder, folder, layer="2").layer == "2"
    with pytest.raises(ValueError, match="depth is unknown, so layer -1 is; stored: 2"):
        load_pairs(folder, folder, layer=-1)


def test_the_whole_chain_from_stores_to_recovery_says_what_was_planted(stores):
    planted, original, tuned = stores
    features = load_pairs(original, tuned, layer=2)
    dictionary = fit_concepts(features, 6)
    grounding = ground_concepts(features, dictionary)
    assert {row["words"][0] for row in grounding.rows} == set(WORDS[:6])
    assert grounding.settings["norm_mode"] == "apply" and grounding.rows[0]["top_files"][0].endswith(".jpg")
    shifts = measure_shift(features, dictionary, bootstrap=50)
    assert shifts.provenance["original"] == "aaa" and shifts.provenance["layer"] == "2"
    pairs = {
        (said["words"][0], row["more"][0])
        for said, row in zip(grounding.rows, shift_words(features, shifts)[1:], strict=True)
    }
    assert pairs == set(zip(WORDS[:6], WORDS[6:], strict=True))
    report = recover_concepts(features, 6, splits=2, bootstrap=50)
    assert report.headline["gain_over_global"] > 0.3 and report.provenance["tuned"] == "aaa+lora"
    assert report.rows[0]["words_tuned"]
    assert concept_stability(features, 6, seeds=(0, 1)).to_json()["adjusted_rand_index"]["mean"] == 1.0
    for found in (grounding, shifts, report):
        json.dumps(found.to_json(), allow_nan=False)


def test_words_of_shifts_before_the_final_norm_are_read_with_its_gain(stores):
    _, original, tuned = stores
    features = load_pairs(original, tuned, layer=2)
    gain_D = np.random.default_rng(0).uniform(0.01, 5, 64).astype(np.float32)
    features = replace(features, readout=replace(features.readout, norm_weight=gain_D))
    shifts = measure_shift(features, fit_concepts(features, 6), bootstrap=0)
    said = shift_words(features, shifts)
    assert said == shifts.words(features.readout, norm_mode="fold")
    assert said != shifts.words(features.readout, norm_mode="none")


def test_the_shift_map_and_the_kinds_of_map_are_rows_for_a_plot(stores):
    planted, original, tuned = stores
    features = load_pairs(original, tuned, layer=2)
    dictionary = fit_concepts(features, 6)
    shifts = measure_shift(features, dictionary, bootstrap=0)
    rows = shift_map(features, shifts, dictionary, limit=50)
    assert len(rows) == 50 and {"sample", "concept", "x", "y"} <= set(rows[0])
    row = int(rows[0]["sample"][1:])
    delta_D = planted.b_ND[row] - planted.a_ND[row]
    assert [rows[0]["x"], rows[0]["y"]] == pytest.approx((shifts.basis_RD[:2] @ delta_D).tolist(), abs=1e-4)
    explained = {found["map"]: found["explained"] for found in map_kinds(features, 6)}
    assert explained["a shift per concept"] > explained["one shift"]


def test_a_dictionary_of_another_layer_or_of_the_tuned_model_gives_no_shift(stores):
    _, original, tuned = stores
    features = load_pairs(original, tuned, layer=2)
    other = fit_concepts(features, 3)
    other.provenance["layer"] = "1"
    with pytest.raises(ValueError, match="dictionary of layer '1', features of '2'"):
        ground_concepts(features, other)
    with pytest.raises(ValueError, match="side='original'"):
        measure_shift(features, fit_concepts(features, 3, side="tuned"))
    with pytest.raises(ValueError, match="known: original, tuned"):
        fit_concepts(features, 3, side="both")


def test_drift_over_stores_compares_the_rows_that_all_have(stores, tmp_path):
    planted, original, tuned = stores
    half = write_store(tmp_path / "half", (planted.a_ND + planted.b_ND) / 2, planted, "bbb", range(20, 360))
    found = drift_of_stores([original, half, tuned], 6, layer=2, bootstrap=20)
    assert [row["checkpoint"] for row in found.rows] == ["original", "half", "tuned"]
    expected = np.linalg.norm((planted.b_ND - planted.a_ND)[20:350].mean(axis=0))
    assert found.rows[2]["magnitude"] == pytest.approx(expected, rel=1e-4)
    assert found.rows[1]["magnitude"] == pytest.approx(expected / 2, rel=1e-4)
    with pytest.raises(ValueError, match="two or more"):
        drift_of_stores([original], 6, layer=2)
