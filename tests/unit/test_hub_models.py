"""Promises of models named by hub:owner/name@REVISION: fetched when the cache is cold, pinned, safetensors only."""

import fnmatch
import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from hacl.compare.comparison import Comparison, ComparisonSettings
from hacl.config import Config, load_config
from hacl.evaluation.runner.source import find_model
from hacl.models.identity import fingerprint, model_folder, parse_hub
from hacl.training.build import pin_revision
from hacl.training.export import base_folder, load_finetuned
from hacl.training.manifest import read_manifest, write_manifest
from tests.tiny import build_tiny_model

OLD, NEW = "a" * 40, "b" * 40
NAME = "someone/tiny"


class Hub:
    """A stand-in for the Hub: two commits of one repository, `main` is the newer, and a local cache that starts cold.

    It keeps snapshot_download's layout (snapshots/COMMIT, refs/main) and its rule for patterns.
    """

    def __init__(self, commits: dict[str, Path], cache: Path):
        self.commits, self.repository, self.online = commits, cache / "models--someone--tiny", True
        self.asked: list[str | None] = []

    def snapshot_download(self, name, *, revision=None, allow_patterns, ignore_patterns):
        assert name == NAME
        self.asked.append(revision)
        commit = revision if revision in self.commits else {None: NEW, "main": NEW, "v1": OLD}[revision]
        place = self.repository / "snapshots" / commit
        if not self.online:
            if not place.is_dir():
                raise LocalEntryNotFoundError("Cannot find an appropriate cached snapshot folder")
            return str(place)
        for file in self.commits[commit].rglob("*"):
            inside = file.relative_to(self.commits[commit]).as_posix()
            wanted = any(fnmatch.fnmatch(inside, pattern) for pattern in allow_patterns)
            refused = any(fnmatch.fnmatch(inside, pattern) for pattern in ignore_patterns)
            if file.is_file() and wanted and not refused and not (place / inside).exists():
                (place / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place / inside)
        if revision not in self.commits:
            ref = self.repository / "refs" / (revision or "main")
            ref.parent.mkdir(exist_ok=True)
            ref.write_text(commit)
        return str(place)


@pytest.fixture
def hub(tiny_llava, tmp_path, monkeypatch):
    """The older commit is tiny_llava, the newer has other weights; both also hold what must not be fetched."""
    commits = {OLD: tmp_path / "old", NEW: tmp_path / "new"}
    shutil.copytree(tiny_llava, commits[OLD])
    build_tiny_model(commits[NEW], "llava", seed=7)
    for folder in commits.values():
        (folder / "pytorch_model.bin").write_bytes(b"pickle")
        (folder / "modeling.py").write_text("raise SystemExit")
    cache = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    made = Hub(commits, cache)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    return made


