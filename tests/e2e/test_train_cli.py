"""The training command on tiny models, as a user would call it: trains, resumes, refuses bad input, loses no work."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import train
from tests.tiny import build_tiny_model, write_tiny_records

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return write_tiny_records(tmp_path_factory.mktemp("records"), 16, text_only=4)


@pytest.fixture
def command(tiny_llava, records, tmp_path):
    """main([...]) with a tiny configuration; overrides are appended. Returns the exit status."""
    settings = {
        "model": {"path": str(tiny_llava)},
        "data": {"path": [str(records)]},
        "train": {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 4,
            "per_device_batch_size": 4,
            "save_steps": 2,
            "scheduler": "constant",
        },
        "log": {"steps": 1},
    }
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(settings), encoding="utf-8")

    def call(*overrides):
        return train.main([str(path), *overrides])

    call.run = tmp_path / "run"
    return call


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


PRESETS = {
    "stage1": [],
    "stage1-vision": [],
    "stage1-llm": ["objective.form=strict", "train.gradient_checkpointing=true"],
    "stage2": ["data.prompt=what is it ?", "train.grouping=modality"],
    "stage2-lora": ["model.lora.rank=4", "train.grouping=length", "train.gradient_accumulation_steps=2"],
    "posthoc": ["train.bf16=true", "train.cache_vision_features=true"],
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
    expected += " samples_per_second tokens_per_second padding_percent memory_gib learning_rate/projector grad_norm"
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
    tokens = prediction.batch["rows"] * prediction.batch["tokens_per_row"]
    assert prediction.tflops > 2 * 2 * decoder * tokens / 1e12


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


# Bad input: a clear error, and no lost work.


def refuses(command, capsys, *overrides):
    assert command(*overrides) == 2
    return capsys.readouterr().err


def edited(records, folder, change):
    """A copy of the records with one line changed."""
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    change(lines)
    shutil.copytree(records.parent / "images", folder / "images")
    path = folder / "edited.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_an_unknown_key_is_refused(command, capsys):
    assert "did you mean 'objective.hard_scope'" in refuses(command, capsys, "objective.hard_scop=own")


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda lines: lines[3].update(image="images/absent.png"), ["sample-3", "absent.png"]),
        (lambda lines: lines[3].update(image="../outside.png"), ["sample-3", "outside.png"]),
        (lambda lines: lines[5].update(hallucinated=[]), ["sample-5", "no hallucinated caption"]),
        (lambda lines: lines[2].update(captions=[""]), ["edited.jsonl", "3"]),
    ],
    ids=["missing image", "image outside the root", "no hallucinated caption", "empty caption"],
)
def test_a_bad_record_is_named_before_training(command, capsys, records, tmp_path, change, words):
    message = refuses(command, capsys, f"data.path={edited(records, tmp_path, change)}")
    assert all(word in message for word in words), message


def test_a_truncated_image_is_named(command, capsys, records, tmp_path):
    path = edited(records, tmp_path, lambda lines: None)
    image = path.parent / "images/7.png"
    image.write_bytes(image.read_bytes()[:60])
    message = refuses(command, capsys, f"data.path={path}", "train.max_steps=5")
    assert "sample-7" in message and "7.png" in message


def test_a_processor_with_the_wrong_image_token_count_is_refused(command, capsys, tiny_llava, tmp_path):
    folder = tmp_path / "wrong"
    shutil.copytree(tiny_llava, folder)
    settings = json.loads((folder / "processor_config.json").read_text())
    settings["num_additional_image_tokens"] = 0
    (folder / "processor_config.json").write_text(json.dumps(settings))
    message = refuses(command, capsys, f"model.path={folder}")
    assert "wrong image-token count" in message and "15" in message and "16" in message


def test_another_models_checkpoint_is_not_resumed_and_not_touched(command, capsys, tmp_path):
    assert command() == 0
    before = sorted(path.name for path in command.run.iterdir())
    other = build_tiny_model(tmp_path / "other", "llava", seed=1)
    message = refuses(command, capsys, f"model.path={other}")
    assert "checkpoint of another model" in message
    assert sorted(path.name for path in command.run.iterdir()) == before


def test_changed_settings_are_not_silently_ignored_on_resume(command, capsys):
    assert command() == 0
    message = refuses(command, capsys, "model.learning_rate.projector=0.5")
    assert "model.learning_rate.projector: 0.001 there, 0.5 here" in message


def test_an_interrupted_checkpoint_is_skipped(command):
    assert command() == 0
    before = losses(command.run)
    (command.run / "checkpoint-4/heads.safetensors").write_bytes(b"cut")
    assert command() == 0
    assert losses(command.run) == before


def test_a_foreign_checkpoint_folder_is_not_resumed(command, capsys, tmp_path):
    message = refuses(command, capsys, f"train.resume={tmp_path / 'elsewhere/checkpoint-1'}")
    assert "only checkpoints inside train.output_dir" in message


def test_four_bit_without_a_gpu_is_a_clear_error(command, capsys):
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is present")
    message = refuses(command, capsys, "model.preset=stage2-lora", "model.lora.rank=4", "model.load_in_4bit=true")
    assert "needs a CUDA device" in message
