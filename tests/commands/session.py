"""Runs the commands of one page in one shell, in a folder of its own, through the warm Python."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chat_server import completion
from tests.commands import answers, models, world
from tests.commands.collect import ROOT, Command
from tests.commands.inputs import PAGES, Page
from tests.commands.table import APPENDED, STATUS, SUBSTITUTIONS, not_run

REPOSITORY = (
    "train.py",
    "scripts",
    "data_prep",
    "configs",
    "hacl",
    "tests",
    "pyproject.toml",
    ".venv",
)  # links to these
PLACES = ("--out", "--output", "--json", "--items")  # options that name what a command must leave behind
LIMIT = 420  # seconds that a command may take


@dataclass(frozen=True)
class Outcome:
    """What became of a command: its text as executed, exit status, seconds, both streams; absent: unwritten outputs."""

    command: Command
    executed: str
    status: int
    seconds: float
    output: str
    absent: tuple[str, ...] = ()

    @property
    def well(self) -> bool:
        return self.status == wanted_status(self.command) and not self.absent

    def __str__(self) -> str:
        tail = "\n".join(self.output.splitlines()[-25:])
        absent = f"\nnot written: {', '.join(self.absent)}" if self.absent else ""
        return f"{self.command}\nexecuted: {self.executed}\nexit status {self.status}{absent}\n{tail}"


class WarmPython:
    """The process of warm.py and the folder of programs that stand for python, torchrun and deepspeed."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.place = Path(tempfile.mkdtemp())  # the name of a socket must be short
        socket = self.place / "socket"
        self.programs = folder / "programs"
        self.programs.mkdir()
        client = ROOT / "tests" / "commands" / "client.py"
        self._program("python", f'exec {sys.executable} -S -E {client} "$@"')
        self._program("torchrun", 'exec python -m torch.distributed.run "$@"')
        self._program("deepspeed", 'exec python -m deepspeed.launcher.runner "$@"')
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("HACL_", "PYTEST", "COV_"))},
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "WARM_PYTHON": str(socket),
            "WARM_CLIENT": str(self.programs / "python"),
            "PYTHON_EXEC": str(self.programs / "python"),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "MPLBACKEND": "Agg",
        }
        self.log = (folder / "warm.log").open("w")
        words = [sys.executable, str(ROOT / "tests/commands/warm.py"), str(socket)]
        self.process = subprocess.Popen(
            words, stdout=self.log, stderr=self.log, env=self.environment, start_new_session=True
        )
        while not socket.exists():
            if self.process.poll() is not None:
                raise RuntimeError((folder / "warm.log").read_text())
            time.sleep(0.05)

    def _program(self, name: str, line: str) -> None:
        path = self.programs / name
        path.write_text(f"#!/bin/bash\n{line}\n", encoding="utf-8")
        path.chmod(0o755)

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.log.close()
        shutil.rmtree(self.place)


def judge(body: dict, asked: int) -> dict:
    """What the server of the tests says to a judge's request: in the form that each kind of judge is asked for."""
    return completion("safe" if "guard" in body["model"].lower() else "Rating: 5 [[A=B]]")


def substituted(command: Command) -> str:
    """The text that is executed: the table's substitutions, then the words it appends, line by line of a loop."""
    lines = []
    for line in command.text.replace("\\\n", " ").splitlines():
        for each in SUBSTITUTIONS:
            if each.page in (None, command.page):
                line = re.sub(each.pattern, each.by, line)
        for more in APPENDED:
            if re.search(more.pattern, line) and not (more.unless and re.search(more.unless, line)):
                line = f"{line} {more.words.format(line=command.line)}"
        lines.append(line)
    return "\n".join(lines)


def wanted_status(command: Command) -> int:
    return next((s.status for s in STATUS if s.page == command.page and s.start in " ".join(command.text.split())), 0)


def maker(kind: str) -> Callable[[Path], None]:
    """The function that makes an input of this kind."""
    return next(getattr(module, kind) for module in (world, models, answers) if hasattr(module, kind))


def furnish(page: Page, folder: Path, warm: WarmPython) -> None:
    """Make the folder of a page: links to the repository's programs, inputs, and what the commands `before` leave."""
    folder.mkdir(parents=True)
    for name in REPOSITORY:
        (folder / name).symlink_to(ROOT / name)
    for name, kind in page.inputs.items():
        if not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            maker(kind)(folder / name)
    if page.before:
        script = "set -e\n" + "\n".join(page.before)
        done = subprocess.run(
            ["bash", "-c", script], cwd=folder, env=warm.environment, capture_output=True, text=True, timeout=LIMIT
        )
        if done.returncode:
            raise RuntimeError(f"before: {script}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def run_page(
    name: str, commands: Sequence[Command], folder: Path, warm: WarmPython, variables: Mapping[str, str]
) -> list[Outcome]:
    """Execute a page's commands in order, in one shell; those that the table lists as not run are passed over."""
    page = PAGES[name]
    furnish(page, folder, warm)
    logs = folder.parent / "logs"
    logs.mkdir(exist_ok=True)
    chosen = [command for command in commands if not not_run(command)]
    lines = []
    for number, command in enumerate(chosen):
        log = logs / f"{folder.name}-{number}.log"
        lines += [f"exec >{log} 2>&1", "begin=$EPOCHREALTIME", substituted(command)]
        lines += [f'echo "{number} $? $begin $EPOCHREALTIME" >>{logs / folder.name}.status']
    status = logs / f"{folder.name}.status"
    status.write_text("")
    shell = subprocess.Popen(
        ["bash", "-c", "\n".join(lines)],
        cwd=folder,
        env={**warm.environment, "HACL_DATA": str(folder / "data"), **variables},
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _wait(shell, status)
    found = {int(line.split()[0]): line.split()[1:] for line in status.read_text().splitlines()}
    outcomes = []
    for number, command in enumerate(chosen):
        code, begin, end = found.get(number, ["-1", "0", "0"])
        log = logs / f"{folder.name}-{number}.log"
        output = log.read_text(errors="replace") if log.exists() else "did not begin"
        seconds = float(end) - float(begin)
        outcomes.append(
            Outcome(command, substituted(command), int(code), seconds, output, tuple(unwritten(command, folder)))
        )
    return outcomes


def _wait(shell: subprocess.Popen, status: Path) -> None:
    """Until the shell ends; it is ended where no command finishes for LIMIT seconds."""
    last, since = "", time.monotonic()
    while shell.poll() is None:
        time.sleep(0.05)
        if (now := status.read_text()) != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > LIMIT:
            os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()


def unwritten(command: Command, folder: Path) -> list[str]:
    """Files and folders that a command names as its output and that are not there. A dry run writes none."""
    text = substituted(command)
    if "--dry-run" in text or "$" in text or wanted_status(command):
        return []
    words = shlex.split(text.replace("\\\n", " "))
    named = [words[place + 1] for place, word in enumerate(words[:-1]) if word in PLACES]
    named += [word.partition("=")[2] for word in words if word.startswith("train.output_dir=")]
    return [each for each in named if not (folder / each).exists()]
