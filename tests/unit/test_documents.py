"""Promises about the documents: links resolve, and every command they show is one that exists with those options."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from hacl.config import Config, load_config

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```(?:bash|sh|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]\n]+\]\(([^)\s]+)\)")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def slug(heading: str) -> str:
    """The anchor that code hosts make of a heading."""
    text = re.sub(r"[`*_]", "", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


@cache
def anchors_of(path: Path) -> set[str]:
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)}


def commands_of(path: Path) -> list[list[str]]:
    """Words of every command line in a document's shell blocks; comments and continuation lines are resolved."""
    commands = []
    for block in BLOCK.findall(path.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words:
                commands.append(words)
    return commands


def script_call(words: list[str]) -> tuple[str, list[str]] | None:
    """(script, its arguments) of `python x.py ...`, also behind torchrun or deepspeed, and of `bash x.sh ...`."""
    if words[0].rsplit("/", 1)[-1] not in {"python", "torchrun", "deepspeed", "bash"}:
        return None
    for index, word in enumerate(words[1:], start=1):
        if word.endswith((".py", ".sh")):
            return word, words[index + 1 :]
    return None


ALL_COMMANDS = [(path, words) for path in DOCUMENTS for words in commands_of(path)]
CALLS = [(path, *call) for path, words in ALL_COMMANDS if (call := script_call(words))]


def ids(calls: list[tuple[Path, str, list[str]]]) -> list[str]:
    return [f"{name_of(path)}: {script} {' '.join(arguments)}"[:90] for path, script, arguments in calls]


@cache
def help_of(script: str, subcommand: str | None, *chosen: str) -> str:
    """chosen: options that decide which others there are."""
    words = [sys.executable, script, *([subcommand] if subcommand else []), *chosen, "--help"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_link_in_a_document_leads_somewhere(path):
    broken = []
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in anchors_of(there)):
            broken.append(target)
    assert not broken, f"{name_of(path)}: {broken}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_file_a_document_names_exists(path):
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:hacl/[\w./-]*\.py|(?:scripts|data_prep|configs|tests|docs)/[\w./-]*\w\.\w+))`", text))
    missing = sorted(file for file in named if not (ROOT / file).exists())
    assert not missing, f"{name_of(path)} names {missing}"


@pytest.mark.parametrize("call", CALLS, ids=ids(CALLS))
def test_every_documented_command_exists_and_knows_its_options(call):
    _, script, arguments = call
    assert (ROOT / script).is_file(), f"no such script: {script}"
    if not script.endswith(".py"):
        return
    subcommand = arguments[0] if arguments and re.fullmatch(r"[a-z][a-z_-]+", arguments[0]) else None
    if subcommand:
        assert re.search(rf"\b{subcommand}\b", help_of(script, None)), f"{script} has no {subcommand!r}"
    chosen = arguments[arguments.index("--backend") :][:2] if "--backend" in arguments else ()
    known = help_of(script, subcommand, *chosen)
    unknown = [a for a in arguments if a.startswith("--") and not re.search(rf"{re.escape(a.split('=')[0])}\b", known)]
    assert not unknown, f"{script} {subcommand or ''} does not know {unknown}"


TRAINING = [call for call in CALLS if call[1] == "train.py"]


@pytest.mark.parametrize("call", TRAINING, ids=ids(TRAINING))
def test_every_documented_training_command_has_a_configuration_that_loads(call):
    _, _, arguments = call
    positional = [argument for argument in arguments if not argument.startswith("--") and argument != "..."]
    files = [argument for argument in positional if argument.endswith((".yaml", ".yml")) and "=" not in argument]
    overrides = [argument for argument in positional if re.match(r"[a-z_.0-9]+=", argument)]
    if files and (ROOT / "configs").exists() and files[0].startswith("configs/"):
        assert isinstance(load_config(ROOT / files[0], overrides), Config)
    else:
        load_config(None, ["model.path=any", *overrides])


def test_every_page_is_reached_from_the_index_and_the_index_from_the_readme():
    index = ROOT / "docs" / "README.md"
    linked = {target.partition("#")[0] for target in LINK.findall(index.read_text(encoding="utf-8"))}
    orphans = {path.name for path in (ROOT / "docs").glob("*.md")} - linked - {index.name}
    assert not orphans, f"docs/README.md does not link {sorted(orphans)}"
    assert {"docs/README.md", "docs/tour.md"} <= set(LINK.findall((ROOT / "README.md").read_text(encoding="utf-8")))


def test_every_picture_in_a_document_is_there_and_none_is_left_over():
    shown = set()
    for path in DOCUMENTS:
        for target in re.findall(r"!\[[^\]\n]+\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).is_file(), f"{name_of(path)}: {target}"
            shown.add((path.parent / target).resolve())
    assert {path.resolve() for path in (ROOT / "docs/pictures").iterdir()} == shown


def test_the_documents_show_the_commands_that_matter():
    shown = {script for _, script, _ in CALLS}
    assert {"scripts/quickstart.sh", "scripts/test.sh", "train.py", "scripts/export.py"} <= shown
    assert {"data_prep/make_hallucinations.py", "data_prep/validate.py"} <= shown
