"""Promises about `steer.py associate`, `flexac` and `fold`: from states to a report, an artefact, a checkpoint."""

from __future__ import annotations

import json

import pytest
import torch

from hacl.steering import MeanSteerer, Provenance, load_steerer, save_steerer
from hacl.steering.association import features_from_extraction
from hacl.steering.commands.extract import layer_keys
from hacl.steering.targets import SteeringData
from hacl.study.inputs import fitted_images, images_of_states
from scripts import steer
from tests.reference.steering_inputs import vectors
from tests.tiny import write_tiny_records


@pytest.fixture(scope="module")
def states(tiny_llava, tmp_path_factory):
    """A folder that `extract` wrote, of eight records."""
    folder = tmp_path_factory.mktemp("extracted")
    records = write_tiny_records(folder)
    arguments = ["--records", str(records), "--images", str(folder), "--prompt", "describe", "--layers", "0-1"]
    arguments += ["--pooling", "mean_answer", "--template", "plain", "--out", str(folder / "states")]
    assert steer.main(["extract", "--model", str(tiny_llava), *arguments]) == 0
    return folder / "states"


def test_the_unwanted_continuation_is_the_associative_one(states):
    data = SteeringData(states)
    features = features_from_extraction(data)
    assert torch.equal(torch.tensor(features.grounded[1]), data.states("pos", 1))
    assert torch.equal(torch.tensor(features.associative[0]), data.states("neg", 0))
    assert features.groups == tuple(data.column("group")) and features.provenance["token_rule"] == "mean_answer"


def test_the_report_names_every_layer(states, tmp_path, capsys):
    assert (
        steer.main(["associate", "--data", str(states), "--window", "1", "--draws", "20", "--out", str(tmp_path)]) == 0
    )
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "association.json").read_text())
    assert [row["layer"] for row in content["layers"]["rows"]] == [0, 1] and "layer          1" in printed
    assert len(content["stability"]) == 2 and (tmp_path / "association.md").is_file()


def test_the_report_draws_what_replacement_leaves(states, tiny_llava, tmp_path, capsys):
    records = states.parent / "records.jsonl"
    arguments = ["associate", "--data", str(states), "--window", "1", "--draws", "20", "--model", str(tiny_llava)]
    arguments += ["--records", str(records), "--images", str(states.parent), "--limit", "3", "--template", "plain"]
    assert steer.main([*arguments, "--out", str(tmp_path)]) == 0
    assert "replaced by grounded state, 3 pairs" in capsys.readouterr().out
    maps = json.loads((tmp_path / "association.json").read_text())["replacements"]
    assert list(maps) == ["grounded state", "control: grounded state of another image"]
    own = maps["grounded state"]["ratios"]
    assert own[0][0] < 1e-6 and own[1][0] is None  # the replaced block itself is made equal; earlier ones are not asked
    assert (tmp_path / "association.md").read_text().count("![replacement, ") == 2


def test_replacement_needs_the_model_and_what_it_reads(states, tiny_llava, tmp_path, capsys):
    arguments = ["associate", "--data", str(states), "--model", str(tiny_llava), "--out", str(tmp_path)]
    assert steer.main(arguments) == 2
    assert "--model and --records belong together" in capsys.readouterr().err


def test_the_artefact_says_what_it_was_made_of(states, tiny_llava, tmp_path, capsys):
    arguments = ["--data", str(states), "--task", f"story={states}", "--preset", "safe", "--k", "4", "--layers", "0-1"]
    arguments += ["--weights", "1", "0.5", "--leave-out", "0", "--out", str(tmp_path)]
    assert steer.main(["flexac", *arguments]) == 0
    assert "task story: cosine with the general direction 0: 0." in capsys.readouterr().out
    steerer = load_steerer(tmp_path, model=tiny_llava)
    assert steerer.names == ("general", "task:story") and steerer.weights == (1.0, 0.5) and steerer.alpha == -1.0
    assert steerer.gate.name == "soft" and steerer.layers == (0, 1)
    for layer in (0, 1):
        a, b = steerer.directions[layer].double()
        assert abs(torch.cosine_similarity(a, b, dim=0)) < 1e-5
    every = images_of_states(states)
    assert fitted_images([tmp_path]) == {str(tmp_path): every} and every
    rows = json.loads((tmp_path / "split.json").read_text())["train"]
    kept = [row["id"] for row in SteeringData(states).rows if "0" not in (row["id"], row["group"])]
    assert rows == kept and len(rows) < len(SteeringData(states)), "the task's states hold the image that was left out"
    notes = json.loads((tmp_path / "manifest.json").read_text())["provenance"]["notes"]
    assert notes["preset"] == "safe" and notes["vector_sets"][0]["settings"]["left_out"] == ["0"]
    assert notes["vector_sets"][0]["settings"]["instances"] == 7


def test_a_checkpoint_is_folded_from_an_artefact(tiny_llava, tmp_path, capsys):
    provenance = Provenance.of(tiny_llava, token_rule="test", config={})
    save_steerer(MeanSteerer(vectors(0, 1), alpha=0.5), tmp_path / "mean", provenance)
    assert steer.main(["fold", str(tmp_path / "mean"), "--model", str(tiny_llava), "--out", str(tmp_path / "out")]) == 0
    assert "logits differ by" in capsys.readouterr().out and (tmp_path / "out" / "model.safetensors").is_file()
    save_steerer(MeanSteerer(vectors(0), policy="generated"), tmp_path / "late", provenance)
    assert steer.main(["fold", str(tmp_path / "late"), "--model", str(tiny_llava), "--out", str(tmp_path / "no")]) == 2
    assert "policy generated" in capsys.readouterr().err and not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--k", "99"], "k=99: from 1 to the 8"),
        (["--preset", "wild"], "paper, released, safe"),
        (["--k", "4", "--layers", "7"], "no layer 7"),
        (["--k", "4", "--task", "story"], "expected NAME=STATES"),
        (["--preset", "released", "--k", "4"], "crossing needs"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(states, tmp_path, capsys, arguments, words):
    assert steer.main(["flexac", "--data", str(states), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_layers_may_be_given_as_a_range():
    assert layer_keys("3, 10-12,-1,layers.4") == [3, 10, 11, 12, -1, "layers.4"]
