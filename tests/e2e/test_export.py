"""Promises of the export: stock classes open it, it is the trained model, and nothing half-made is left."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from hacl.config import load_config
from hacl.training import export
from hacl.training.manifest import CheckpointError
from hacl.training.run import run
from tests.tiny import build_tiny_model, write_tiny_records

pytestmark = pytest.mark.slow


def trained(tmp_path, base, *overrides):
    records = write_tiny_records(tmp_path / "records", 8)
    settings = [
        f"model.path={base}",
        f"data.path={records}",
        f"train.output_dir={tmp_path / 'run'}",
        "train.max_steps=2",
        "train.per_device_batch_size=4",
        "train.save_steps=0",
    ]
    return run(load_config(None, [*settings, *overrides])).checkpoint


@pytest.mark.parametrize("family", ["llava", "fast_vlm"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_an_export_opens_with_stock_classes_in_a_fresh_process(tmp_path, request, family, lora):
    how = ["model.preset=stage1-llm"] + (["model.lora.rank=4", "model.learning_rate.llm=0.1"] if lora else [])
    base = request.getfixturevalue(f"tiny_{family}")
    checkpoint = trained(tmp_path, base, *how)
    out = export.export_checkpoint(checkpoint, tmp_path / "model", metrics={"chair_i": 0.25})
    report = json.loads((out / "hacl/verified.json").read_text())
    assert report["unexpected_keys"] == report["missing_keys"] == [] and report["chat_template"]
    assert report["max_logit_difference"] <= report["tolerance"] and report["same_tokens"]
    assert ("max_merge_difference" in report) == lora
    stored = set(load_file(out / "model.safetensors"))
    assert not any("lora" in name or "heads" in name for name in stored)
    card = (out / "README.md").read_text()
    assert "| chair_i | 0.25 |" in card and "records.jsonl" in card and "train_loss" in card
    for path in [*out.glob("*.json"), *out.glob("*.md"), *out.glob("hacl/*.json")]:
        assert str(tmp_path) not in path.read_text() and str(base) not in path.read_text(), f"{path}: a machine path"
    assert export.load_exported_heads(out, 32) is not None


def test_half_precision_is_for_what_is_stored_and_rotary_frequencies_keep_theirs(tiny_llava):
    from transformers import AutoModelForImageTextToText

    model, loaded = (
        AutoModelForImageTextToText.from_pretrained(tiny_llava, dtype=dtype) for dtype in ("float32", "bfloat16")
    )
    export._cast(model, torch.bfloat16)
    assert {name: tensor.dtype for name, tensor in model.state_dict().items()} == {
        name: tensor.dtype for name, tensor in loaded.state_dict().items()
    }
    wanted = dict(loaded.named_buffers())
    for name, buffer in model.named_buffers():
        assert buffer.dtype == wanted[name].dtype and torch.equal(buffer, wanted[name]), name


def test_a_run_folder_means_the_checkpoint_its_result_names_and_only_that_one_gets_its_metrics(tmp_path, tiny_llava):
    last = trained(tmp_path, tiny_llava, "train.save_steps=1")
    first = last.with_name("checkpoint-1")
    assert export.find_checkpoint(last.parent)[0] == last
    card = export.export_checkpoint(first, tmp_path / "first", verify=False) / "README.md"
    assert "train_loss" not in card.read_text(), "the metrics of the run are not those of an earlier checkpoint"
    result = json.loads((last.parent / "result.json").read_text())
    (last.parent / "result.json").write_text(json.dumps({**result, "checkpoint": "checkpoint-1"}))
    assert export.find_checkpoint(last.parent) == (first, f"named by {last.parent / 'result.json'}")
    (last.parent / "result.json").unlink()
    assert export.find_checkpoint(last.parent) == (last, "the newest complete one")


def test_the_check_of_merged_lora_loads_the_base_once(tmp_path, tiny_llava, monkeypatch):
    how = ("model.preset=stage1-llm", "model.lora.rank=4", "model.learning_rate.llm=0.1")
    checkpoint = trained(tmp_path, tiny_llava, *how)
    loads, genuine = [], export.load_finetuned

    def counted(*arguments, **options):
        loads.append(arguments)
        return genuine(*arguments, **options)

    monkeypatch.setattr(export, "load_finetuned", counted)
    out = export.export_checkpoint(checkpoint, tmp_path / "model")
    assert len(loads) == 1 and "max_merge_difference" in json.loads((out / "hacl/verified.json").read_text())


def test_the_exported_weights_are_the_trained_ones_and_differ_from_the_base(tmp_path, tiny_llava):
    checkpoint = trained(tmp_path, tiny_llava, "model.preset=stage1-llm")
    out = export.export_checkpoint(checkpoint, tmp_path / "model", verify=False)
    changed = load_file(checkpoint / "trained.safetensors")
    before, after = load_file(tiny_llava / "model.safetensors"), load_file(out / "model.safetensors")
    assert set(before) == set(after)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and len(moved) <= len(changed) < len(before)
    assert not any("vision_tower" in name for name in moved), "the frozen tower is untouched"


def test_heads_and_temperature_come_back_from_the_sidecar(tmp_path, tiny_llava):
    checkpoint = trained(tmp_path, tiny_llava, "objective.learn_temperature=true", "objective.head=mlp")
    out = export.export_checkpoint(checkpoint, tmp_path / "model", verify=False)
    heads = export.load_exported_heads(out, 32)
    saved = load_file(checkpoint / "heads.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in heads.named_parameters())


def test_an_export_that_differs_from_the_trained_model_is_refused_and_leaves_nothing(tmp_path, tiny_llava, monkeypatch):
    checkpoint = trained(tmp_path, tiny_llava)
    genuine = export.write_probe

    def falsified(model, *arguments):
        logits = genuine(model, *arguments)
        model.lm_head.weight.data += 1.0
        model.save_pretrained(arguments[-1].parent)
        return logits

    monkeypatch.setattr(export, "write_probe", falsified)
    with pytest.raises(export.ExportError, match="differs from the trained one"):
        export.export_checkpoint(checkpoint, tmp_path / "model")
    assert not list(tmp_path.glob("model*"))


def test_another_base_or_an_incomplete_checkpoint_is_refused(tmp_path, tiny_llava):
    checkpoint = trained(tmp_path, tiny_llava)
    other = build_tiny_model(tmp_path / "other", seed=5)
    with pytest.raises(CheckpointError, match="another model"):
        export.export_checkpoint(checkpoint, tmp_path / "model", base=str(other))
    moved = shutil.copytree(tiny_llava, tmp_path / "moved")
    assert export.export_checkpoint(checkpoint, tmp_path / "model", base=str(moved), verify=False).is_dir()
    with pytest.raises(FileExistsError, match="exists"):
        export.export_checkpoint(checkpoint, tmp_path / "model")
    (checkpoint / "trained.safetensors").unlink()
    with pytest.raises(CheckpointError, match="trained.safetensors is missing"):
        export.export_checkpoint(checkpoint, tmp_path / "again")
