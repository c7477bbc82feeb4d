"""Promises of the negatives experiment: qualities differ in negatives alone, scenes decide truth, tables are paired."""

import json
import random
from dataclasses import replace

import pytest

from hacl.data.records import read_records
from hacl.pocket.base import BaseSettings, find_or_make_base
from hacl.pocket.build import build_split, caption_record, question_record
from hacl.pocket.evaluate import Sizes
from hacl.pocket.experiment import World, config_of, run_units
from hacl.pocket.hallucinate import TYPES, hallucinations
from hacl.pocket.language import all_words, describe
from hacl.pocket.negatives import QUALITIES, audit_negatives, tuning_name, with_negatives, write_negatives
from hacl.pocket.negatives_results import HEADLINE, assemble, compare, markdown, regrouped
from hacl.pocket.negatives_run import by_group, plan_units, run_negatives_unit, statement_record
from hacl.pocket.reading import read_caption
from hacl.pocket.scenes import sample_scene
from scripts.pocket import KINDS
from scripts.pocket import QUALITIES as OFFERED

SEED = 2


def scenes(count, split="train"):
    return [sample_scene(split, 70_000 + n, SEED) for n in range(count)]


def records(count, **options):
    options = {"captions": 2, "seed": SEED, "types": ("object",)} | options
    return [caption_record(scene, **options) for scene in scenes(count)]


def scene_of(record):
    split, seed, index = record.id.rsplit("-", 2)
    return sample_scene(split, int(index), int(seed))


# Reading


def test_what_is_said_of_a_scene_reads_back_to_the_claims_it_was_made_from():
    for scene in scenes(60):
        rng = random.Random(scene.id)
        caption = describe(scene, rng)
        assert read_caption(caption.render()) == caption
        assert read_caption(caption.render()).true_of(scene)
        for edited in hallucinations(scene, caption, TYPES, rng):
            assert not read_caption(edited.text).true_of(scene), edited.text


def test_slips_of_article_and_number_are_read_over_and_foreign_text_is_not_read():
    assert (
        read_caption("there is a anchor and two cup .").mentions
        == read_caption("there are an anchor and two cups .").mentions
    )
    for text in (
        "a dog .",
        "there is a dog .",
        "there is a red cup",
        "there is a cup . the cup is near the ball .",
        "",
    ):
        assert read_caption(text) is None, text


# Qualities


@pytest.mark.parametrize("kinds", [("object",), ("attribute", "number", "relation")])
@pytest.mark.parametrize("quality", QUALITIES)
def test_qualities_differ_in_negatives_alone_at_most_one_of_a_kind_a_caption(quality, kinds):
    given = [*records(12), question_record(scenes(1)[0], count=3, seed=SEED)]
    made = list(with_negatives(given, quality, kinds, world_seed=SEED))
    assert [replace(record, hallucinated=()) for record in made] == [
        replace(record, hallucinated=()) for record in given
    ]
    assert made[-1].hallucinated == ()
    for record in made[:-1]:
        told = [(item.of, item.type) for item in record.hallucinated]
        assert len(told) == len(set(told))
        assert {item.type for item in record.hallucinated} <= ({"other"} if quality == "random" else set(kinds))
        assert all(set(item.text.split()) <= set(all_words()) for item in record.hallucinated)
        assert not {item.text for item in record.hallucinated} & set(record.captions)
    assert sum(bool(record.hallucinated) for record in made) >= 11


def test_the_checked_generators_say_nothing_true_and_the_naive_swap_does():
    given = records(60)
    audits = {
        quality: audit_negatives(list(with_negatives(given, quality, ("object",), world_seed=SEED)))
        for quality in QUALITIES
    }
    assert audits["scene"]["true"] == audits["lexical"]["true"] == audits["scene"]["slips"] == 0
    assert audits["naive"]["true"] > 0
    assert audits["scene"]["partners"] > 4 * max(audits["lexical"]["partners"], audits["naive"]["partners"])
    assert all(audit["with"] > 0.97 and audit["captions"] == 120 for audit in audits.values())


def test_an_audit_counts_what_is_true_and_what_is_no_caption():
    (record,) = records(1)
    negatives = tuple(replace(item, text=text) for item, text in zip(
        record.hallucinated, (record.captions[0], "there is a anchors ."), strict=False))  # fmt: skip
    audit = audit_negatives([replace(record, hallucinated=negatives)])
    assert (audit["negatives"], audit["true"], audit["slips"]) == (2, 0.5, 0.5)


