"""Promises about the commands that the documents show: they are executed as shown, or listed with the reason why not.

`tests/commands/table.py` says what stands for checkpoints, data and sizes. The pages marked core run always; with
HACL_ALL_COMMANDS=1 all of them do.
"""

from __future__ import annotations

import os
import re
import subprocess

import pytest

from tests.chat_server import ChatServer
from tests.commands.collect import ROOT, commands_of, hidden_commands, pages, words_of
from tests.commands.inputs import PAGES
from tests.commands.session import WarmPython, judge, run_page
from tests.commands.table import APPENDED, NOT_RUN, STATUS, SUBSTITUTIONS, not_run
from tests.unit.test_documents import script_call
from tests.unit.test_reproduce import parsed

COMMANDS = {page: commands for page in pages() if (commands := commands_of(page))}
ALL = [command for commands in COMMANDS.values() for command in commands]
RUN = {page: [c for c in commands if not not_run(c)] for page, commands in COMMANDS.items()}
CORE = [page for page in RUN if RUN[page] and PAGES[page].core]
OTHERS = [page for page in RUN if RUN[page] and not PAGES[page].core]


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    (folder / "shelf").mkdir()
    python = WarmPython(folder)
    yield python
    python.close()


def execute(page, warm):
    with ChatServer(judge) as chat:
        outcomes = run_page(page, COMMANDS[page], warm.folder / page.replace("/", "-"), warm, {"CHAT_URL": chat.url})
    wrong = [str(outcome) for outcome in outcomes if not outcome.well]
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("page", CORE)
def test_the_commands_of_a_page_run_in_the_order_of_the_page(page, warm):
    execute(page, warm)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("HACL_ALL_COMMANDS"), reason="minutes: set HACL_ALL_COMMANDS=1")
@pytest.mark.parametrize("page", OTHERS)
def test_the_commands_of_every_other_page_run_too(page, warm):
    execute(page, warm)


def test_every_page_with_commands_is_in_the_table_and_no_other():
    assert set(PAGES) == set(COMMANDS)


def test_readme_says_how_many_commands_are_executed():
    """Shown, executed and executed by default; "about" leaves room for five."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    said = [int(number) for number in re.findall(r"\babout (\d+)", text.partition("## Install")[0])]
    counted = [len(ALL), sum(map(len, RUN.values())), sum(len(RUN[page]) for page in CORE)]
    assert len(said) == 3 and all(abs(a - b) <= 5 for a, b in zip(said, counted, strict=True)), (said, counted)


def test_no_command_hides_in_a_block_that_names_no_shell():
    found = {page: lines for page in pages() if (lines := hidden_commands(page))}
    assert not found, f"write ```bash there: {found}"


def test_every_line_of_the_table_applies_to_a_command():
    texts = [(c.page, c.text.replace("\\\n", " ")) for c in ALL if not not_run(c)]
    idle = [s for s in SUBSTITUTIONS if not any(s.page in (None, p) and re.search(s.pattern, t) for p, t in texts)]
    idle += [a for a in APPENDED if not any(re.search(a.pattern, t) for _, t in texts)]
    idle += [s for s in STATUS if not any(p == s.page and s.start in " ".join(t.split()) for p, t in texts)]
    idle += [n for n in NOT_RUN if not any(not_run(command) is n for command in ALL)]
    for page, entry in PAGES.items():
        lines = [*(text for p, text in texts if p == page), *entry.before]
        used = " ".join(lines) + (" llava" if "configs/llava15_7b" in " ".join(lines) else "")
        first_words = {name: name.rpartition("/")[2].partition("-")[0] for name in entry.inputs}
        idle += [f"{page}: {name}" for name, word in first_words.items() if word not in used]
    assert not idle


@pytest.mark.parametrize("entry", NOT_RUN, ids=lambda entry: f"{entry.page}: {entry.start}"[:80])
def test_a_command_that_is_not_run_is_still_understood(entry):
    """The shell parses it, what it calls exists, and a script of ours accepts every argument."""
    for command in [command for command in ALL if not_run(command) is entry]:
        subprocess.run(["bash", "-n", "-c", command.text], check=True)
        for words in words_of(command):
            if (call := script_call(words)) is None:
                continue
            script, arguments = call
            assert (ROOT / script).is_file()
            if script.endswith(".py"):
                parsed(script, tuple(arguments))
            else:
                subprocess.run(["bash", "-n", str(ROOT / script)], check=True)
