"""The training command on tiny models, as a user would call it: trains, resumes, predicts."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import train
from tests.e2e.helpers import edited, losses, replace_weights

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


PRESETS = {
    "stage1": [],
    "stage1-vision": ["objective.form=eos_branch", "objective.lm_loss=chunked"],
    "stage1-llm": ["objective.form=strict", "train.gradient_checkpointing=true"],
    "stage2": ["data.prompt=what is it ?", "train.grouping=modality"],
    "stage2-lora": ["model.lora.rank=4", "train.grouping=length", "train.gradient_accumulation_steps=2"],
    "posthoc": [
        "train.bf16=true",
        "train.cache_vision_features=true",
        "objective.share_prefixes=true",
        "train.cache_text_states=false",
    ],
}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_and_leaves_a_complete_checkpoint(command, preset):
    from hacl.training.manifest import newest_checkpoint

    assert command(f"model.preset={preset}", *PRESETS[preset]) == 0
    assert sorted(losses(command.run)) == [1, 2, 3, 4]
    checkpoint = newest_checkpoint(command.run)
    assert checkpoint.name == "checkpoint-4"
    names = {path.name for path in checkpoint.iterdir()}
    assert {"config.json", "tokenizer.json", "manifest.json"} <= names
    assert ("heads.safetensors" in names) == (not preset.startswith("stage2"))
    assert ("adapter" in names) == (preset == "stage2-lora")


def test_accumulating_micro_batches_gives_the_generation_loss_of_one_batch(command):
    how = ["model.preset=stage2", "train.max_steps=2", "train.epochs=2"]
    assert command(*how, "train.per_device_batch_size=8") == 0
    whole = losses(command.run)
    shutil.rmtree(command.run)
    assert command(*how, "train.per_device_batch_size=2", "train.gradient_accumulation_steps=4") == 0
    assert losses(command.run) == pytest.approx(whole, rel=1e-5)


def test_the_log_holds_every_loss_term_and_measure(command):
    assert command("model.preset=stage1") == 0
    line = json.loads((command.run / "metrics.jsonl").read_text().splitlines()[0])
    expected = "loss lm contrastive i2t t2i hard_negative_win_rate temperature positive_similarity negative_similarity"
    expected += " samples_per_second tokens_per_second label_tokens_per_second padding_percent data_wait_percent"
    expected += " seconds_per_step memory_gib learning_rate/projector grad_norm"
    assert set(expected.split()) <= set(line)
    assert line["loss"] == pytest.approx(line["lm"] + line["contrastive"], rel=1e-4)
    assert list((command.run / "tensorboard").iterdir())


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_resumed_run_continues_with_the_same_losses(command, lora):
    how = ["model.preset=stage1-llm"]
    if lora:
        how += ["model.lora.rank=4", "model.lora.dropout=0.1"]
    assert command(*how) == 0
    before = losses(command.run)
    shutil.rmtree(command.run / "checkpoint-4")
    assert command(*how) == 0
    after = losses(command.run)
    assert list(after) == [1, 2, 3, 4], "repeated steps are logged once"
    assert after == before


def test_new_weights_are_saved_over_a_checkpoint_of_the_same_step(command):
    """An older run left checkpoint-4; this one continues from checkpoint-2 and must not return the older weights."""
    from safetensors.torch import load_file

    assert command() == 0
    last = command.run / "checkpoint-4"
    stale = {name: torch.zeros_like(tensor) for name, tensor in load_file(last / "trained.safetensors").items()}
    replace_weights(last, stale)
    assert command("train.save_steps=0", f"train.resume={command.run / 'checkpoint-2'}") == 0
    assert any(tensor.any() for tensor in load_file(last / "trained.safetensors").values())


def test_a_run_that_goes_on_no_longer_names_the_checkpoint_it_had_finished_with(command, monkeypatch):
    from hacl.training.trainer import HaclTrainer

    assert command() == 0 and (command.run / "result.json").is_file()

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(HaclTrainer, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        command("train.max_steps=8")
    assert not (command.run / "result.json").exists()


def test_samples_of_repeated_steps_are_written_once(command):
    how = ["log.sample_steps=1", "log.sample_count=1", "log.sample_max_new_tokens=2"]
    assert command(*how) == 0
    shutil.rmtree(command.run / "checkpoint-4")
    assert command(*how) == 0
    rows = [json.loads(line) for line in (command.run / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]


def test_resuming_across_epochs_draws_the_same_captions(command, records, tmp_path):
    """Three captions and hallucinated captions per record, drawn anew in each epoch of two steps."""

    def more(lines):
        del lines[8:]
        for line in lines:
            line["captions"] += [f"{line['captions'][0]} {word}" for word in ("in the image", "of the picture")]
            line["hallucinated"] = [
                {"text": f"{line['hallucinated'][0]['text']} {word}", "type": "attribute", "of": of}
                for of, word in enumerate((".", "in the image", "of the picture"))
            ]

    path = edited(records, tmp_path, more)
    how = [f"data.path={path}", "train.max_steps=6", "train.save_steps=1", "train.save_total_limit=null"]
    how += ["objective.num_hallucinated=2", "train.cache_text_states=false", "model.preset=stage1-llm"]
    assert command(*how) == 0
    before = losses(command.run)
    for step in (2, 3):  # at the end of an epoch, and within one
        assert command(*how, f"train.resume={command.run / f'checkpoint-{step}'}") == 0
        assert losses(command.run) == before
    assert command(*how, "data.seed=1", f"train.output_dir={command.run}-other") == 0
    assert losses(command.run.with_name("run-other")) != before


def test_calling_a_finished_run_again_trains_nothing_and_returns_its_result(command, capsys):
    assert command() == 0
    before = (command.run / "metrics.jsonl").read_text()
    assert command() == 0
    assert "nothing left to do" in capsys.readouterr().out
    assert (command.run / "metrics.jsonl").read_text() == before


def test_instruction_data_of_every_shape_trains_in_one_batch(command, records, tmp_path):
    """Text only, several turns, two images, the image after the question, and captions with hallucinated captions."""
    path = edited(records, tmp_path, lambda lines: lines.extend(INSTRUCTIONS))
    how = ["model.preset=stage2", "objective.contrastive_weight=1", "objective.num_hallucinated=1"]
    how += ["model.learning_rate.heads=1e-3", "train.per_device_batch_size=23", "train.max_steps=2"]
    assert command(f"data.path={path}", *how) == 0
    assert len(losses(command.run)) == 2


INSTRUCTIONS = [
    {
        "id": "two images",
        "image": ["images/1.png", "images/2.png"],
        "conversations": [
            {"from": "human", "value": "<image> <image> what colour is the square ?"},
            {"from": "gpt", "value": "red"},
            {"from": "human", "value": "and the circle ?"},
            {"from": "gpt", "value": "green"},
        ],
    },
    {
        "id": "image after the question",
        "image": "images/3.png",
        "conversations": [{"from": "human", "value": "what is it ?\n<image>"}, {"from": "gpt", "value": "a cross"}],
    },
    {"id": "text", "conversations": [{"from": "human", "value": "how many ?"}, {"from": "gpt", "value": "two"}]},
]


def test_cached_features_and_text_states_train_like_live_ones(command):
    assert command("train.cache_vision_features=true") == 0
    cached = losses(command.run)
    shutil.rmtree(command.run)
    assert command("train.cache_text_states=false") == 0
    live = losses(command.run)
    assert cached == pytest.approx(live, rel=1e-5)


def test_the_best_checkpoint_is_kept_loaded_and_reported(command, records):
    assert command(f"data.eval_path={records}", "train.eval_steps=2", "train.best_metric=eval_loss") == 0
    result = json.loads((command.run / "result.json").read_text())
    lines = [json.loads(line) for line in (command.run / "metrics.jsonl").read_text().splitlines()]
    scores = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
    best = min((2, 4), key=scores.get)
    assert result["checkpoint"] == f"checkpoint-{best}"
    assert result["metrics"]["eval_loss"] == pytest.approx(scores[best], rel=1e-6)


def test_sample_captions_of_fixed_images_are_written_during_training(command):
    assert command("log.sample_steps=2", "log.sample_count=2", "log.sample_max_new_tokens=3") == 0
    rows = [json.loads(line) for line in (command.run / "samples.jsonl").read_text().splitlines()]
    assert [(row["step"], row["id"]) for row in rows] == [(s, f"sample-{i}") for s in (2, 4) for i in (0, 1)]


def test_a_dry_run_builds_everything_runs_one_batch_and_writes_nothing(command, capsys):
    assert train.main([str(command.run.parent / "run.yaml"), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "every trained parameter received a gradient" in shown and "ZeRO-3" in shown
    assert not command.run.exists()


def test_the_predicted_parameters_and_arithmetic_match_the_model(tiny_llava, records):
    from hacl.config import load_config
    from hacl.training.dryrun import predict
    from hacl.training.run import build_model, read_inputs

    config = load_config(None, [f"model.path={tiny_llava}", f"data.path={records}"])
    inputs = read_inputs(config)
    prediction, model = predict(config, inputs), build_model(config, inputs)
    assert prediction.total == sum(p.numel() for p in model.parameters())
    assert prediction.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    decoder = sum(p.numel() for b in model.adapter.blocks for p in b.parameters() if p.dim() > 1)
    assert prediction.tflops > 2 * 2 * decoder * prediction.batch["slots"] / 1e12
    assert prediction.tflops > prediction.minimal_tflops > 2 * 2 * decoder * prediction.batch["label_tokens"] / 1e12


def test_a_dry_run_predicts_a_seven_billion_model_without_its_weights(records, tiny_llava, tmp_path, capsys):
    from transformers import AutoProcessor, CLIPImageProcessor, CLIPVisionConfig, LlamaConfig, LlavaConfig

    folder = tmp_path / "seven"
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=32064, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
    )
    LlavaConfig(vision_config=vision, text_config=text, image_token_index=4).save_pretrained(folder)
    processor = AutoProcessor.from_pretrained(tiny_llava)
    processor.patch_size = 14
    processor.image_processor = CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    processor.save_pretrained(folder)
    recipe = str(ROOT / "configs/llava15_7b/stage1.yaml")
    assert train.main([recipe, "--dry-run", f"model.path={folder}", f"data.path={records}"]) == 0
    shown = capsys.readouterr().out
    assert "projector     20,979,712     20,979,712" in shown, "linear 1024-4096 and 4096-4096 with biases"
    assert "8,390,656" in shown, "two heads of 4096 x 1024 with biases"
    assert "ZeRO-3         13.56     6.78" in shown and "weights were not loaded" in shown


def test_help_names_every_setting_without_loading_torch(capsys):
    with pytest.raises(SystemExit) as status:
        train.main(["--help"])
    assert status.value.code == 0 and "objective.hard_scope" in capsys.readouterr().out


def test_a_rank_leaves_its_group_only_when_its_work_is_saved(command, monkeypatch):
    from hacl.training import runtime

    left = []
    monkeypatch.setattr(runtime, "leave_group", lambda: left.append((command.run / "result.json").is_file()))
    assert command() == 0
    assert left == [True]
