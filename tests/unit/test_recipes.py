"""Promises of configs/: every recipe of a paper's model holds the numbers of its sources, and every file is one that a
script reads."""

import json
import re
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForImageTextToText

from hacl.config import ConfigError, load_config
from hacl.training import recipes
from hacl.training.build import select_trainable
from scripts import dry_run_recipes
from tests.tiny import build_tiny_model, write_tiny_records
from tests.unit.test_reproduce import check_values, parsed

ROOT = Path(__file__).resolve().parents[2]
# What the sources that the files name publish. batch: per rank, without accumulation; None where a source has none.
PUBLISHED = {
    "llava_v1/stage1": {"projector": 2e-3, "llm": 0.0, "batch": 64, "epochs": 1, "decay": 0.0, "warmup": 0.03},
    "llava_v1/stage2": {"projector": 2e-5, "llm": 2e-5, "batch": 4, "epochs": 3, "decay": 0.0, "warmup": 0.03},
    "llava_v1/stage2_lora": {"projector": 2e-5, "llm": 2e-5, "batch": 16, "epochs": 1, "decay": 0.0, "warmup": 0.03},
    "minigpt4/stage1": {"projector": 1e-4, "llm": 0.0, "batch": 8, "steps": 20000, "decay": 0.05, "warmup": 5000},
    "minigpt4/stage2": {"projector": 3e-5, "llm": 0.0, "batch": 12, "steps": 1000, "decay": 0.05, "warmup": 200},
}


