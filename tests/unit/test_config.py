"""Promises of the run configuration."""

import ast
import dataclasses
import typing
from pathlib import Path

import pytest

from hacl.config import Config, ConfigError, load_config, save_config, to_dict
from hacl.config_io import describe
from hacl.presets import PRESETS

ROOT = Path(__file__).resolve().parents[2]


MARGIN = ["objective.likelihood_margin_weight=1"]
BEST = ["data.eval_path=validation.jsonl", "train.eval_steps=2", "train.save_steps=2"]


def write(folder, text, name="run.yaml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_an_unknown_key_is_an_error_that_names_the_file_and_the_nearest_key(tmp_path):
    path = write(tmp_path, "train: {epoch: 2}\n")
    with pytest.raises(ConfigError, match=r"run\.yaml: unknown key 'train\.epoch'; did you mean 'train\.epochs'"):
        load_config(path)


def test_a_key_in_the_wrong_section_is_answered_with_the_right_one(tmp_path):
    with pytest.raises(ConfigError, match=r"did you mean 'objective\.lm_weight'"):
        load_config(None, ["lm_weight=2"])


def test_a_key_given_twice_is_an_error_with_its_line(tmp_path):
    path = write(tmp_path, "train:\n  seed: 1\n  seed: 2\n")
    with pytest.raises(ConfigError, match=r"run\.yaml:3: key 'seed' is given twice"):
        load_config(path)


@pytest.mark.parametrize(
    "override",
    ["train.seed=one", "train.bf16=1", "data.path=3", "train=3", "model.preset=x", "train.deepspeed=7", "train.seed"],
)
def test_a_value_of_another_type_is_an_error_that_names_the_key(override):
    with pytest.raises(ConfigError, match=override.split("=")[0].replace(".", r"\.")):
        load_config(None, [override])


def test_overrides_win_over_the_file_which_wins_over_defaults_which_win_over_the_preset(tmp_path):
    write(tmp_path, "model: {preset: stage2}\ntrain: {seed: 1, epochs: 2}\n", "base.yaml")
    path = write(tmp_path, "defaults: base.yaml\ntrain: {seed: 2}\n")
    config = load_config(path, ["train.save_steps=7"])
    assert (config.train.seed, config.train.epochs, config.train.save_steps) == (2, 2.0, 7)
    assert config.objective.contrastive_weight == 0.0, "the preset stage2 turns the contrastive loss off"
    assert load_config(path, ["objective.contrastive_weight=0.5"]).objective.contrastive_weight == 0.5


def test_files_that_inherit_from_each_other_are_refused(tmp_path):
    write(tmp_path, "defaults: b.yaml\n", "a.yaml")
    write(tmp_path, "defaults: a.yaml\n", "b.yaml")
    with pytest.raises(ConfigError, match="refers back"):
        load_config(tmp_path / "a.yaml")


def test_numbers_with_an_exponent_and_lone_paths_are_read_as_meant():
    config = load_config(None, ["model.learning_rate.projector=1e-3", "data.path=a.jsonl", "data.eval_path=[b, c]"])
    assert config.model.learning_rate.projector == 1e-3
    assert config.data.path == ["a.jsonl"] and config.data.eval_path == ["b", "c"]


def test_a_saved_configuration_reads_back_equal(tmp_path):
    config = load_config(None, ["train.deepspeed=2", "model.preset=stage2-lora", "data.path=[x, y]"])
    save_config(config, tmp_path / "resolved.yaml")
    assert load_config(tmp_path / "resolved.yaml") == config


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["model.learning_rate.projector=0", "model.learning_rate.heads=0"], "nothing would train"),
        (["model.lora.rank=4"], "needs model.learning_rate.llm"),
        (["model.load_in_4bit=true"], "needs model.lora.rank"),
        (["train.best_metric=eval_loss"], "needs data.eval_path"),
        (["objective.temperature=2.0"], "temperature"),
        (["train.offload_optimizer=true"], "needs train.deepspeed"),
        (["train.reduce_once=true", "train.gradient_accumulation_steps=2"], "needs train.deepspeed 2 or 3"),
        (["train.reduce_once=true", "train.deepspeed=3"], "train.gradient_accumulation_steps > 1"),
        (["train.offload_optimizer=true", "train.deepspeed=plan.json"], "not applied to a DeepSpeed JSON"),
        (["objective.contrastive_weight=0", "objective.text_margin_weight=1"], "objective.text_margin_weight"),
        (["objective.contrastive_weight=0", "objective.t2i_hard_weight=1"], "objective.t2i_hard_weight"),
        (["objective.num_hallucinated=0", "objective.likelihood_margin_weight=1"], "objective.num_hallucinated"),
        (["objective.num_hallucinated=0", "objective.text_margin_weight=1"], "objective.num_hallucinated"),
        (["objective.num_hallucinated=0", "objective.t2i_hard_weight=1"], "objective.num_hallucinated"),
        (["objective.learn_temperature=true", "model.learning_rate.heads=0"], "model.learning_rate.heads > 0"),
        ([*MARGIN, "objective.likelihood_margin_beta=0"], "likelihood_margin_beta must be above 0"),
        ([*MARGIN, "objective.likelihood_margin_beta=-1"], "likelihood_margin_beta must be above 0"),
        (["objective.likelihood_margin_beta=2"], "needs objective.likelihood_margin_weight > 0"),
        (["objective.likelihood_margin=0.5"], "needs objective.likelihood_margin_weight > 0"),
        (["objective.text_margin=0.1"], "needs objective.text_margin_weight > 0"),
        (["objective.hard_margin=0.1", "objective.hard_weight=0"], "needs objective.hard_weight > 0"),
        (["objective.hard_scope=global", "objective.num_hallucinated=0"], "needs objective.num_hallucinated > 0"),
        (["objective.hard_scope=local", "objective.num_hallucinated=0"], "needs objective.num_hallucinated > 0"),
        (["objective.positives=log_sum", "objective.exclude_other_positives=true"], "positives=mean_log"),
        (["objective.head=none", "objective.projection_size=8"], "objective.projection_size and"),
        (["objective.head=none", "objective.shared_head=true"], "objective.shared_head describe a head"),
        (["objective.contrastive_weight=0", "objective.form=strict"], "objective.form=strict.*log.diagnostic_steps"),
        (["objective.contrastive_weight=0", "objective.text_pool=mean"], "objective.text_pool"),
        (["objective.contrastive_weight=0", "objective.image_pool=mean"], "objective.image_pool"),
        (["objective.contrastive_weight=0", "objective.layer=1"], "objective.layer"),
        (["train.text_cache=texts", "model.preset=stage1-llm"], "decoder trains"),
        (["train.text_cache=texts", "model.lora.rank=2", "model.learning_rate.llm=1e-4"], "decoder trains"),
        (["train.cache_vision_features=true", "model.preset=stage1-vision"], "learning_rate.vision > 0"),
        (["train.max_steps=0"], "train.max_steps must be at least 1"),
        (["train.epochs=0"], "train.epochs"),
        (["data.max_records=0"], "data.max_records must be at least 1"),
        (["data.max_caption_length=3"], "data.max_caption_length must be at least 4"),
        (["data.allow_missing_hallucinated=1.5"], "data.allow_missing_hallucinated"),
        (["train.per_device_batch_size=0"], "train.per_device_batch_size must be at least 1"),
        (["train.per_device_eval_batch_size=0"], "train.per_device_eval_batch_size must be at least 1"),
        (["train.gradient_accumulation_steps=0"], "train.gradient_accumulation_steps must be at least 1"),
        (["log.steps=0"], "log.steps must be at least 1"),
        (["objective.lm_weight=-1"], "objective.lm_weight must be at least 0"),
        (["objective.hard_weight=-1"], "objective.hard_weight must be at least 0"),
        (["model.learning_rate.llm=-1"], "model.learning_rate.llm must be at least 0"),
        (["train.scheduler=constant"], "constant_with_warmup"),
        (["train.best_is_greater=true"], "train.best_metric"),
        ([*BEST, "train.best_metric=eval_loss", "train.save_steps=0"], "train.save_steps > 0"),
        ([*BEST, "train.best_metric=eval_loss", "train.save_steps=3"], "a multiple of it"),
        ([*BEST, "train.best_metric=eval_los"], "no such metric.*eval_loss"),
        ([*BEST, "train.best_metric=text_margin"], "no such metric"),
        ([*BEST, "objective.contrastive_weight=0", "train.best_metric=eval_i2t"], "no such metric"),
    ],
)
def test_combinations_that_could_only_be_ignored_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        [*MARGIN, "objective.likelihood_margin_beta=0.5", "objective.likelihood_margin=1"],
        ["objective.text_margin_weight=1", "objective.text_margin=0.1"],
        ["objective.hard_margin=0.1", "objective.hard_weight=0.5", "objective.hard_scope=global"],
        ["objective.exclude_other_positives=true", "objective.num_captions=2"],
        ["objective.contrastive_weight=0", "objective.text_pool=mean", "log.diagnostic_steps=5"],
        ["train.text_cache=texts", "train.cache_vision_features=true", "model.preset=stage1"],
    ],
)
def test_the_same_settings_are_accepted_where_something_reads_them(overrides):
    load_config(None, overrides)


