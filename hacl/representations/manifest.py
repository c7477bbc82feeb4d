"""The small files of a feature store: what made it, its row table, how far it is. No torch here."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

SCHEMA = "hacl-features-1"
MANIFEST, PROGRESS, ROWS, FEATURES = "manifest.json", "progress.json", "rows.jsonl", "features"


def config_hash(config: Mapping[str, Any]) -> str:
    """Sixteen hex digits of a plain dictionary."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What two plain dictionaries do not share, one string a key."""
    found = []
    for key in sorted({*before, *now}):
        a, b = before.get(key), now.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}: {a!r} there, {b!r} here")
    return found


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file in one step, on the disk when this returns."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file in one step. Raises ValueError for a NaN."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode("utf-8", "surrogatepass"))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises FileNotFoundError, and ValueError naming the file where it is not one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; is {path.parent} a feature store?") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); capture again into another folder") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object; capture again into another folder")
    return content


def json_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Rows as JSON lines."""
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    return text.encode("utf-8", "replace")


def part_path(folder: Path, layer: str, part: int) -> Path:
    """The file of one part of one layer."""
    return folder / FEATURES / f"layer_{layer}" / f"part-{part:05d}.safetensors"
