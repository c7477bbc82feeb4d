"""Promises of the diagnosis: the same model twice gives the same numbers, files are complete, heads are used."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hacl.config import Config, to_dict
from hacl.data.records import read_records
from hacl.evaluation.diagnose import diagnose, exported_config
from hacl.evaluation.reports import ScoreReport, collect
from hacl.models.heads import ContrastiveHeads
from hacl.report.diagnosis import diagnosis_table, write_diagnosis
from hacl.training.export import SIDECAR
from tests.tiny import write_tiny_records

ROOT = Path(__file__).resolve().parents[2]


def export_with_heads(model, folder, parameters):
    """A model folder as export writes it: weights, and beside them heads with the configuration they need."""
    from safetensors.torch import save_file

    shutil.copytree(model, folder)
    sidecar = folder / SIDECAR
    sidecar.mkdir()
    save_file({name: value.detach().clone() for name, value in parameters.items()}, sidecar / "heads.safetensors")
    (sidecar / "config.json").write_text(json.dumps(to_dict(Config())), encoding="utf-8")


@pytest.fixture(scope="module")
def result(tiny_llava, tmp_path_factory):
    folder = tmp_path_factory.mktemp("diagnosis")
    export_with_heads(tiny_llava, folder / "with_heads", dict(ContrastiveHeads(32, kind="linear").named_parameters()))
    records = read_records(write_tiny_records(folder, 6))
    return diagnose([tiny_llava, folder / "with_heads"], records, folder, layers=[1], draws=20, progress=False)


def values(result, model, stage):
    return {
        (r["view"], r["measure"]): r["value"] for r in result["rows"] if r["model"] == model and r["stage"] == stage
    }


def test_the_same_weights_give_the_same_numbers_with_and_without_heads(result, tiny_llava):
    for stage in ("pre", "likelihood"):
        assert values(result, tiny_llava.name, stage) == values(result, "with_heads", stage) != {}
    assert values(result, "with_heads", "post") and not values(result, tiny_llava.name, "post")


def test_files_hold_every_row_and_the_picture_every_model(result, tmp_path):
    paths = write_diagnosis(result, tmp_path)
    rows = list(csv.DictReader(paths[1].open(encoding="utf-8")))
    assert len(rows) == len(result["rows"]) == len(json.loads(paths[0].read_text(encoding="utf-8"))["rows"])
    assert paths[2].read_bytes().startswith(b"\x89PNG") and len(result["states2d"]) == 2
    assert "relative_gap" in diagnosis_table(result)
    markdown, latex, page = (path.read_text(encoding="utf-8") for path in paths[3:])
    assert "| pre | raw | relative_gap |" in markdown and r"relative\_gap" in latex and r"with\_heads" in latex
    assert page.count("data:image") >= 4 and "http:" not in page


def test_distances_are_left_out_where_centring_has_removed_them(result):
    views = {row["view"] for row in result["rows"] if row["measure"] in ("relative_gap", "modality_auc")}
    assert views == {"raw"}


def test_every_measure_of_the_findings_and_their_controls_is_there(result):
    found = {(row["stage"], row["measure"]) for row in result["rows"] if row["model"] == "with_heads"}
    measures = "relative_gap modality_auc knn_purity matched_cosine unmatched_cosine i2t@1 t2i@5 probe_auc knn_mixing"
    measures += " state_margin_accuracy energy_distance energy_p state_margin_accuracy_shuffled state_margin_gain"
    for stage in ("pre", "post", "layer 1"):
        assert {(stage, measure) for measure in measures.split()} <= found
    assert {("text", "text_probe_auc"), ("likelihood", "margin_accuracy_blind")} <= found


def test_a_layer_that_a_model_does_not_have_is_refused(tiny_llava, tmp_path):
    records = read_records(write_tiny_records(tmp_path, 4))
    with pytest.raises(ValueError, match="blocks 1 to 2"):
        diagnose([tiny_llava], records, tmp_path, layers=[3], draws=5, progress=False)


def test_heads_that_do_not_fit_are_refused_and_a_missing_folder_is_named(tiny_llava, tmp_path):
    export_with_heads(tiny_llava, tmp_path / "model", {"image.weight": torch.zeros(3, 3)})
    records = read_records(write_tiny_records(tmp_path, 4))
    with pytest.raises(ValueError, match=r"heads\.safetensors"):
        diagnose([tmp_path / "model"], records, tmp_path, progress=False)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        diagnose([tmp_path / "nowhere"], records, tmp_path, progress=False)


def test_an_exported_model_brings_its_configuration(tiny_llava, tmp_path):
    export_with_heads(tiny_llava, tmp_path / "model", {"image.weight": torch.zeros(3, 3)})
    assert exported_config(tmp_path / "model") == Config() and exported_config(tiny_llava) is None


def test_help_needs_no_model_library():
    code = (
        "import sys, runpy; sys.argv=['diagnose.py', '--help']\n"
        "try: runpy.run_path('scripts/diagnose.py', run_name='__main__')\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False).returncode == 0


def test_reports_are_collected_under_their_prefixes_and_never_overwrite():
    report = ScoreReport(metrics={"f1": 0.5}, items=[{"image_id": "a"}], ratios={"f1": [(1, 2)]})
    metrics, items = collect({"random/": report, "popular/": report})
    assert metrics == {"random/f1": 0.5, "popular/f1": 0.5} and items["random/f1"] == {"a": [1, 2]}
    with pytest.raises(ValueError, match="f1"):
        collect({"": report, "f": ScoreReport(metrics={"1": 0.1})})
