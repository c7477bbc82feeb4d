"""The training command with bad input: a clear error line that says what to do, and no lost work."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.e2e.helpers import edited, losses, refuses
from tests.tiny import build_tiny_model

pytestmark = pytest.mark.slow


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


def test_a_data_error_after_training_started_loses_no_step(command, capsys, monkeypatch):
    from hacl.data import dataset

    genuine, calls = dataset.load_image, []

    def damaged(path):
        calls.append(path)
        if len(calls) > 11:
            raise ValueError(f"{path}: truncated or damaged image")
        return genuine(path)

    monkeypatch.setattr(dataset, "load_image", damaged)
    message = refuses(command, capsys, "train.save_steps=0")
    assert "truncated or damaged image" in message and "is saved in" in message
    done = max(losses(command.run))
    assert (command.run / f"checkpoint-{done}/manifest.json").is_file() and done < 4
    monkeypatch.setattr(dataset, "load_image", genuine)
    assert command("train.save_steps=0") == 0
    assert sorted(losses(command.run)) == [1, 2, 3, 4]


def test_a_loss_that_is_not_finite_ends_the_run_with_an_error_line(command, capsys):
    message = refuses(command, capsys, "model.learning_rate.projector=1e30", "train.max_grad_norm=0")
    assert message.splitlines()[-1].startswith("error: the loss or the gradient norm is not finite at step 2")


def test_a_mistyped_model_folder_is_a_clear_error(command, capsys, tmp_path):
    message = refuses(command, capsys, f"model.path={tmp_path / 'absent'}")
    assert "error: model.path: no such folder" in message


def test_records_without_hallucinated_captions_train_beside_others_where_that_is_permitted(command, records, tmp_path):
    path = edited(records, tmp_path, lambda lines: [line.pop("hallucinated", None) for line in lines[:3]])
    assert command(f"data.path={path}", "data.allow_missing_hallucinated=0.5") == 0
    assert len(losses(command.run)) == 4


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


def test_starting_anew_in_a_used_folder_is_refused_and_says_what_to_do(command, capsys):
    assert command() == 0
    before = (command.run / "checkpoint-4/manifest.json").read_text()
    message = refuses(command, capsys, "train.resume=none", "train.seed=1")
    assert "already holds checkpoint-2, checkpoint-4" in message and "choose another train.output_dir" in message
    assert (command.run / "checkpoint-4/manifest.json").read_text() == before


def test_a_cut_off_weight_file_is_named(command, capsys, tiny_llava, tmp_path):
    copied = Path(shutil.copytree(tiny_llava, tmp_path / "cut"))
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-500])
    message = refuses(command, capsys, f"model.path={copied}")
    assert "cut/model.safetensors is damaged or incomplete" in message
