"""Promises of scripts/evaluate.py: any of our models in, replies kept and scored, clear errors, nothing done twice."""

import json
import shutil

import pytest
import torch

from hacl.evaluation.runner.source import ModelSource, find_model
from hacl.steering import MeanSteerer, Provenance, TableSteerer, save_steerer
from scripts.evaluate import main
from tests.tiny import write_tiny_records

WORDS = ["--prompt", "chair=text:describe", "--prompt", "caption_margin=none", "--max-new-tokens", "6"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    path = write_tiny_records(folder, 4)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for name in ("chair", "caption_margin"):
        (folder / name).mkdir()
        lines = [json.dumps(row | {"objects": {"square": 1}}) + "\n" for row in rows]
        (folder / name / "records.jsonl").write_text("".join(lines))
    (folder / "chair" / "vocabulary.json").write_text('{"square": "square", "circle": "circle"}')
    (folder / "pope").mkdir()
    for split in ("random", "popular"):
        questions = [
            {"question_id": n, "image": f"{n % 4}.png", "text": f"is there a {shape} ?", "label": label}
            for n, (shape, label) in enumerate([("square", "yes"), ("circle", "no"), ("cross", "no")])
        ]
        lines = [json.dumps(question) + "\n" for question in questions]
        (folder / "pope" / f"tiny_pope_{split}.json").write_text("".join(lines))
    (folder / "sugarcrepe").mkdir()
    pair = {"filename": "0.png", "caption": "a red square", "negative_caption": "a red circle"}
    (folder / "sugarcrepe" / "replace_obj.json").write_text(json.dumps({"0": pair, "1": pair | {"filename": "1.png"}}))
    (folder / "mmhal.json").write_text(json.dumps([{"question": "what is it ?", "image": "2.png"}]))
    return folder


def evaluate(model, data, out, *more, benchmarks="pope,chair,sugarcrepe,caption_margin,mmhal"):
    given = ["--model", str(model), "--benchmark", benchmarks, "--data", str(data), *WORDS, "--device", "cpu"]
    return main([*given, *(["--out", str(out)] if out else []), *more])


def test_a_run_writes_replies_reports_and_a_table_and_a_second_one_loads_no_model(
    tiny_llava, data, tmp_path, capsys, monkeypatch
):
    assert evaluate(tiny_llava, data, tmp_path / "run") == 0
    table = capsys.readouterr().out
    for name in ("pope", "mean", "CHAIRi", "replace_obj_accuracy", "relative", "margin_accuracy"):
        assert name in table
    replies = [json.loads(line) for line in (tmp_path / "run/pope/answers.jsonl").read_text().splitlines()]
    assert len(replies) == 3  # six questions in two splits, three of them different
    report = json.loads((tmp_path / "run/pope/report_random.json").read_text())
    assert set(report["tables"]["accuracy"]) == {"0.png", "1.png", "2.png"}
    assert report["meta"]["prompt"] == "question" and report["meta"]["prompt_version"] == 1
    run = report["run"]
    assert run["config"]["decoding"]["max_new_tokens"] == 6 and run["sessions"][0]["batch_size"] == 16
    assert run["model"]["fingerprint"] and run["versions"]["torch"] and len(run["inputs"]) == 2
    asked = [json.loads(line) for line in (tmp_path / "run/mmhal/predictions.jsonl").read_text().splitlines()]
    assert asked[0]["index"] == 0 and "model_answer" in asked[0]
    assert (tmp_path / "run" / "summary.csv").read_text().startswith("benchmark,part,metric,value,low,high\n")

    def refuse(*arguments, **options):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(ModelSource, "load", refuse)
    assert evaluate(tiny_llava, data, tmp_path / "run") == 0
    assert capsys.readouterr().out == table
    assert main(["--compare", str(tmp_path / "run"), str(tmp_path / "run")]) == 0
    assert "accuracy" in capsys.readouterr().out


def test_a_dry_run_shows_one_prompt_and_its_reply_and_writes_nothing(tiny_llava, data, tmp_path, capsys):
    assert evaluate(tiny_llava, data, tmp_path / "run", "--dry-run", benchmarks="pope,sugarcrepe") == 0
    text = capsys.readouterr().out
    assert "<image x 16>" in text and "'reply'" in text and "'total'" in text and not (tmp_path / "run").exists()


def test_the_batching_check_says_so_in_words(tiny_llava, data, capsys):
    assert evaluate(tiny_llava, data, None, "--check-batching", "3", "--batch-size", "2", benchmarks="pope") == 0
    assert "3 replies are the same at batch size 1 and 2" in capsys.readouterr().out


def test_other_settings_in_the_same_folder_are_refused(tiny_llava, data, tmp_path, capsys):
    assert evaluate(tiny_llava, data, tmp_path / "run", benchmarks="pope") == 0
    assert evaluate(tiny_llava, data, tmp_path / "run", "--temperature", "1", benchmarks="pope") == 2
    assert "decoding.temperature: 0.0 there, 1.0 here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--benchmark", "poep"], "did you mean 'pope'"),
        (["--model", "nowhere"], "no such folder"),
        (["--option", "pope.parsr=strict"], "did you mean 'parser'"),
        (["--option", "parser=strict"], "NAME.KEY=VALUE"),
        (["--prompt", "question"], "NAME=ID"),
        (["--images", "nowhere"], "--images nowhere"),
        (["--batch-size", "0"], "at least 1"),
        (["--temperature", "1", "--num-beams", "2"], "beams"),
    ],
)
def test_wrong_arguments_are_named(tiny_llava, data, tmp_path, capsys, wrong, said):
    assert evaluate(tiny_llava, data, tmp_path / "run", *wrong, benchmarks="pope") == 2
    assert said in capsys.readouterr().err