def test_an_unknown_quality_and_a_world_of_another_seed_are_refused():
    with pytest.raises(ValueError, match="random, naive"):
        list(with_negatives(records(1), "better", ("object",), world_seed=SEED))
    with pytest.raises(ValueError, match="draw the world again"):
        list(with_negatives(records(3), "scene", ("object",), world_seed=SEED + 1))


def test_tuning_files_are_written_once_and_named_by_quality_and_kinds(tmp_path):
    build_split(tmp_path, "train", 3, seed=SEED)
    path = write_negatives(tmp_path, "scene", ("object", "number"), world_seed=SEED)
    assert path.name == "train-scene-object-number.jsonl" and len(read_records(path)) == 3
    path.write_text("")
    assert write_negatives(tmp_path, "scene", ("object", "number"), world_seed=SEED).read_text() == ""
    assert tuning_name("random", ("object",)) == tuning_name("random", ("number",))


# Statements


def test_statements_differ_in_one_claim_that_the_scene_decides():
    for record in records(40):
        asked = statement_record(record)
        scene = scene_of(record)
        assert [item.type for item in asked.hallucinated] == ["object", "attribute", "number"]
        assert all(read_caption(text).true_of(scene) for text in asked.captions)
        for item in asked.hallucinated:
            false, true = read_caption(item.text), read_caption(asked.captions[item.of])
            assert not false.true_of(scene)
            pair = zip(("kind", "colour", "count"), ("object", "attribute", "number"), strict=True)
            changed = [
                kind for name, kind in pair if getattr(false.mentions[0], name) != getattr(true.mentions[0], name)
            ]
            assert changed == [item.type]
        assert statement_record(record) == asked


# The plan


@pytest.fixture
def world(tmp_path):
    return World(tmp_path / "world", tuning=16, test=4, splits=("test_broken",), seed=SEED)


def plan(world, tmp_path, **options):
    options = {"losses": ("margin", "hacl"), "qualities": QUALITIES, "kinds": ("object",), "seeds": (0,)} | options
    return plan_units({3: tmp_path / "base"}, world, tmp_path, sizes=Sizes(4, 0, 4, 4), **options)


def test_every_arm_has_the_same_budget_and_differs_in_losses_and_negatives_only(world, tmp_path):
    units = plan(world, tmp_path)
    assert [unit.name for unit in units][:4] == ["control", "hacl-none", "margin-random", "hacl-random"]
    configs = {unit.name: config_of(unit) for unit in units}
    control = configs["control"]
    for name, config in configs.items():
        assert config.model == control.model
        assert replace(config.data, path=control.data.path) == control.data
        assert replace(config.train, output_dir=control.train.output_dir) == control.train
        assert config.objective.num_hallucinated == (0 if name in ("control", "hacl-none") else 1)
    for loss in ("margin", "hacl"):
        own = {configs[f"{loss}-{quality}"].data.path[0] for quality in QUALITIES}
        assert len(own) == 4
        assert all(configs[f"{loss}-{q}"].objective == configs[f"{loss}-naive"].objective for q in QUALITIES)


def test_other_negatives_are_another_run(world, tmp_path):
    unit = next(unit for unit in plan(world, tmp_path) if unit.quality == "naive")
    world.root.mkdir()
    file = world.root / f"{unit.tuning}.jsonl"
    file.write_text("a")
    unit.folder.mkdir()
    (unit.folder / "result.json").write_text(json.dumps({"key": unit.key()}))
    assert unit.finished() is not None
    file.write_text("b")
    assert unit.finished() is None
    (unit.folder / "result.json").write_text(json.dumps({"step": 3}))
    assert unit.finished() is None


def test_the_command_offers_what_the_library_knows():
    assert OFFERED == QUALITIES and set(KINDS) == set(TYPES)


# Comparing


def test_shares_are_given_by_kind_and_over_the_kinds_trained_on_and_the_others():
    items = [{"image_id": i, "type": kind} for i, kind in (("a", "object"), ("a", "number"), ("b", "relation"))]
    report = by_group(items, {"": [1.0, 0.0, 1.0], "_blind": [0.0, 0.0, 0.0]}, "captions", ("object",))
    assert report.metrics["captions/trained"] == 1 and report.metrics["captions/untrained"] == 0.5
    assert report.metrics["captions/untrained_blind"] == 0 and "captions/insertion" not in report.metrics
    assert report.by_image()["captions/untrained"] == {"a": [0, 1], "b": [1, 1]}


