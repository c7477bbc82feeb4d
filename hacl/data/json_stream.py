"""Read a JSON list or object piece by piece, so that a file of any length takes the memory of its longest piece."""

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
        yield from text.elements()
        text.end()


def iter_json_members(path: Path) -> Iterator[tuple[str, Any]]:
    """The members of the JSON object that fills a UTF-8 file; a list gives (key, element) for each of its elements.

    Raises as `iter_json_list`.
    """
    with path.open("rb") as file:
        text = _Text(file)
        text.expect("{")
        while text.peek() != "}":
            key = text.value()
            if not isinstance(key, str):
                raise text.error("expected a key")
            text.expect(":")
            if text.peek() == "[":
                yield from ((key, element) for element in text.elements())
            else:
                yield key, text.value()
            if text.peek() != ",":
                break
            text.expect(",")
        text.expect("}")
        text.end()


def first_character(path: Path) -> str:
    """The first visible character of a UTF-8 file, "" where there is none; tells a list from an object or lines."""
    with path.open("rb") as file:
        while block := file.read(4096):
            if visible := block.removeprefix(codecs.BOM_UTF8).lstrip():
                return visible[:1].decode("latin-1")
    return ""


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
            raise self.error(f"expected {character!r}")
        self.place += 1

    def end(self) -> None:
        if self.peek():
            raise self.error("text after the end")

    def error(self, message: str) -> json.JSONDecodeError:
        return json.JSONDecodeError(message, self.buffer, self.place)

    def elements(self) -> Iterator[Any]:
        """The elements of the list that begins here."""
        self.expect("[")
        if self.peek() != "]":
            yield self.value()
            while self.peek() == ",":
                self.expect(",")
                yield self.value()
        self.expect("]")

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