def test_an_adapter_is_merged_into_its_base(tiny_llava, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(tiny_llava)
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=r".*language_model.*q_proj", init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "adapter")
    source = find_model(str(tmp_path / "adapter"), base=str(tiny_llava))
    merged = source.load()
    ids = torch.tensor([[1, 5, 6, 7]])
    with torch.no_grad():
        assert torch.allclose(merged(input_ids=ids).logits, tuned.eval()(input_ids=ids).logits, atol=1e-5)
    assert source.kind == "adapter" and source.fingerprint != find_model(str(tiny_llava)).fingerprint
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(ValueError, match="only adapters saved as safetensors"):
        find_model(str(tmp_path / "adapter"), base=str(tiny_llava))


def test_a_checkpoint_is_its_base_with_the_trained_weights_and_its_own_prompt(tiny_llava, tmp_path):
    from safetensors.torch import save_file

    from hacl.config import Config
    from hacl.training.manifest import fingerprint, write_manifest

    config = Config()
    config.model.path, config.data.prompt, config.data.template = str(tiny_llava), "what is it ?", "plain"
    folder = tmp_path / "run" / "checkpoint-2"
    folder.mkdir(parents=True)
    name = "lm_head.weight"
    weights = find_model(str(tiny_llava)).load().get_parameter(name).detach() + 1.0
    save_file({name: weights}, folder / "trained.safetensors", metadata={"format": "pt"})
    write_manifest(folder, config, base=fingerprint(tiny_llava), data="d", step=2, ranks=1)
    for given in (folder, folder.parent):
        source = find_model(str(given))
        assert (source.kind, source.prompt, source.template) == ("checkpoint", "what is it ?", "plain")
    assert torch.equal(source.load().get_parameter(name), weights)
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match="neither a stock model"):
        find_model(str(folder.parent))


def test_replies_under_steering_are_those_of_a_steered_model_and_alpha_0_changes_nothing(
    tiny_llava, data, tmp_path, capsys
):
    vector = {1: 40 * torch.randn(1, 64, generator=torch.Generator().manual_seed(0))[0, : width_of(tiny_llava)]}
    artefact = tmp_path / "vector"
    save_steerer(MeanSteerer(vector), artefact, Provenance.of(tiny_llava, token_rule="drawn", config={}))
    steer = ("--steering", str(artefact))
    runs = {"plain": (), "zero": (*steer, "--alpha", "0"), "steered": steer}
    found = {}
    for name, more in runs.items():
        assert evaluate(tiny_llava, data, tmp_path / name, *more, benchmarks="chair") == 0
        lines = (tmp_path / name / "chair/answers.jsonl").read_text().splitlines()
        found[name] = {row["key"]: row["reply"] for row in map(json.loads, lines)}
    assert found["zero"] == found["plain"] and found["steered"] != found["plain"]
    run = json.loads((tmp_path / "steered/chair/run.json").read_text())
    assert run["config"]["steering"]["kind"] == "mean" and run["config"]["steering"]["alpha"] == 1.0
    capsys.readouterr()
    assert evaluate(tiny_llava, data, tmp_path / "plain", *steer, benchmarks="chair") == 2
    assert "steering" in capsys.readouterr().err
    assert evaluate(tiny_llava, data, tmp_path / "pairs", *steer, benchmarks="sugarcrepe") == 2
    assert "leave them out: sugarcrepe" in capsys.readouterr().err


def width_of(folder):
    return json.loads((folder / "config.json").read_text())["text_config"]["hidden_size"]


def test_vectors_that_go_by_question_reach_their_question_only(tiny_llava, data, tmp_path, capsys):
    """The two POPE splits share a picture and a question, so that one reply would otherwise serve two ids."""
    folder = tmp_path / "pope"
    folder.mkdir()
    rows = [{"question_id": n, "image": "0.png", "text": "is there a square ?", "label": "yes"} for n in range(3)]
    (folder / "tiny_pope_random.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    noise = torch.randn(width_of(tiny_llava), generator=torch.Generator().manual_seed(0))
    table = {1: torch.stack([0 * noise, 40 * noise, 0 * noise])}
    artefact = tmp_path / "table"
    where = Provenance.of(tiny_llava, token_rule="drawn", config={})
    save_steerer(TableSteerer(table, ["0", "1", "2"]), artefact, where)
    given = ["--model", str(tiny_llava), "--benchmark", "pope", "--data", f"pope={folder}", "--device", "cpu"]
    given += ["--images", str(data / "images"), "--max-new-tokens", "6", "--template", "plain"]
    assert main([*given, "--out", str(tmp_path / "plain")]) == 0
    assert main([*given, "--out", str(tmp_path / "steered"), "--steering", str(artefact)]) == 0

    def answers(name):
        path = next((tmp_path / name / "pope").glob("predictions*.jsonl"))
        return [row["answer"] for row in map(json.loads, path.read_text().splitlines())]

    (plain, same, again), steered = answers("plain"), answers("steered")
    assert plain == same == again == steered[0] == steered[2] != steered[1]