@pytest.fixture
def tiny(tmp_path):
    return AutoModelForImageTextToText.from_pretrained(build_tiny_model(tmp_path / "tiny"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_holds_the_numbers_that_its_sources_publish(name):
    config, wanted = load_config(ROOT / f"configs/{name}.yaml"), PUBLISHED[name]
    train, rates = config.train, config.model.learning_rate
    assert (rates.vision, rates.projector, rates.llm) == (0.0, wanted["projector"], wanted["llm"])
    assert (train.per_device_batch_size, train.gradient_accumulation_steps) == (wanted["batch"], 1)
    assert (train.weight_decay, train.warmup, train.bf16) == (wanted["decay"], wanted["warmup"], True)
    assert train.max_steps == wanted.get("steps") and train.epochs == wanted.get("epochs", train.epochs)
    stage1 = name.endswith("stage1")
    assert (config.objective.contrastive_weight, config.data.template) == ((1.0, "plain") if stage1 else (0.0, "chat"))


def test_the_first_llava_and_minigpt4_train_one_linear_map():
    for path in [*ROOT.glob("configs/llava_v1/*.yaml"), *ROOT.glob("configs/minigpt4/*.yaml")]:
        wanted = (
            ["model.multi_modal_projector.linear_2"] if "llava" in path.parent.name else ["qformer", "query_tokens"]
        )
        assert load_config(path).model.freeze == wanted


@pytest.mark.parametrize(
    "path",
    [
        path
        for family in ("llava15_7b", "llava_v1", "minigpt4")
        for path in sorted((ROOT / "configs" / family).glob("*"))
    ],
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_every_number_of_a_recipe_of_a_paper_says_where_it_is_from(path):
    text = path.read_text(encoding="utf-8")
    ours = text.startswith("# Ours")
    for line in text.splitlines():
        key, _, rest = line.partition(":")
        value = rest.partition("#")[0].strip()
        if value.replace(".", "").replace("e-", "").isdigit():
            assert ours or "#" in rest, f"{path}: {line.strip()!r} names no source"


def test_what_is_named_stays_frozen_whatever_the_rates_say(tiny):
    config = load_config(None, ["model.path=any", "model.freeze=[model.multi_modal_projector.linear_2]"])
    backbone = select_trainable(tiny, config.model, masters=False)
    trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert trained == {f"model.multi_modal_projector.linear_1.{part}" for part in ("weight", "bias")}


def test_a_part_that_is_not_there_cannot_be_frozen(tiny):
    config = load_config(None, ["model.path=any", "model.freeze=[model.multi_modal_projector.linear]"])
    with pytest.raises(ConfigError, match="no part 'model.multi_modal_projector.linear'; it has lm_head.weight, model"):
        select_trainable(tiny, config.model, masters=False)


COMMANDS = [path for folder in ("shift", "l2s", "flexac") for path in sorted(ROOT.glob(f"configs/{folder}/*/*.yaml"))]


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_a_file_of_options_is_read_by_the_command_that_it_names(path, capsys):
    name = str(path.relative_to(ROOT))
    line = path.read_text(encoding="utf-8").splitlines()[0]
    assert line.startswith("# For: python scripts/") and f"--config {name} " in line
    script, *words = line.removeprefix("# For: python ").split()
    words = [str(ROOT / word) if word == name else word for word in words]
    try:
        options = parsed(script, tuple(words))
    except SystemExit:
        pytest.fail(capsys.readouterr().err)
    check_values(script, options)
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert given and all(hasattr(options, key.replace("-", "_")) for key in given)
    behaviours = getattr(options, "behaviours", None)
    assert behaviours is None or (ROOT / behaviours).is_file()


def test_the_command_line_wins_over_a_file_of_options_and_a_wrong_key_is_named(tmp_path, capsys):
    file = str(ROOT / "configs/l2s/llava15_7b/pope_fit.yaml")
    options = parsed("scripts/steer.py", ("fit", "--config", file, "--alpha", "3", "--out", "x"))
    assert (options.alpha, options.method, options.set) == (3.0, "l2s", ["hidden=100"])
    (tmp_path / "wrong.yaml").write_text("metod: l2s\n")
    with pytest.raises(SystemExit):
        parsed("scripts/steer.py", ("fit", "--config", str(tmp_path / "wrong.yaml")))
    assert "unknown key 'metod'; did you mean 'method'?" in capsys.readouterr().err


def test_every_training_recipe_is_planned_and_the_page_shows_what_the_plan_says():
    """Run the command of docs/reproduce.md, and put its table between the marks of the page."""
    content = json.loads((ROOT / "benchmarks/recipes_dry_run.json").read_text(encoding="utf-8"))
    assert {row["recipe"] for row in content["recipes"]} == {recipe.name for recipe in recipes.find(ROOT / "configs")}
    page = (ROOT / "docs/reproduce.md").read_text(encoding="utf-8")
    assert page.split("<!-- recipes -->")[1].strip() == recipes.table(content["recipes"])
    for row in content["recipes"]:
        config = load_config(ROOT / f"configs/{row['recipe']}.yaml", ["objective.form=in_place"])
        stage = config.train.deepspeed
        assert row["configured"] == ("none" if stage is None else f"zero{stage}"), row["recipe"]
        assert row["samples"] == config.train.per_device_batch_size, row["recipe"]
        assert min(row["gib_per_rank"].values()) > 0 and row["least_tflop"] <= row["tflop"]


def test_the_hours_of_the_papers_models_are_those_of_the_plan():
    content = json.loads((ROOT / "benchmarks/recipes_dry_run.json").read_text(encoding="utf-8"))
    hours = {(row["recipe"], row["texts"]): row["gpu_hours"] for row in content["recipes"]}
    page = (ROOT / "docs/reproduce.md").read_text(encoding="utf-8")
    for models, folder in {"LLaVA-1.5": "llava15_7b", "LLaVA": "llava_v1", "MiniGPT-4": "minigpt4"}.items():
        first = hours[f"{folder}/stage1", "captions, `strict`"]
        second = [
            hours[key] for key in ((f"{folder}/stage2", "captions"), (f"{folder}/stage2", "longest")) if key in hours
        ]
        line = next(
            line for line in page.splitlines() if line.startswith(f"| {models} + HACL | ") and " rating" not in line
        )
        wanted = [first, *second, *(first + each for each in second)]
        found = [float(number) for cell in line.split("|")[2:] for number in re.findall(r"\d+(?:\.\d+)?", cell)]
        assert found == pytest.approx(wanted, rel=0.01), line


@pytest.mark.slow
def test_a_recipe_is_planned_at_full_size_without_weights(tmp_path, capsys):
    records = write_tiny_records(tmp_path / "records", 16)
    out = tmp_path / "plan.json"
    words = ["--records", records, "--images", records.parent, "--only", "minigpt4/stage2", "--out", out]
    assert dry_run_recipes.main([str(word) for word in words]) == 0
    (row,) = json.loads(out.read_text(encoding="utf-8"))["recipes"]
    parts = row["parts"]
    assert parts["projector"][1] == row["trained"] == 768 * 4096 + 4096  # the map, and nothing of the Q-Former
    assert parts["vision"] == [985_952_256, 0]
    assert dry_run_recipes.main(["--table", str(out)]) == 0
    assert "| `minigpt4/stage2` | captions |" in capsys.readouterr().out


def test_a_recipe_that_is_not_there_is_named(capsys, tmp_path):
    assert dry_run_recipes.main(["--records", str(tmp_path), "--images", str(tmp_path), "--only", "minigpt5"]) == 2
    assert "no training recipe 'minigpt5'; there are llava15_7b/posthoc" in capsys.readouterr().err
