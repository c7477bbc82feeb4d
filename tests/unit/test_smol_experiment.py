"""Promises of the smol experiment: photographs never cross splits, results say what they are compared with."""

import json

import numpy as np
import pytest

from hacl.data.records import HallucinatedCaption, Record
from hacl.evaluation.retrieval import retrieval
from hacl.smol.data import SPLITS, hallucinate, read_coco_mini, split_by_photograph, with_edits_only
from hacl.smol.evaluate import score_captions, shuffled
from hacl.smol.prepare import Layout, find_layout
from hacl.smol.results import results


def photograph(number, **more):
    captions = (f"A dog sits on a bench near the number {number}.", "Two dogs run in a park.")
    extra = {"chair_objects": ["dog", "bench"], "license": "a licence", "flickr_url": "an address"}
    return Record(id=f"coco-{number}", images=(f"images/{number}.jpg",), image_id=str(number), captions=captions,
                  objects={"dog": 2, "bench": 1}, extra=extra, **more)  # fmt: skip


def write_folder(folder, **changed):
    row = {"coco_id": 7, "file_name": "7.jpg", "captions": ["A dog. "], "instances": None, "chair_objects": ["dog"]}
    row |= {"license": "a licence", "flickr_url": "an address"} | changed
    (folder / "annotations.jsonl").write_text(json.dumps({k: v for k, v in row.items() if v != "drop"}))
    return folder


def test_every_photograph_is_in_exactly_one_split_whatever_the_order_of_the_file():
    records = [photograph(number) for number in range(200)]
    splits, again = split_by_photograph(records), split_by_photograph(records[::-1])
    assert splits == again
    ids = [record.image_id for found in splits.values() for record in found]
    assert sorted(ids) == sorted(record.image_id for record in records)
    assert {name: len(found) for name, found in splits.items()} == {"train": 200 - sum(SPLITS.values()), **SPLITS}


def test_photographs_without_object_annotation_stay_unannotated(tmp_path):
    (record,) = read_coco_mini(write_folder(tmp_path))
    assert record.objects is None and record.captions == ("A dog.",) and record.images == ("images/7.jpg",)
    assert record.extra["chair_objects"] == ["dog"]


def test_a_row_that_lacks_a_key_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"annotations.jsonl:1: missing keys \['license'\]"):
        read_coco_mini(write_folder(tmp_path, license="drop"))


def test_a_missing_data_folder_says_which_variable_to_set(monkeypatch, tmp_path):
    monkeypatch.setenv("HACL_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="set HACL_DATA"):
        find_layout("cache", "runs")
    with pytest.raises(FileNotFoundError, match="set HACL_DATA"):
        read_coco_mini(tmp_path)


def test_hallucinated_captions_are_seeded_and_differ_from_their_caption():
    records = [photograph(number) for number in range(4)]
    first, second = (hallucinate(records, per_caption=2, seed=0, knowledge=records) for _ in range(2))
    assert first == second and first
    for record in first:
        assert all(h.text != record.captions[h.of] for h in record.hallucinated)


def test_margin_records_keep_each_edit_with_its_own_caption():
    record = photograph(1, hallucinated=(HallucinatedCaption("Two cats run in a park.", "object", of=1),))
    kept = with_edits_only(record)
    assert kept.captions == ("Two dogs run in a park.",) and kept.hallucinated[0].of == 0


def test_shuffled_captions_never_stay_on_their_photograph():
    captions = [f"caption {i}" for i in range(9)]
    moved = shuffled(captions)
    assert sorted(moved) == sorted(captions) and all(a != b for a, b in zip(moved, captions, strict=True))


def test_chair_counts_an_object_that_neither_annotation_nor_human_captions_name():
    found = score_captions([photograph(1)], ["A dog and a cat on a bench in a park."])
    assert found.metrics["CHAIRi"] == pytest.approx(1 / 3)


def test_features_that_are_not_numbers_are_refused_and_never_rank_first():
    features = np.full((2, 3), np.nan)
    with pytest.raises(ValueError, match="NaN"):
        retrieval(features, np.ones((2, 3)), [0, 1])


def test_results_pair_arms_with_the_control_and_show_the_baselines(tmp_path):
    from hacl.report.page import build_report

    layout = Layout(tmp_path / "cache", tmp_path / "data", tmp_path / "runs")
    layout.runs.mkdir()
    layout.cache.mkdir()
    record = photograph(1)
    with pytest.raises(ValueError, match="no evaluated control run"):
        results(layout, [("control", 0)], [record])
    metrics = {"margin_accuracy": 0.6, "chair/CHAIRi": 0.5, "post/i2t@1": 0.1}
    captions = [{"image_id": "1", "text": "A cat.", "marks": [[2, 5]]}]
    for arm in ("control", "hacl", "base"):
        found = {"metrics": metrics, "items": {"chair/CHAIRi": {"1": [1, 2]}}, "captions": captions}
        layout.evaluation(arm, 0).write_text(json.dumps(found))
    layout.baseline.write_text(json.dumps({"minilm": {"metrics": {"i2t@1": 0.3}, "items": {"i2t@1": {"1": [0, 1]}}}}))
    found = results(layout, [("control", 0), ("hacl", 0)], [record], examples=0)
    arms = {arm["name"]: arm for arm in found["arms"]}
    assert set(arms) == {"control", "hacl", "base", "ridge_minilm"}
    assert arms["ridge_minilm"]["reference"] and arms["ridge_minilm"]["runs"][0]["metrics"]["held-out"] == {
        "post/i2t@1": 0.3
    }
    assert "ridge to minilm" in build_report(found, tmp_path / "report.html", draws=10).read_text()


@pytest.mark.parametrize("arm", ["control", "contrastive", "hacl", "hacl_mean", "hacl_lora"])
def test_every_arm_has_a_config_that_loads(arm):
    from pathlib import Path

    from hacl.config import load_config

    config = load_config(Path(__file__).parents[2] / "configs" / "smol" / f"{arm}.yaml")
    assert (config.objective.contrastive_weight == 0) == (arm == "control")
    assert (config.objective.num_hallucinated == 0) == (arm in ("control", "contrastive"))
    assert (config.model.lora.rank > 0) == (arm == "hacl_lora")
