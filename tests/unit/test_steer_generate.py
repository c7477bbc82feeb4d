"""Promises about steer.py generate: what is written is what a session says, at every strength, once, for this model."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from hacl.evaluation.generation import Generator
from hacl.evaluation.runner.decoding import Decoding
from hacl.steering import ArtefactError, MeanSteerer, Provenance, TableSteerer, load_steerer, save_steerer, steering
from hacl.steering.vectors import read_steering_manifest
from hacl.study.commands import generate
from tests.reference.steering_inputs import WIDTH
from tests.tiny import SHAPES, build_tiny_model, write_tiny_records

ROOT = Path(__file__).resolve().parents[2]
IDS = [f"q{number}" for number in range(5)]


def steer(*words):
    """Run scripts/steer.py in this process; its exit status."""
    spec = importlib.util.spec_from_file_location("steer_script", ROOT / "scripts" / "steer.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script.main([str(word) for word in words])


@pytest.fixture(scope="module")
def given(tiny_llava, tmp_path_factory):
    """Folder with images, rows of unlike lengths (one without an image) and two artefacts: mean, table."""
    folder = tmp_path_factory.mktemp("given")
    write_tiny_records(folder, 6)
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    rows = []
    for number, name in enumerate(IDS):
        row = {"id": name, "prompt": "describe the " + " ".join(SHAPES[: 1 + number % 4])}
        image = records[number]["image"]
        rows.append(row if number == 3 else {**row, "image": image if isinstance(image, str) else image[0]})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw = torch.Generator().manual_seed(0)
    made = Provenance.of(tiny_llava, token_rule="test", config={})
    save_steerer(MeanSteerer({1: 2 * torch.randn(WIDTH, generator=draw)}, alpha=0.5), folder / "mean", made)
    table = {1: 2 * torch.randn(len(IDS), WIDTH, generator=draw)}
    save_steerer(TableSteerer(table, IDS, policy="last-1"), folder / "table", made)
    return folder


def run(model, given, out, *more, artefact="mean"):
    return steer("generate", "--model", model, "--steer", given / artefact, "--rows", given / "rows.jsonl", "--images",
                 given, "--max-new-tokens", 6, "--out", out, *more)  # fmt: skip


def lines(out):
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def texts(out):
    return {(row["id"], row["alpha"]): row["response"] for row in lines(out)}


def one_by_one(folder, given, alpha, artefact="mean", **settings):
    """What a session says to each prompt alone."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, processor = AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    generator = Generator(model, processor, decoding=Decoding(max_new_tokens=6, **settings))
    found = {}
    for line in (given / "rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        image = given / row["image"] if "image" in row else None
        with steering(model, load_steerer(given / artefact, model=folder), alpha=alpha) as s:
            with s.rows(sample_ids=[row["id"]]):
                reply = generator.replies([image], [row["prompt"]], names=[row["id"]])[0]
        found[row["id"], alpha] = reply.text
    return found


@pytest.mark.parametrize("artefact", ("mean", "table"))
@pytest.mark.parametrize("size", (4, 64))
def test_strengths_in_one_batch_say_what_each_says_alone(tiny_llava, given, tmp_path, artefact, size):
    assert run(tiny_llava, given, tmp_path, "--alpha", -3, 0, 3, "--batch-size", size, artefact=artefact) == 0
    found = texts(tmp_path)
    assert len(found) == 15
    for alpha in (-3.0, 3.0):
        assert one_by_one(tiny_llava, given, alpha, artefact).items() <= found.items()
    plain = {(name, 0.0): text for (name, _), text in one_by_one(tiny_llava, given, 0.0).items()}
    assert plain.items() <= found.items()
    assert any(found[name, 3.0] != found[name, 0.0] for name in IDS)


def test_every_line_names_what_made_it(tiny_llava, given, tmp_path):
    assert run(tiny_llava, given, tmp_path, "--seed", 7) == 0
    manifest = read_steering_manifest(given / "mean")
    for row in lines(tmp_path):
        assert row["alpha"] == 0.5 and row["policy"] == "all" and row["layers"] == [1] and row["seed"] == 7
        assert row["steering"] == manifest["sha256"] and row["model"] == manifest["provenance"]["model"]
    assert [row["id"] for row in lines(tmp_path)] == IDS


def test_sampled_strengths_share_their_noise_and_seeds_do_not(tiny_llava, given, tmp_path):
    sampled = ("--temperature", 1, "--alpha", 0, 1e-7)
    assert run(tiny_llava, given, tmp_path / "a", *sampled, "--batch-size", 3) == 0
    found = texts(tmp_path / "a")
    assert all(found[name, 0.0] == found[name, 1e-7] for name in IDS)
    assert run(tiny_llava, given, tmp_path / "b", *sampled, "--batch-size", 8) == 0
    assert texts(tmp_path / "b") == found
    assert run(tiny_llava, given, tmp_path / "c", *sampled, "--seed", 1) == 0
    assert texts(tmp_path / "c") != found


def test_an_interrupted_run_goes_on_and_writes_the_same_bytes(tiny_llava, given, tmp_path, monkeypatch, capsys):
    words = ("--alpha", -3, 3, "--batch-size", 2)
    assert run(tiny_llava, given, tmp_path / "whole", *words) == 0
    plain, asked = Generator.replies, []

    def dying(self, images, prompts, **named):
        if len(asked) == 4:
            raise KeyboardInterrupt
        asked.extend(prompts)
        return plain(self, images, prompts, **named)

    monkeypatch.setattr(Generator, "replies", dying)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_llava, given, tmp_path / "broken", *words)
    assert not (tmp_path / "broken" / generate.PREDICTIONS).exists()
    with (tmp_path / "broken" / "answers.rank0.jsonl").open("a") as stream:
        stream.write('{"key": "half a li')
    monkeypatch.setattr(Generator, "replies", plain)
    capsys.readouterr()
    assert run(tiny_llava, given, tmp_path / "broken", *words) == 0
    assert "6 of them made now" in capsys.readouterr().out
    whole, broken = ((tmp_path / name / generate.PREDICTIONS).read_bytes() for name in ("whole", "broken"))
    assert whole == broken


