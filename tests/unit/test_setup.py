"""Promises about the set-up scripts: they say what they do, run twice safely, and never swap one torch for another.

No test installs anything: the environments here hold empty distributions and a `pip` that writes down its arguments.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PINS = dict(
    line.split("==")
    for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    if "==" in line
)

# Writes its arguments to pip.log, "installs" every name==version it is given, and does what PIP_ALSO says.
FAKE_PIP = """
import os, pathlib, sys
site = pathlib.Path(__file__).resolve().parents[1]
if "--version" not in sys.argv:
    with open(site / "pip.log", "a") as log:
        log.write(" ".join(sys.argv[1:]) + "\\n")
    for argument in [*sys.argv, *os.environ.get("PIP_ALSO", "").split()]:
        name, _, version = argument.partition("==")
        if version:
            for old in site.glob(f"{name}-*.dist-info"):
                (old / "METADATA").unlink()
                old.rmdir()
            (site / f"{name}-{version}.dist-info").mkdir()
            (site / f"{name}-{version}.dist-info" / "METADATA").write_text(
                f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n"
            )
"""


class Environment:
    """A throw-away environment with the fake pip, and the set-up script pointed at it."""

    def __init__(self, folder: Path):
        self.folder = folder
        venv.create(folder, with_pip=False)
        self.site = next(folder.glob("lib/python*/site-packages"))
        (self.site / "pip").mkdir()
        (self.site / "pip" / "__main__.py").write_text(FAKE_PIP)
        (self.site / "pip" / "__init__.py").write_text("")

    def install(self, name: str, version: str) -> None:
        info = self.site / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    def set_up(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return run_setup(*arguments, HACL_VENV=str(self.folder), **variables)

    def pip_calls(self) -> list[str]:
        log = self.site / "pip.log"
        return log.read_text().splitlines() if log.exists() else []


def run_setup(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HACL_")}
    return subprocess.run(
        ["bash", str(ROOT / "scripts" / "setup.sh"), *arguments],
        env={**clean, **variables},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def environment(tmp_path):
    return Environment(tmp_path / "venv")


def test_the_torch_pair_is_installed_at_its_pins_before_the_project(environment):
    done = environment.set_up()
    assert done.returncode == 0, done.stderr
    pair, project = environment.pip_calls()
    assert pair == f"install torch=={PINS['torch']} torchvision=={PINS['torchvision']}"
    assert project.endswith("-e .")
    assert "installing" in done.stdout and "done" in done.stdout


def test_running_twice_installs_once_and_says_so(environment):
    environment.set_up("dev")
    before = environment.pip_calls()
    again = environment.set_up("dev")
    assert again.returncode == 0 and "up to date" in again.stdout
    assert environment.pip_calls() == before


def test_an_environment_for_testing_also_serves_for_running_but_not_the_other_way_round(environment):
    environment.set_up()
    assert "up to date" not in environment.set_up("dev").stdout
    assert "up to date" in environment.set_up().stdout
    assert environment.pip_calls()[-1].endswith("-e .[dev]")


def test_a_torch_build_that_fits_the_pin_is_kept(environment):
    environment.install("torch", PINS["torch"] + "+cpu")
    environment.install("torchvision", PINS["torchvision"] + "+cpu")
    done = environment.set_up(HACL_TORCH_INDEX="https://example.org/other")
    assert done.returncode == 0, done.stderr
    assert "HACL_TORCH_INDEX is not used" in done.stdout
    assert len(environment.pip_calls()) == 1 and "torch==" not in environment.pip_calls()[0]


def test_another_torch_is_refused_and_left_alone(environment):
    environment.install("torch", "1.0.0")
    done = environment.set_up()
    assert done.returncode != 0 and environment.pip_calls() == []
    assert "torch 1.0.0" in done.stderr and PINS["torch"] in done.stderr and "HACL_VENV" in done.stderr


def test_another_torch_is_refused_even_after_a_good_set_up(environment):
    environment.set_up()
    shutil.rmtree(environment.site / f"torch-{PINS['torch']}.dist-info")
    environment.install("torch", "9.9.9")
    assert environment.set_up().returncode != 0


def test_a_pip_that_swaps_torch_behind_our_back_is_an_error(environment):
    environment.install("torch", PINS["torch"] + "+cpu")
    environment.install("torchvision", PINS["torchvision"] + "+cpu")
    done = environment.set_up(PIP_ALSO=f"torch=={PINS['torch']}")
    assert done.returncode != 0 and "pip replaced torch" in done.stderr
    assert "up to date" not in environment.set_up().stdout


def test_the_index_for_torch_is_used_for_the_torch_pair_only(environment):
    environment.set_up(HACL_TORCH_INDEX="https://example.org/cpu")
    pair, project = environment.pip_calls()
    assert "--index-url https://example.org/cpu" in pair
    assert "--index-url" not in project


def test_a_folder_that_is_no_environment_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    done = run_setup(HACL_VENV=str(tmp_path / "folder"))
    assert done.returncode != 0 and "no Python environment" in done.stderr
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_python_of_another_version_is_refused_by_name(tmp_path):
    old = tmp_path / "python-old"
    old.write_text('#!/bin/sh\ncase "$2" in *platform*) echo 3.8.1;; *) exit 1;; esac\n')
    old.chmod(0o755)
    done = run_setup(HACL_VENV=str(tmp_path / "venv"), HACL_PYTHON=str(old))
    assert done.returncode != 0 and "3.8.1" in done.stderr and "3.11" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_a_missing_python_is_refused_by_name(tmp_path):
    done = run_setup(HACL_VENV=str(tmp_path / "venv"), HACL_PYTHON="no-such-python")
    assert done.returncode != 0 and "no-such-python" in done.stderr


def test_an_unknown_extra_is_refused(tmp_path):
    done = run_setup("everything", HACL_VENV=str(tmp_path / "venv"))
    assert done.returncode != 0 and "everything" in done.stderr


@pytest.mark.parametrize("name", ["quickstart.sh", "test.sh"])
def test_help_of_the_two_commands_sets_nothing_up(name, tmp_path):
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / name), "--help"],
        env={**os.environ, "HACL_VENV": str(tmp_path / "venv")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and f"bash scripts/{name}" in done.stdout
    assert not (tmp_path / "venv").exists()


def test_ci_runs_the_test_command_of_the_readme():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    last = (ROOT / ".ci" / "run").read_text().splitlines()[-1]
    assert last == "exec bash scripts/test.sh"
    assert "bash scripts/test.sh" in (ROOT / "README.md").read_text()
