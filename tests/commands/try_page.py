"""python -m tests.commands.try_page docs/data.md ...: executes the pages' commands and prints what became of them."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.chat_server import ChatServer
from tests.commands.collect import commands_of
from tests.commands.session import WarmPython, judge, run_page


def main(names: list[str]) -> int:
    folder = Path(tempfile.mkdtemp(prefix="commands-"))
    (folder / "shelf").mkdir()
    warm = WarmPython(folder)
    wrong = 0
    try:
        with ChatServer(judge) as chat:
            for name in names:
                page = folder / name.replace("/", "-")
                for outcome in run_page(name, commands_of(name), page, warm, {"CHAT_URL": chat.url}):
                    wrong += not outcome.well
                    print(f"{'ok ' if outcome.well else 'BAD'} {outcome.seconds:5.1f} s  {outcome.command}", flush=True)
                    if not outcome.well:
                        print(outcome, flush=True)
    finally:
        warm.close()
    print(f"{wrong} wrong; {folder}")
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
