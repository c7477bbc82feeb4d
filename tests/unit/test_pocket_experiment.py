"""Promises of the pocket experiment: recipes have names, finished work is recognised, results fit the report."""

import json
from dataclasses import replace

import pytest

from hacl.config import load_config
from hacl.pocket.base import BaseSettings, find_or_make_base, parse_settings
from hacl.pocket.evaluate import Sizes
from hacl.pocket.experiment import CONFIGS, UNTUNED, Unit, World
from hacl.pocket.results import LABELS, assemble
from hacl.report.schema import check_results

ARMS = [name for name in LABELS if name != UNTUNED]


@pytest.fixture
def unit(tmp_path):
    world = World(tmp_path / "world", tuning=8, test=4, splits=("test_like", "test_broken"), seed=3)
    return Unit("control", 0, 1, tmp_path / "base", tmp_path / "run", world, Sizes(4, 2, 2, 4))


def test_every_arm_has_a_configuration_that_differs_from_control_in_losses_only():
    control = load_config(CONFIGS / "control.yaml")
    for arm in ARMS:
        config = load_config(CONFIGS / f"{arm}.yaml")
        assert (config.model, config.data, config.train) == (control.model, control.data, control.train), arm
        assert (config.objective == control.objective) == (arm == "control"), arm


def test_the_paper_preset_reads_last_tokens_after_the_final_norm_with_own_hard_negatives():
    objective = load_config(CONFIGS / "hacl_paper.yaml").objective
    assert (objective.image_pool, objective.text_pool, objective.layer) == ("last", "last", None)
    assert (objective.hard_scope, objective.num_hallucinated, objective.text_margin_weight) == ("own", 1, 0.0)
    plain = load_config(CONFIGS / "contrastive.yaml").objective
    assert replace(plain, num_hallucinated=1) == objective


def test_a_base_of_another_recipe_has_another_name():
    names = {BaseSettings(seed=seed, image_steps=steps).name() for seed in (0, 1) for steps in (5, 6)}
    assert len(names) == 4


def test_a_base_that_is_there_is_found_and_not_trained_again(tmp_path, monkeypatch):
    settings = BaseSettings(seed=7)
    folder = tmp_path / settings.name()
    folder.mkdir()
    (folder / "base.json").write_text("{}")
    monkeypatch.setattr("hacl.pocket.base.train_base", lambda *_, **__: pytest.fail("trained again"))
    assert find_or_make_base(tmp_path, settings) == folder


def test_a_finished_run_counts_only_for_the_same_settings(unit):
    assert unit.finished() is None
    unit.folder.mkdir()
    (unit.folder / "result.json").write_text(json.dumps({"key": unit.key(), "metrics": {}}))
    assert unit.finished() == {"key": unit.key(), "metrics": {}}
    assert replace(unit, seed=2).finished() is None
    assert replace(unit, overrides=("train.max_steps=3",)).finished() is None
    assert replace(unit, sizes=Sizes(5, 2, 2, 4)).finished() is None


def test_assembled_results_fit_the_report(unit):
    split_metrics = {"chair_i": 0.25, "recall": 0.5}
    items = {"chair_i": {"a": [1, 4]}, "recall": {"a": [1, 2]}}
    runs = [
        {
            "arm": arm,
            "base": 0,
            "seed": 1,
            "metrics": {split: split_metrics for split in unit.world.splits},
            "items": {split: items for split in unit.world.splits},
            "captions": {split: [] for split in unit.world.splits},
            "log_path": None,
            "seconds": 1.0,
        }
        for arm in ("control", "hacl_paper", UNTUNED)
    ]
    unit.world.root.mkdir()
    (unit.world.root / "test_broken.jsonl").write_text("")
    folders = {(run["arm"], 0, 1): unit.folder for run in runs}
    results = assemble(runs, unit.world, header="h", command="c", bases={0: {"parameters": 1}}, folders=folders)
    check_results(results)
    assert [arm["name"] for arm in results["arms"]] == ["control", "hacl_paper", UNTUNED]
    assert results["arms"][-1]["reference"] and not results["arms"][0]["reference"]


def test_settings_of_a_base_are_named_on_the_command_line():
    assert parse_settings(["tower_steps=130", "image_steps=600"]) == {"tower_steps": 130, "image_steps": 600}
    for wrong in ("tower_step=130", "tower_steps", "tower_steps=0", "seed=3", "tower=resnet"):
        with pytest.raises(ValueError, match=wrong.split("=")[0]):
            parse_settings([wrong])
