"""Every family through the scripts that a user calls: training, export, capture, steering, evaluation, diagnosis.

`HACL_ALL_FAMILIES=1` runs them all; without it those of CORE do, which differ the most.
"""

import json
from pathlib import Path

import pytest
from PIL import Image

import train
from scripts import compare, diagnose, evaluate, export, steer
from tests.families import build, chosen
from tests.families.facts import FACTS
from tests.tiny import write_tiny_records

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Path:
    """Eight records; every other image is wider than high."""
    path = write_tiny_records(tmp_path_factory.mktemp("records"), 8)
    for index in range(0, 8, 2):
        file = path.parent / "images" / f"{index}.png"
        Image.open(file).resize((96, 40)).save(file)
    return path


@pytest.fixture(scope="module", params=chosen())
def base(request, tmp_path_factory) -> Path:
    """Folder of a tiny random model, named as its family."""
    return build(request.param, tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(scope="module")
def run(base, records, tmp_path_factory) -> Path:
    """Two steps of HACL: vision side as it is, projector, decoder and heads train."""
    folder = tmp_path_factory.mktemp("runs") / base.name
    (folder.parent / "run.yaml").write_text("{}")
    how = [
        str(folder.parent / "run.yaml"),
        "model.preset=stage1-llm",
        "train.max_steps=2",
        "train.per_device_batch_size=4",
        "log.steps=1",
    ]
    how += [f"model.path={base}", f"data.path={records}", f"train.output_dir={folder}", *settings(base)]
    assert train.main(how) == 0
    return folder


def template(base: Path) -> str:
    return "plain" if base.name == "paligemma" or FACTS[base.name].answer_mask == "no template" else "chat"


def settings(base: Path) -> list[str]:
    own = {
        "paligemma": ["objective.form=strict"],  # a prompt's tokens all see each other
        "blip_2_opt": ["data.max_length=511", "data.max_caption_length=64"],  # OPT has a table of positions
    }
    return [f"data.template={template(base)}", *own.get(base.name, [])]


def test_hacl_trains(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 2 and all(0 < loss < 100 for loss in losses)
    assert all(line["contrastive"] > 0 and line["effective_negatives"] > 0 for line in lines if "contrastive" in line)


def test_a_lora_run_and_a_full_run_export_to_what_stock_classes_load(base, run, records, tmp_path):
    lora = tmp_path / "lora"
    (tmp_path / "run.yaml").write_text("{}")
    how = [
        str(tmp_path / "run.yaml"),
        "model.preset=stage2-lora",
        "model.lora.rank=2",
        "train.max_steps=1",
        "train.per_device_batch_size=2",
    ]
    how += ["objective.contrastive_weight=1", "objective.num_hallucinated=1", "model.learning_rate.heads=1e-3"]
    how += [f"model.path={base}", f"data.path={records}", f"train.output_dir={lora}", *settings(base)]
    assert train.main(how) == 0
    for name, folder in (("full", run), ("merged", lora)):
        assert export.main(["--checkpoint", str(folder), "--out", str(tmp_path / name)]) == 0
        report = json.loads((tmp_path / name / "hacl/verified.json").read_text())
        assert report["unexpected_keys"] == report["missing_keys"] == [] and report["same_tokens"]
        assert report["max_logit_difference"] <= report["tolerance"]


def test_states_are_captured(base, records, tmp_path):
    how = ["--model", str(base), "--records", str(records), "--image-root", str(records.parent)]
    how += ["--select", "mean_generated", "mean_image", "last_prompt", "--template", template(base)]
    assert compare.main(["capture", *how, "--layers", "all", "--out", str(tmp_path / "store"), "--quiet"]) == 0
    manifest = json.loads((tmp_path / "store/manifest.json").read_text())
    assert manifest["complete"] and manifest["rows"] == 3 * 8 and not any(manifest["missing"].values())


def test_replies_are_steered(base, records, tmp_path):
    how = ["--model", str(base), "--records", str(records), "--images", str(records.parent), "--prompt", "describe"]
    how += ["--template", template(base)]
    states, vectors, replies = (str(tmp_path / name) for name in ("states", "vectors", "replies"))
    assert steer.main(["extract", *how, "--layers", "1", "--out", states]) == 0
    assert steer.main(["fit", "--data", states, "--method", "mean", "--out", vectors]) == 0
    words = ["--alpha", "0", "400", "--max-new-tokens", "8", "--batch-size", "4", "--out", replies]
    assert steer.main(["generate", *how, "--steer", vectors, *words]) == 0
    lines = [json.loads(line) for line in (tmp_path / "replies/predictions.jsonl").read_text().splitlines()]
    by_alpha = {alpha: [line["response"] for line in lines if line["alpha"] == alpha] for alpha in (0, 400)}
    assert len(by_alpha[0]) == len(by_alpha[400]) == 8 and by_alpha[0] != by_alpha[400]


@pytest.fixture(scope="module")
def benchmarks(records, tmp_path_factory) -> Path:
    """Three questions about the images of the records, in the layout of POPE."""
    folder = tmp_path_factory.mktemp("benchmarks")
    (folder / "pope").mkdir()
    questions = [
        {"question_id": n, "image": f"{n}.png", "text": f"is there a {shape} ?", "label": label}
        for n, (shape, label) in enumerate([("square", "yes"), ("circle", "no"), ("cross", "no")])
    ]
    text = "".join(json.dumps(question) + "\n" for question in questions)
    (folder / "pope" / "tiny_pope_random.json").write_text(text)
    return folder


def test_a_benchmark_is_answered_and_scored(base, records, benchmarks, tmp_path):
    how = ["--model", str(base), "--benchmark", "pope", "--data", str(benchmarks), "--limit", "2"]
    how += ["--images", str(records.parent / "images"), "--template", template(base), "--batch-size", "2"]
    assert evaluate.main([*how, "--max-new-tokens", "2", "--device", "cpu", "--out", str(tmp_path / "run")]) == 0
    answers = (tmp_path / "run/pope/answers.jsonl").read_text().splitlines()
    report = json.loads((tmp_path / "run/pope/report_random.json").read_text())
    assert len(answers) == 2 and set(report["tables"]["accuracy"]) == {"0.png", "1.png"}


def test_a_trained_run_is_diagnosed(run, records, tmp_path):
    how = ["--model", str(run), "--records", str(records), "--image-root", str(records.parent), "--limit", "2"]
    assert diagnose.main([*how, "--draws", "4", "--batch-size", "4", "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out/diagnosis.json").read_text())
