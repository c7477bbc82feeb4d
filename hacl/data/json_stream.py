"""Read a JSON list or object piece by piece, so that a file of any length takes the memory of its longest piece.

Pieces are read by the rules of `hacl.data.json_text`.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hacl.data import json_text

BLOCK = 1 << 20
_BLANK = re.compile(r"[ \t\r\n]*")


class JsonError(json.JSONDecodeError):
    """What is no JSON, or none that is accepted; the message begins with the line of the file."""

    def __init__(self, message: str, line: int):
        super().__init__(message, "", 0)
        self.lineno, self.args = line, (f"line {line}: {message}",)

    def __reduce__(self):
        return type(self), (self.msg, self.lineno)


def iter_json_list(path: Path) -> Iterator[Any]:
    """The elements of the JSON list that fills a UTF-8 file.

    Raises JsonError at the first thing that is no JSON, after the elements before it; for what is not UTF-8 perhaps
    earlier.
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
        self.buffer, self.place, self.ended = "", 0, False
        self.lines = 0  # that the buffer no longer holds

    def more(self, size: int = BLOCK) -> None:
        block = self.file.read(size)
        self.ended = not block
        self.lines += self.buffer.count("\n", 0, self.place)
        self.buffer, self.place = self.buffer[self.place :], 0
        try:
            self.buffer += self.utf8.decode(block, final=self.ended)
        except UnicodeDecodeError as error:
            line = self.lines + self.buffer.count("\n") + error.object[: error.start].count(b"\n") + 1
            raise JsonError(f"not UTF-8 ({error.reason})", line) from error

    def peek(self) -> str:
        """The next visible character, "" at the end."""
        while True:
            self.place = _BLANK.match(self.buffer, self.place).end()
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

    def error(self, message: str, place: int | None = None) -> JsonError:
        place = self.place if place is None else place
        return JsonError(message, self.lines + self.buffer.count("\n", 0, place) + 1)

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
                found, end = json_text.DECODER.raw_decode(self.buffer, self.place)
                if end + 2 < len(self.buffer) or self.ended:  # a number at the end of a block may go on: 1 | e+5
                    json_text.check_value(found, self.buffer[self.place : end])
                    self.place = end
                    return found
            except json.JSONDecodeError as error:
                if self.ended:
                    raise self.error(error.msg, error.pos) from error
            except RecursionError as error:
                raise self.error(f"nested deeper than {json_text.DEEPEST} levels") from error
            except ValueError as error:
                raise self.error(str(error)) from error
            if len(self.buffer) - self.place > json_text.LONGEST:
                raise self.error(f"one piece is longer than {json_text.LONGEST:,} characters, or does not end")
            self.more(max(BLOCK, len(self.buffer) - self.place))  # doubling keeps long elements linear