def run_of(arm, base, share, images=40):
    rng = random.Random(f"{base}")
    table = {str(n): [float(rng.random() < share), 1.0] for n in range(images)}
    value = sum(top for top, _ in table.values()) / images
    return {"arm": arm, "base": base, "seed": 0, "metrics": {"s": {"captions/untrained": value}},
            "items": {"s": {"captions/untrained": table}}}  # fmt: skip


def test_a_planted_difference_is_found_and_none_is_not():
    shares = {"control": 0.4, "margin-scene": 0.9, "margin-naive": 0.9, "margin-random": 0.4}
    runs = [run_of(arm, base, share) for base in range(6) for arm, share in shares.items()]
    found = compare(runs, "s", "margin-scene", "margin-random", "captions/untrained")
    assert found["low"] > 0.2 and found["swap_p"] < 0.01 and found["sign_p"] == 0.03125 and len(found["bases"]) == 6
    same = compare(runs, "s", "margin-scene", "margin-naive", "captions/untrained")
    assert same["estimate"] == 0 and same["sign_p"] is None and same["swap_p"] == 1
    assert compare(runs, "s", "margin-scene", "hacl-naive", "captions/untrained") is None
    assert compare(runs, "s", "margin-scene", "control", "recall") is None


def test_tables_hold_every_arm_and_corrected_p_and_the_file_is_json():
    runs = [run_of(arm, base, share) for base in range(3)
            for arm, share in (("control", 0.4), ("margin-scene", 0.9), ("margin-random", 0.4))]  # fmt: skip
    results = assemble(runs, provenance={"command": "c"})
    json.dumps(results, allow_nan=False)
    (row,) = results["contrasts"]
    assert (row["arm"], row["against"]) == ("margin-scene", "margin-random") and row["holm_p"] >= row["swap_p"]
    text = markdown(results)
    assert "| measure | control | margin-scene | margin-random |" in text
    assert f"| margin-scene | control | {HEADLINE['captions/untrained']} | +" in text


def test_runs_of_a_quickstart_are_regrouped_by_the_kinds_they_trained_on(tmp_path):
    with pytest.raises(FileNotFoundError, match="quickstart --full"):
        regrouped(tmp_path, ("object",))
    tables = {f"margin_{kind}": {"a": [1.0, 2.0]} for kind in TYPES} | {"margin_object": {"a": [2.0, 2.0]}}
    for base in range(2):
        (tmp_path / f"r{base}").mkdir()
        run = {"key": {}, "arm": "control", "base": base, "seed": 0, "metrics": {"s": {}}, "items": {"s": tables}}
        (tmp_path / f"r{base}" / "result.json").write_text(json.dumps(run))
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "result.json").write_text("{}")
    runs = regrouped(tmp_path, ("object", "insertion"))
    assert len(runs) == 2
    assert runs[0]["items"]["s"]["captions/trained"] == {"a": [3.0, 4.0]}
    assert runs[0]["metrics"]["s"]["captions/untrained"] == 0.5
    assert assemble(runs, provenance={})["means"][0]["mean"] == 0.75


@pytest.mark.slow
def test_arms_are_tuned_measured_and_not_repeated(world, tmp_path):
    small = {"scenes": 1600, "tower_steps": 3, "text_steps": 2, "align_steps": 2, "image_steps": 3}
    base = find_or_make_base(tmp_path / "cache", BaseSettings(seed=3, **small), report=lambda _: None)
    world.prepare()
    for quality in ("random", "scene"):
        write_negatives(world.root, quality, ("object",), world_seed=SEED)
    units = plan_units(
        {3: base}, world, tmp_path, losses=("margin", "hacl"), qualities=("random", "scene"), kinds=("object",),
        seeds=(0,), sizes=Sizes(4, 0, 4, 4), overrides=("train.max_steps=1",),
    )  # fmt: skip
    runs = run_units(units, workers=1, run=run_negatives_unit)
    assert len(runs) == 6
    for run in runs:
        found = run["metrics"]["test_broken"]
        assert set(HEADLINE) <= set(found) and "captions/untrained_blind" in found
        assert set(found) - {"length"} <= set(run["items"]["test_broken"]) | {"length"}
    stamps = [(unit.folder / "result.json").stat().st_mtime_ns for unit in units]
    assert run_units(units, workers=1, run=run_negatives_unit) == [
        json.loads((unit.folder / "result.json").read_text()) for unit in units
    ]
    assert [(unit.folder / "result.json").stat().st_mtime_ns for unit in units] == stamps
