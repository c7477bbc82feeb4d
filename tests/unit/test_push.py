"""Promises of scripts/push.py: only a verified export goes out, private unless asked, and nothing without a yes."""

from types import SimpleNamespace

import pytest

from hacl.training import push
from scripts import push as command


class Hub:
    """What `HfApi` was asked for."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def call(*arguments, **options):
            self.calls.append((name, arguments, options))
            return SimpleNamespace(commit_url="https://hub/commit/1")

        return call


@pytest.fixture
def folder(tmp_path):
    """An exported folder as far as names go."""
    out = tmp_path / "model"
    (out / "hacl").mkdir(parents=True)
    for name in ("config.json", "README.md", "hacl/verified.json"):
        (out / name).write_text("{}")
    (out / "model.safetensors").write_bytes(b"weights")
    return out


@pytest.fixture
def hub(monkeypatch):
    found = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: found)
    return found


def test_a_verified_export_goes_out_whole_in_one_commit_and_private(folder, hub, capsys):
    assert command.main([str(folder), "--to", "me/model", "--yes"]) == 0
    (created, uploaded) = hub.calls
    assert created[0] == "create_repo" and created[1] == ("me/model",) and created[2]["private"] is True
    assert uploaded[0] == "upload_folder" and uploaded[2]["folder_path"] == str(folder)
    shown = capsys.readouterr().out
    assert "model.safetensors" in shown and "https://hub/commit/1" in shown


def test_a_public_one_and_a_branch_are_asked_for(folder, hub):
    assert command.main([str(folder), "--to", "me/model", "--yes", "--public", "--branch", "v2"]) == 0
    assert hub.calls[0][2]["private"] is False and hub.calls[-1][2]["revision"] == "v2"


@pytest.mark.parametrize("answer", ["", "n", "yes please"])
def test_nothing_goes_out_without_a_yes(folder, hub, monkeypatch, answer):
    monkeypatch.setattr("builtins.input", lambda prompt: answer)
    assert command.main([str(folder), "--to", "me/model"]) == 1 and not hub.calls


def test_nothing_goes_out_where_nobody_can_answer(folder, hub, monkeypatch, capsys):
    def closed(prompt):
        raise EOFError

    monkeypatch.setattr("builtins.input", closed)
    assert command.main([str(folder), "--to", "me/model"]) == 2 and not hub.calls
    assert "--yes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "hacl/verified.json").unlink(), "was not verified"),
        (lambda f: (f / "README.md").unlink(), "no exported model with its card"),
        (lambda f: (f / "hacl/old.bin").write_bytes(b""), "may hold pickled objects"),
        (lambda f: (f / "secret").symlink_to("/etc/hostname"), "points elsewhere"),
    ],
)
def test_what_is_no_safe_export_is_refused(folder, hub, spoil, message, capsys):
    spoil(folder)
    assert command.main([str(folder), "--to", "me/model", "--yes"]) == 2 and not hub.calls
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["model", "a/b/c", "../x", "me/", "https://hub/me/model"])
def test_a_name_is_owner_and_name(folder, name):
    with pytest.raises(ValueError, match="expected owner/name"):
        push.check(folder, name)
