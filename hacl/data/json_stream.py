"""Read a JSON list element by element, so that a file of any length takes the memory of its longest element."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 1 << 20
_SPACE = " \t\r\n"


def iter_json_list(path: Path) -> Iterator[Any]:
    """The elements of the JSON list that fills a UTF-8 file.

    Raises json.JSONDecodeError, UnicodeDecodeError or RecursionError at the first thing that is no JSON, after the
    elements before it.
    """
    with path.open("rb") as file:
        text = _Text(file)
        text.expect("[")
        if text.peek() == "]":
            text.expect("]")
        else:
            while True:
                yield text.value()
                if text.peek() != ",":
                    break
                text.expect(",")
            text.expect("]")
        if text.peek():
            raise json.JSONDecodeError("text after the list", text.buffer, text.place)


class _Text:
    """The not yet read text of a file: `buffer[place:]` and what follows on disk."""

    def __init__(self, file):
        self.file = file
        self.utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self.json = json.JSONDecoder()
        self.buffer, self.place, self.ended = "", 0, False

    def more(self, size: int = BLOCK) -> None:
        block = self.file.read(size)
        self.ended = not block
        self.buffer = self.buffer[self.place :] + self.utf8.decode(block, final=self.ended)
        self.place = 0

    def peek(self) -> str:
        """The next visible character, "" at the end."""
        while True:
            while self.place < len(self.buffer) and self.buffer[self.place] in _SPACE:
                self.place += 1
            if self.place < len(self.buffer):
                return self.buffer[self.place]
            if self.ended:
                return ""
            self.more()

    def expect(self, character: str) -> None:
        if self.peek() != character:
            raise json.JSONDecodeError(f"expected {character!r}", self.buffer, self.place)
        self.place += 1

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                found, end = self.json.raw_decode(self.buffer, self.place)
            except json.JSONDecodeError:
                if self.ended:
                    raise
            else:
                if end < len(self.buffer) or self.ended:  # a number at the end of a block may go on
                    self.place = end
                    return found
            self.more(max(BLOCK, len(self.buffer) - self.place))  # doubling keeps long elements linear
