"""The recipes of LLaVA-1.5-7B: their numbers, their DeepSpeed plans, their prediction at full size, and a rehearsal at
a small one where DeepSpeed is not installed. Nothing is downloaded."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import train
from hacl.config import load_config
from hacl.models.random_llava import Size, llava_config, write_random_llava
from hacl.training import runtime
from tests.tiny import write_tiny_records

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
RECIPES = {path.stem: path for path in (ROOT / "configs/llava15_7b").glob("*.yaml") if path.stem != "base"}
PLANS = sorted((ROOT / "configs/deepspeed").glob("*.json"))
# What LLaVA-1.5 publishes for its two stages and for LoRA, and the batch on the GPUs it names (HACL: 16 for stage 1).
PUBLISHED = {
    "stage1": {"projector": 1e-3, "llm": 0.0, "batch": 512, "gpus": 16, "zero": 2},
    "stage2": {"projector": 2e-5, "llm": 2e-5, "batch": 128, "gpus": 8, "zero": 3},
    "stage2_lora": {"projector": 2e-5, "llm": 2e-4, "batch": 128, "gpus": 8, "zero": 2},
}
HIDE_DEEPSPEED = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
hidden = lambda name, *rest: None if name.split(".")[0] == "deepspeed" else find(name, *rest)
PathFinder.find_spec = staticmethod(hidden)
import train
statuses = [train.main(arguments.split()) for arguments in sys.argv[1:]]
print("statuses", statuses, "imported", [name for name in sys.modules if name.split(".")[0] == "deepspeed"])
"""


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return write_tiny_records(tmp_path_factory.mktemp("records"), 8, text_only=2)


@pytest.fixture(scope="module")
def seven(tmp_path_factory, records):
    """Configuration and processor of LLaVA-1.5-7B, no weights."""
    folder = tmp_path_factory.mktemp("seven") / "model"
    write_random_llava(folder, Size(), records.read_text().splitlines(), weights=False)
    assert not list(folder.glob("*.safetensors"))
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_the_dry_run_of_every_recipe_passes_at_full_size_without_weights(seven, records, capsys, name):
    assert train.main([str(RECIPES[name]), "--dry-run", f"model.path={seven}", f"data.path={records}"]) == 0
    shown = capsys.readouterr().out
    assert "vision       303,507,456" in shown and "projector     20,979,712     20,979,712" in shown
    assert ("7,058,755,584    319,815,680" if "lora" in name else "6,738,939,904") in shown
    assert "weights were not loaded, no batch was run" in shown


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_recipes_hold_the_published_numbers(name):
    config, expected = load_config(RECIPES[name]), PUBLISHED[name]
    train, rates = config.train, config.model.learning_rate
    assert (rates.vision, rates.projector, rates.llm) == (0.0, expected["projector"], expected["llm"])
    samples = train.per_device_batch_size * train.gradient_accumulation_steps * expected["gpus"]
    assert (samples, train.deepspeed) == (expected["batch"], expected["zero"])
    assert (train.epochs, train.scheduler, train.warmup, train.weight_decay) == (1, "cosine", 0.03, 0.0)
    assert train.bf16 and train.gradient_checkpointing and config.data.max_length == 2048
    if name == "stage1":
        assert (config.data.template, train.grouping, config.objective.temperature) == ("plain", "none", 0.07)
        assert (config.objective.contrastive_weight, config.objective.num_hallucinated) == (1.0, 1)
    else:
        assert (config.data.template, train.grouping, config.objective.contrastive_weight) == ("chat", "modality", 0.0)
    lora = config.model.lora
    assert (lora.rank, lora.alpha, lora.dropout) == ((128, 256, 0.05) if "lora" in name else (0, 256, 0.05))


def filled_plan(config, seven):
    """The DeepSpeed configuration as Trainer completes it on one rank, and the arguments it is completed from."""
    from transformers import AutoConfig
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    plan = HfTrainerDeepSpeedConfig(runtime.deepspeed_config(config.train))
    config.train.deepspeed = None
    arguments = runtime.training_arguments(config, has_eval=False)
    plan.trainer_config_process(arguments)
    plan.trainer_config_finalize(arguments, SimpleNamespace(config=AutoConfig.from_pretrained(seven)), 1000)
    return plan.config


@pytest.mark.parametrize("name", [*RECIPES, *[path.name for path in PLANS]])
def test_a_deepspeed_plan_is_filled_from_the_recipe_and_contradicts_nothing(seven, name):
    recipe = RECIPES.get(name, RECIPES["stage2"])
    overrides = [] if name in RECIPES else [f"train.deepspeed={ROOT / 'configs/deepspeed' / name}"]
    config = load_config(recipe, [*overrides, f"model.path={seven}", "train.gradient_accumulation_steps=3"])
    batch = config.train.per_device_batch_size
    plan = filled_plan(config, seven)
    assert '"auto"' not in json.dumps(plan)
    assert plan["train_micro_batch_size_per_gpu"] == batch and plan["train_batch_size"] == 3 * batch
    assert plan["gradient_accumulation_steps"] == 3 and plan["gradient_clipping"] == 1.0 and plan["bf16"]["enabled"]
    assert "optimizer" not in plan and "scheduler" not in plan


def test_a_plan_that_contradicts_the_recipe_is_refused(seven, tmp_path):
    plan = json.loads(PLANS[0].read_text())
    plan["gradient_accumulation_steps"] = 7
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    config = load_config(RECIPES["stage2"], [f"train.deepspeed={path}", f"model.path={seven}"])
    with pytest.raises(ValueError, match="gradient_accumulation_steps=7"):
        filled_plan(config, seven)


def test_recipes_train_on_random_weights_in_shards_where_deepspeed_is_not_installed(records, tmp_path):
    size = Size(layers=2, width=128, vision_layers=3, vision_width=64, pixels=28, vocabulary=512)
    model = tmp_path / "model"
    write_random_llava(model, size, records.read_text().splitlines(), shard="200KB")
    assert len(list(model.glob("*.safetensors"))) > 1
    common = f"model.path={model} data.path={records} train.max_steps=2 train.per_device_batch_size=4"
    common += " train.num_workers=0 log.sample_steps=0 log.steps=1"
    runs = [
        f"{RECIPES[name]} {common} train.deepspeed=null train.output_dir={tmp_path / name}"
        for name in ("stage1", "stage2", "stage2_lora")
    ]
    asked = f"{RECIPES['stage2']} {common} train.output_dir={tmp_path / 'asked'}"
    done = subprocess.run(
        [sys.executable, "-c", HIDE_DEEPSPEED, *runs, asked],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "statuses [0, 0, 0, 2] imported []" in done.stdout, done.stderr[-3000:]
    assert "train.deepspeed=3 needs the package deepspeed" in done.stderr
    for name in ("stage1", "stage2", "stage2_lora"):
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows if "loss" in row] == [1, 2]


def test_a_random_model_has_the_shape_of_llava_and_does_not_overwrite_another(seven, records):
    config = llava_config(Size(layers=4, width=512), image_token=3)
    assert (config.text_config.intermediate_size, config.text_config.num_attention_heads) == (1376, 4)
    with pytest.raises(ValueError, match="width=100: must be a multiple of 128"):
        Size(width=100)
    with pytest.raises(FileExistsError, match="already holds a model"):
        write_random_llava(seven, Size(), records.read_text().splitlines(), weights=False)
