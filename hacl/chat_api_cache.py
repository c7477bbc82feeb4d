"""Replies on disk: an append-only JSONL file that survives a kill at any moment and has one writer at a time.

A line is `{"key", "model", "base_url", "decoding", "text", "finish_reason", "usage", "logprobs", "time"}`. Messages are
not kept, so no image and no private text is; neither are errors. Each line is on disk before its reply is handed out.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class ReplyCache:
    """Replies by key; open until `close`, and locked against a second process meanwhile.

    A last line without newline is what a kill or a full disk leaves: it is cut off, and `repaired` says so.

    Raises:
        ValueError: a line before the last is damaged, or another process has the file open.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.repaired = False
        self._lock = threading.Lock()
        self._replies: dict[str, dict[str, Any]] = {}
        self._file = open(self.path, "a+b", buffering=0)
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{self.path}: another process is using this cache; wait or name another") from None
            self._load()
        except BaseException:
            self._file.close()
            raise

    def _load(self) -> None:
        self._file.seek(0)
        end = 0
        with open(self._file.fileno(), "rb", closefd=False) as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    self.repaired = True
                    break
                end += len(line)
                if line.strip():
                    self._take(line, number)
        if self.repaired:
            self._file.truncate(end)
            os.fsync(self._file.fileno())

    def _take(self, line: bytes, number: int) -> None:
        try:
            row = json.loads(line)
            self._replies[row["key"]] = {**row, "text": str(row["text"])}
        except (ValueError, KeyError, TypeError) as error:
            message = f"{self.path}:{number}: not a reply of this cache ({error}); remove the line or name another file"
            raise ValueError(message) from None

    def get(self, key: str) -> dict[str, Any] | None:
        with self._lock:
            return self._replies.get(key)

    def put(self, key: str, row: Mapping[str, Any]) -> None:
        """Append one reply; it is on disk when this returns."""
        entry = {"key": key, **row}
        line = json.dumps(entry).encode("ascii") + b"\n"
        with self._lock:
            self._write(line)
            self._replies[key] = entry

    def _write(self, line: bytes) -> None:
        end = os.fstat(self._file.fileno()).st_size
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(end)  # half a line would spoil the next one
            raise

    def close(self) -> None:
        """Give the file free for another process."""
        self._file.close()

    def __len__(self) -> int:
        return len(self._replies)