def test_more_strengths_are_added_to_a_folder_and_another_setting_is_refused(tiny_llava, given, tmp_path, capsys):
    assert run(tiny_llava, given, tmp_path, "--alpha", 1) == 0
    assert run(tiny_llava, given, tmp_path, "--alpha", 1, 2) == 0
    assert "5 of them made now" in capsys.readouterr().out
    assert run(tiny_llava, given, tmp_path, "--alpha", 1, "--policy", "generated") == 2
    assert "policy" in capsys.readouterr().err


def test_another_model_unknown_ids_and_missing_inputs_are_refused(tiny_llava, given, tmp_path, capsys):
    other = build_tiny_model(tmp_path / "other", "llava", seed=9)
    assert run(other, given, tmp_path / "x") == 2
    assert "made for the model" in capsys.readouterr().err
    with pytest.raises(ArtefactError):
        load_steerer(given / "mean", model=other)
    assert steer("generate", "--model", tiny_llava, "--steer", given / "table", "--records", given / "records.jsonl",
                 "--images", given, "--out", tmp_path / "y") == 2  # fmt: skip
    assert "no vector for sample id" in capsys.readouterr().err
    assert steer("generate", "--model", tiny_llava, "--steer", given / "mean", "--out", tmp_path / "z") == 2
    assert "--rows" in capsys.readouterr().err


def test_records_are_captioned(tiny_llava, given, tmp_path):
    assert steer("generate", "--model", tiny_llava, "--steer", given / "mean", "--records", given / "records.jsonl",
                 "--images", given, "--prompt", "describe the picture", "--limit", 2, "--max-new-tokens", 4,
                 "--out", tmp_path) == 0  # fmt: skip
    assert [row["prompt"] for row in lines(tmp_path)] == ["describe the picture"] * 2


def test_the_same_ids_with_other_words_are_asked_again(tiny_llava, given, tmp_path, capsys):
    assert run(tiny_llava, given, tmp_path / "out", "--alpha", 0.5) == 0
    rows = [json.loads(line) for line in (given / "rows.jsonl").read_text().splitlines()]
    other = tmp_path / "rows.jsonl"
    other.write_text("".join(json.dumps({**row, "prompt": "what is in the image ?"}) + "\n" for row in rows))
    again = ("generate", "--model", tiny_llava, "--steer", given / "mean", "--rows", other, "--images", given)
    assert steer(*again, "--max-new-tokens", 6, "--alpha", 0.5, "--out", tmp_path / "out") == 0
    assert f"{len(IDS)} of them made now" in capsys.readouterr().out.splitlines()[-2]
    assert steer(*again, "--max-new-tokens", 6, "--alpha", 0.5, "--out", tmp_path / "fresh") == 0
    assert texts(tmp_path / "out") == texts(tmp_path / "fresh")
