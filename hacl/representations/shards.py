"""Shares of a capture by several processes, and the one store they become.

Shares are contiguous and begin at window boundaries, so every batch is the one that a single process would make, and
the merged store has the same rows, to the byte. No torch here.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hacl.representations.manifest import PROGRESS, read_json

if TYPE_CHECKING:
    from hacl.representations.store import StoreWriter

T = TypeVar("T")
SHARDS = "shards"


def shard_of(samples: Sequence[T], rank: int, world: int, window: int) -> Sequence[T]:
    """The samples of one rank."""
    windows = -(-len(samples) // window)
    first, last = windows * rank // world, windows * (rank + 1) // world
    return samples[first * window : last * window]


def shard_folder(out: Path, rank: int, world: int) -> Path:
    """Where a rank writes."""
    return out / SHARDS / f"{rank:04d}-of-{world:04d}"


def merged_state(out: Path) -> dict[str, Any]:
    """What the merged store noted at its last commit; nothing while there is none."""
    path = out / PROGRESS
    return read_json(path)["state"] if path.is_file() else {}


def remove_shards(out: Path) -> None:
    """Remove shares that have been merged."""
    shutil.rmtree(out / SHARDS, ignore_errors=True)


def merge_shards(writer: StoreWriter, world: int, digest: str, before: int) -> None:
    """Append the finished shares of every rank to the merged store.

    digest: of all samples in order; before: samples that the store held when the shares were cut.
    """
    folders = [shard_folder(writer.folder, rank, world) for rank in range(world)]
    states = [read_json(folder / PROGRESS)["state"] for folder in folders]
    lacking = dict(writer.state.get("missing", {}))
    for state in states:
        for spec, count in state.get("missing", {}).items():
            lacking[spec] = lacking.get(spec, 0) + count
    done = before + sum(state.get("samples", 0) for state in states)
    limit = min((state["limit"] for state in states if state.get("limit")), default=0)
    writer.adopt(folders, {"samples": done, "digest": digest, "limit": limit, "missing": lacking})
    writer.finish(samples=done, missing=lacking)