@pytest.mark.parametrize("metric", ["eval_loss", "loss", "eval_win_rate/object", "eval_hard_negative_win_rate"])
def test_metrics_that_a_validation_logs_may_choose_the_best_checkpoint(metric):
    assert load_config(None, [*BEST, f"train.best_metric={metric}"]).train.best_metric == metric


def test_four_bit_is_refused_with_a_deepspeed_file_of_stage_3(tmp_path):
    plan = write(tmp_path, '{"zero_optimization": {"stage": 3}}', "plan.json")
    how = ["model.preset=stage2-lora", "model.load_in_4bit=true", f"train.deepspeed={plan}"]
    with pytest.raises(ConfigError, match="does not work with ZeRO-3"):
        load_config(None, how)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_is_a_valid_configuration(preset):
    assert load_config(None, [f"model.preset={preset}"]).model.preset == preset


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "llava15_7b").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_shipped_recipes_load(path):
    load_config(path)


def test_the_environment_does_not_change_a_configuration(monkeypatch, tmp_path):
    before = to_dict(load_config(None))
    for name in ("HACL_DATA", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "1")
    assert to_dict(load_config(None)) == before


def test_every_key_has_a_line_of_help():
    text = "\n".join(describe(Config))
    for name, item in fields(Config):
        assert f"{name} (" in text and item.metadata["help"]


