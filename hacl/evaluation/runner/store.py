"""Replies on disk: one JSON line each, flushed per batch, read back on resume, merged when every rank is done.

A folder belongs to one configuration; a file cut off in the middle of a line loses that line and no other.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hacl.representations.manifest import differences

MERGED, SHARDS, RUN = "answers.jsonl", "answers.rank*.jsonl", "run.json"


class AnswerStore:
    """The replies of one benchmark under one configuration.

    folder: where they lie; config: everything a reply depends on (model, template, decoding, dtype).
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]):
        self.folder = folder
        self.config = dict(config)
        self.hash = config_hash(self.config)

    def open(self, *, write: bool) -> None:
        """Check that the folder belongs to this configuration; the one rank with ``write`` says so in a new one.

        Raises:
            ValueError: the folder holds replies of another configuration; names the settings that differ.
        """
        path = self.folder / RUN
        if path.is_file():
            there = json.loads(path.read_text(encoding="utf-8"))
            if there.get("config_hash") != self.hash:
                changed = "; ".join(differences(there.get("config", {}), self.config)) or "another version wrote it"
                raise ValueError(f"{path}: replies of another configuration are here ({changed}); choose another --out")
        elif write:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.write_run({"sessions": []})

    def read_run(self) -> dict[str, Any]:
        """What run.json holds."""
        return json.loads((self.folder / RUN).read_text(encoding="utf-8"))

    def write_run(self, content: Mapping[str, Any]) -> None:
        """Replace run.json: configuration, its hash, and `content`."""
        write_json(self.folder / RUN, {**content, "config": self.config, "config_hash": self.hash})

    def read(self) -> dict[str, dict[str, Any]]:
        """Every complete reply, by key: the merged file, then the shards of an interrupted run."""
        found: dict[str, dict[str, Any]] = {}
        for path in [self.folder / MERGED, *sorted(self.folder.glob(SHARDS))]:
            if path.is_file():
                found.update({row["key"]: row for row in _whole_lines(path)})
        return found

    def shard(self, rank: int) -> Shard:
        """The file a rank appends to."""
        return Shard(self.folder / SHARDS.replace("*", str(rank)))

    def merge(self, order: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Put every reply into one file, those of `order` first and in it; the shards go. Returns the replies."""
        found = self.read()
        keys = list(dict.fromkeys([*(key for key in order if key in found), *found]))
        write_lines(self.folder / MERGED, (found[key] for key in keys))
        for path in self.folder.glob(SHARDS):
            path.unlink()
        return found


class Shard:
    """An append-only JSONL file; `append` returns when the rows are with the operating system."""

    def __init__(self, path: Path):
        self.path = path
        if path.is_file():
            _drop_torn_line(path)
        self.stream = path.open("a", encoding="utf-8", newline="\n")

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, *exception) -> None:
        self.stream.close()

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows and flush."""
        self.stream.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        self.stream.flush()


def config_hash(config: Mapping[str, Any]) -> str:
    """Sixteen hex digits of a plain dictionary."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a JSONL file in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    os.replace(temporary, path)


def _whole_lines(path: Path) -> Iterable[dict[str, Any]]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.endswith(b"\n"):
                return  # cut off while it was written; the question is asked again
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(
                    f"{path}:{number}: not a JSON line ({error}); delete this line and run again"
                ) from None
            if not isinstance(row, dict) or "key" not in row:
                raise ValueError(f"{path}:{number}: no 'key' in it; delete this line and run again")
            yield row


def _drop_torn_line(path: Path) -> None:
    with path.open("rb+") as stream:
        content = stream.read()
        if content and not content.endswith(b"\n"):
            stream.truncate(content.rfind(b"\n") + 1)