def test_a_model_of_the_hub_is_fetched_and_answers_on_a_machine_that_has_never_seen_it(hub):
    source = find_model(f"hub:{NAME}@{OLD}")
    assert (source.kind, source.path, source.revision) == ("hub", NAME, OLD)
    assert source.fingerprint == fingerprint(hub.commits[OLD]) and source.describe()["revision"] == OLD
    fetched = {path.name for path in source.folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= fetched
    assert not fetched & {"pytorch_model.bin", "modeling.py"}
    stored = find_model(str(hub.commits[OLD])).load()
    for name, weights in source.load().state_dict().items():
        assert torch.equal(weights, stored.state_dict()[name])
    assert source.processor().tokenizer("there is a dog")["input_ids"]


def test_without_a_network_a_filled_cache_goes_on_working_and_a_cold_one_says_what_to_do(hub):
    hub.online = False
    with pytest.raises(FileNotFoundError, match=f"{NAME}@{OLD}: cannot be fetched.*not in the local cache"):
        find_model(f"hub:{NAME}@{OLD}")
    hub.online = True
    known = find_model(f"hub:{NAME}@{OLD}")
    hub.online = False
    again = find_model(f"hub:{NAME}@{OLD}")
    assert again == known and again.load().dtype == torch.float32


def test_a_cache_that_transformers_filled_is_enough(hub, monkeypatch):
    folder = model_folder(NAME, OLD)

    def incomplete(*_, **__):
        raise LocalEntryNotFoundError("the cached snapshot is missing some of the requested files")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", incomplete)
    assert model_folder(NAME, OLD) == folder
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    with pytest.raises(FileNotFoundError, match="model-00001-of-00002.safetensors is missing in the local cache"):
        model_folder(NAME, OLD)


def test_a_repository_with_pickles_alone_is_refused(hub):
    (hub.commits[OLD] / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"{NAME}@{OLD}: no .safetensors weights.*pickle"):
        find_model(f"hub:{NAME}@{OLD}")


def test_an_unpinned_model_is_used_at_one_commit_and_a_warning_says_how_to_pin_it(hub):
    with pytest.warns(UserWarning, match=f"no revision given.*hub:{NAME}@{NEW}"):
        source = find_model(f"hub:{NAME}")
    assert source.revision == NEW and source.folder.name == NEW
    assert find_model(f"hub:{NAME}@v1").revision == OLD


@pytest.mark.parametrize("wrong", ["hub:", "hub:a/b/c", "hub:owner/name@", "hub:../up"])
def test_a_name_that_is_none_is_refused(wrong):
    with pytest.raises((ValueError, FileNotFoundError), match="hub:owner/name@REVISION"):
        parse_hub(wrong)


def checkpoint_of(base: str, revision: str | None, weights: Path, folder: Path) -> Path:
    """A checkpoint of `base` at `revision` that trained nothing but the output map."""
    from safetensors.torch import save_file

    config = Config()
    config.model.path, config.model.revision, config.data.template = base, revision, "plain"
    found = folder / "run" / "checkpoint-2"
    found.mkdir(parents=True)
    trained = find_model(str(weights)).load().get_parameter("lm_head.weight").detach() + 1.0
    save_file({"lm_head.weight": trained}, found / "trained.safetensors", metadata={"format": "pt"})
    write_manifest(found, config, base=fingerprint(weights), data="d", step=2, ranks=1)
    return found


def test_a_run_from_a_pinned_model_is_evaluated_exported_and_diagnosed_at_that_revision(hub, tmp_path):
    from hacl.evaluation.diagnose import _load
    from hacl.training.export import export_checkpoint

    checkpoint = checkpoint_of(NAME, OLD, hub.commits[OLD], tmp_path)
    source = find_model(str(checkpoint))
    assert (source.base, source.revision) == (NAME, OLD) and source.describe()["revision"] == OLD
    trained = source.load().get_parameter("lm_head.weight")
    assert torch.equal(trained, load_finetuned(checkpoint)[0].get_parameter("lm_head.weight"))
    assert source.processor() is not None and base_folder(read_manifest(checkpoint)).name == OLD
    assert torch.equal(_load(checkpoint, None, "cpu")[0].get_parameter("lm_head.weight"), trained)
    assert set(hub.asked) == {OLD}
    out = export_checkpoint(checkpoint, tmp_path / "model", verify=False)
    assert torch.equal(find_model(str(out)).load().get_parameter("lm_head.weight"), trained)
    assert f"{NAME}@{OLD}" in (out / "README.md").read_text() and set(hub.asked) == {OLD}


def test_the_base_of_a_run_may_be_given_with_its_revision_and_another_revision_is_refused(hub, tmp_path):
    checkpoint = checkpoint_of(str(hub.commits[OLD]), None, hub.commits[OLD], tmp_path)
    assert find_model(str(checkpoint), base=f"hub:{NAME}@{OLD}").load() is not None
    with pytest.raises(ValueError, match="trained from another model"):
        find_model(str(checkpoint), base=f"hub:{NAME}@{NEW}").load()
    with pytest.raises(ValueError, match="whole model"):
        find_model(f"hub:{NAME}@{OLD}", base=str(hub.commits[OLD]))


def test_an_adapter_over_a_pinned_model_is_compared_with_it_in_one_load(hub, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = find_model(f"hub:{NAME}@{OLD}").load()
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=r".*language_model.*q_proj", init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "adapter")
    settings = ComparisonSettings(
        f"hub:{NAME}@{OLD}", str(tmp_path / "adapter"), records="r.jsonl", image_root=".", out=str(tmp_path / "out")
    )
    comparison = Comparison(settings)
    first, second = comparison.sources
    assert comparison.one_load and (first.revision, second.revision) == (OLD, OLD)
    whole = replace(settings, base=f"hub:{NAME}@{NEW}")
    assert not Comparison(whole).one_load and Comparison(whole).sources[1].revision == NEW


def test_training_from_the_hub_keeps_the_commit_it_began_with(hub, capsys):
    config = load_config(None, [f"model.path={NAME}", "data.path=x.jsonl", "train.output_dir=run"])
    pin_revision(config.model)
    assert config.model.revision == NEW and f"model.revision={NEW}" in capsys.readouterr().err
    config.model.revision = "v1"
    pin_revision(config.model)
    assert config.model.revision == OLD and capsys.readouterr().err == ""
    config.model.path, config.model.revision = str(hub.commits[OLD]), None
    pin_revision(config.model)
    assert config.model.revision is None