def fields(schema, prefix=""):
    hints = typing.get_type_hints(schema)
    for item in dataclasses.fields(schema):
        if dataclasses.is_dataclass(hints[item.name]):
            yield from fields(hints[item.name], f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", item


def test_every_key_is_read_somewhere_in_the_package():
    read = keys_read()
    unread = [name for name, _ in fields(Config) if ".".join(name.split(".")[-2:]) not in read]
    assert not unread, f"accepted but never read: {unread}"
    assert not {"data.name", "log.path", "train.shape"} & read, "an attribute of something else is no reading"


def keys_read():
    """`section.field` wherever training reads `config.section.field` or the field of a variable called as its section.

    `vars(learning_rate)` reads all four rates.
    """
    names = {"rates": "learning_rate"}
    read = set()
    for path in [*(ROOT / "hacl/training").glob("*.py"), *(ROOT / "hacl/data").glob("*.py"), ROOT / "train.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, (ast.Attribute, ast.Name)):
                owner = node.value.attr if isinstance(node.value, ast.Attribute) else node.value.id
                read.add(f"{names.get(owner, owner)}.{node.attr}")
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "vars":
                if ast.unparse(node.args[0]).endswith("learning_rate"):
                    read |= {f"learning_rate.{name}" for name in ("vision", "projector", "llm", "heads")}
    return read


def test_the_reference_page_is_what_the_dataclasses_say():
    """Run `python -m hacl.config_reference > docs/configuration.md` after a change of a key."""
    from hacl.config_reference import reference

    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == reference()
    assert all(f"| `{key}` |" in page for key in ("model.path", "model.lora.rank", "train.grad_cache_chunk"))
