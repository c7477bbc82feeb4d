"""Read predictions and references row by row: JSONL streamed, JSON arrays, or rows already in memory.

UTF-8 with or without a byte-order mark, any line ending, blank lines skipped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hacl.evaluation.scorers.base import InputError

Rows = str | Path | Iterable[Mapping[str, Any]]


class Place:
    """Where the current row is from; prints as "answers.jsonl:17" or "prediction 17". One object serves a whole file,
    so that a message costs nothing until it is written."""

    __slots__ = ("source", "line", "separator")

    def __init__(self, source: str, separator: str = ":") -> None:
        self.source, self.line, self.separator = source, 0, separator

    def __str__(self) -> str:
        return f"{self.source}{self.separator}{self.line}"


def is_path(source: object) -> bool:
    """Whether ``source`` names a file or folder (and is not content)."""
    return isinstance(source, str | Path)


def as_paths(references: Any) -> list[Path]:
    """References given as one path or several, as a list; empty if they are loaded content.

    Raises:
        FileNotFoundError: a path does not exist.
    """
    given = [references] if is_path(references) else references
    if not isinstance(given, list | tuple) or not given or not all(is_path(entry) for entry in given):
        return []
    paths = [Path(entry) for entry in given]
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; give --references the ground-truth file or folder")
    return paths


def iter_rows(source: Rows, name: str = "prediction") -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yield ``(where, row)`` for every row of a JSONL file, a JSON array file, or an iterable of dictionaries.

    ``where`` is one object that moves along: write it into a message at once, or keep ``str(where)``.

    Raises:
        InputError: no row at all, a line that is not one JSON object, or not UTF-8.
        FileNotFoundError: no such file.
    """
    rows = _file_rows(Path(source)) if is_path(source) else _given_rows(source, name)
    empty = True
    for pair in rows:
        empty = False
        yield pair
    if empty:
        raise InputError(f"{source if is_path(source) else name + 's'}: empty, there is nothing to score")


def _given_rows(source: Iterable[Mapping[str, Any]], name: str) -> Iterator[tuple[Place, Any]]:
    where = Place(name, " ")
    for where.line, row in enumerate(source, 1):
        if not isinstance(row, Mapping):
            raise InputError(f"{where}: {type(row).__name__} in place of a dictionary")
        yield where, row


def _file_rows(path: Path) -> Iterator[tuple[Place, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {'a folder; give the file in it' if path.is_dir() else 'no such file'}")
    where = Place(str(path))
    try:
        with path.open(encoding="utf-8-sig") as file:
            if _starts_an_array(file):
                yield from _array_rows(path, where)
                return
            decode = json.JSONDecoder().raw_decode
            for where.line, line in enumerate(file, 1):
                line = line.strip()
                if not line:
                    continue
                try:
                    row, end = decode(line)
                except json.JSONDecodeError as error:
                    raise InputError(f"{where}: not JSON ({error.msg}); one JSON object a line is needed") from error
                if end != len(line) or type(row) is not dict:
                    raise InputError(f"{where}: one JSON object a line is needed, found {line[:60]!r}")
                yield where, row
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: the file is not UTF-8 ({error.reason} at byte {error.start})") from error


def _starts_an_array(file) -> bool:
    while (character := file.read(1)) and character.isspace():
        pass
    file.seek(0)
    return character == "["


def _array_rows(path: Path, where: Place) -> Iterator[tuple[Place, Any]]:
    rows: Any = load_json(path)
    where.separator = " record "
    for where.line, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise InputError(f"{where}: {type(row).__name__} in place of an object")
        yield where, row


def load_json(path: str | Path) -> Any:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: no such file. InputError: not UTF-8 or not JSON.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON ({error.msg})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: the file is not UTF-8 ({error.reason} at byte {error.start})") from error


def require(row: Mapping[str, Any], key: str, where: object, kind: type | tuple[type, ...] = str) -> Any:
    """``row[key]``, which must be of type ``kind``; true and false are no numbers.

    Raises:
        InputError: naming the place, the key, and what was found.
    """
    if key not in row:
        raise InputError(f"{where}: no {key!r}; the row has {', '.join(map(repr, row)) or 'no field'}")
    value = row[key]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join("text" if entry is str else entry.__name__ for entry in kinds)
        raise InputError(f"{where}: {key!r} must be {wanted}, found {json.dumps(value, default=str)[:60]}")
    return value


def sha256_of(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_content(content: Any) -> str:
    """SHA-256 of loaded content: of its JSON text with sorted keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
