"""Collects the commands that the documents show, in the order of each page."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELLS = ("bash", "sh", "console")
PROGRAMS = ("python", "bash", "torchrun", "deepspeed", "pip", "sbatch", "transformers", "pytest")


@dataclass(frozen=True)
class Command:
    """One command of a page: a line with its continuation lines, or a loop as a whole.

    page: path below the repository; line: of the page, from 1; text: as shown, without comment.
    """

    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {' '.join(self.text.split())}"


def pages() -> list[str]:
    """README, CONTRIBUTING, SECURITY and all guides."""
    found = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
    return [path.relative_to(ROOT).as_posix() for path in found]


def commands_of(page: str) -> list[Command]:
    """The commands in the shell blocks of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found: list[Command] = []
    for fence in FENCE.finditer(text):
        if fence[1] in SHELLS:
            first = text.count("\n", 0, fence.start(2)) + 1
            found += [Command(page, first + offset, statement) for offset, statement in statements(fence[2])]
    return found


def statements(block: str) -> list[tuple[int, str]]:
    """(offset of its first line, statement) of a shell block; a backslash at the end goes on, as does a loop."""
    found, lines, start, depth = [], [], 0, 0
    for offset, line in enumerate(block.splitlines()):
        bare = _without_comment(line)
        if not lines:
            start = offset
        if bare.strip():
            lines.append(bare)
        depth += len(re.findall(r"\bdo$", bare)) - len(re.findall(r"^done\b", bare))
        if lines and depth == 0 and not bare.endswith("\\"):
            found.append((start, "\n".join(lines)))
            lines = []
    if lines:
        raise ValueError(f"a command that does not end: {lines[0]}")
    return found


def words_of(command: Command) -> list[list[str]]:
    """The words of each simple command: loops are opened, `&&` and variables before a command are taken away."""
    simple = []
    for line in command.text.replace("\\\n", " ").splitlines():
        for part in re.split(r"\s&&\s", line):
            words = shlex.split(part)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words and words[0] not in ("for", "done"):
                simple.append(words)
    return simple


def hidden_commands(page: str) -> list[str]:
    """Lines that look like commands in fences that name no shell: no test would see them."""
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = [line for fence in FENCE.finditer(text) if not fence[1] for line in fence[2].splitlines()]
    return [line for line in lines if re.match(rf"(?:{'|'.join(PROGRAMS)})\s+\S", line)]


def _without_comment(line: str) -> str:
    """The line up to a `#` that begins a word outside quotes."""
    quote = ""
    for place, sign in enumerate(line):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        elif sign == "#" and (place == 0 or line[place - 1].isspace()):
            return line[:place].rstrip()
    return line.rstrip()
