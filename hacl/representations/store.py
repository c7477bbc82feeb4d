"""Write a feature store so that a kill at any moment loses at most what was not yet committed.

A commit writes one part of every layer and appends to the row table; `progress.json`, replaced last, says what counts.
What lies beyond it was cut short, and is removed when the capture resumes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hacl.representations.manifest import (
    FEATURES,
    MANIFEST,
    PROGRESS,
    ROWS,
    SCHEMA,
    config_hash,
    differences,
    json_lines,
    part_path,
    read_json,
    write_bytes,
    write_json,
)
from hacl.representations.tensor_files import FEATURES_KEY


class StoreWriter:
    """Appends to the store of one configuration.

    folder: of the store; config: everything a row depends on; layers: names; part_bytes: how much is kept in memory,
    over all layers, before it is committed.

    Raises:
        ValueError: the folder holds features of another configuration; the settings that differ are named.
    """

    def __init__(
        self, folder: Path, config: Mapping[str, Any], layers: Sequence[str], *, part_bytes: int, resume: bool = True
    ):
        self.folder, self.layers, self.part_bytes = folder, list(layers), part_bytes
        self.config = dict(config)
        self._rows: list[dict[str, Any]] = []
        self._features: dict[str, list[Tensor]] = {layer: [] for layer in self.layers}
        self._bytes = 0
        self.progress: dict[str, Any] = {"parts": [], "rows": 0, "row_bytes": 0, "state": {}}
        if (folder / MANIFEST).is_file():
            self._reopen(resume)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ROWS).touch()
            write_json(folder / PROGRESS, self.progress)
            self._write_manifest(complete=False)

    @property
    def state(self) -> dict[str, Any]:
        """What the capture itself noted at the last commit."""
        return self.progress["state"]

    def add(self, rows: Sequence[Mapping[str, Any]], features: Mapping[str, Tensor]) -> None:
        """Rows, and (n, D) of each layer on the host, in the same order; kept in memory until a commit."""
        self._rows += rows
        for layer, values in features.items():
            self._features[layer].append(values)
            self._bytes += values.nbytes

    @property
    def full(self) -> bool:
        """Whether it is time to commit."""
        return self._bytes >= self.part_bytes

    def commit(self, state: Mapping[str, Any]) -> None:
        """Put what was added on the disk. `state` is given back on resume."""
        from safetensors.torch import save

        number, before = len(self.progress["parts"]), self.progress["rows"]
        if self._rows:
            for layer in self.layers:
                path = part_path(self.folder, layer, number)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(path, save({FEATURES_KEY: torch.cat(self._features[layer]).contiguous()}))
                self._features[layer] = []
        lines = json_lines({"row": before + place, **row} for place, row in enumerate(self._rows))
        self._advance([lines], [{"rows": len(self._rows)}] if self._rows else [], state)
        self._rows, self._bytes = [], 0

    def adopt(self, stores: Sequence[Path], state: Mapping[str, Any]) -> None:
        """Append finished stores of the same configuration: their parts are linked, not read, and rows renumbered."""
        parts: list[dict[str, int]] = []
        for store in stores:
            for number, part in enumerate(read_json(store / PROGRESS)["parts"]):
                for layer in self.layers:
                    path = part_path(self.folder, layer, len(self.progress["parts"]) + len(parts))
                    path.parent.mkdir(parents=True, exist_ok=True)
                    _link(part_path(store, layer, number), path)
                parts.append(part)
        self._advance(_renumbered(stores, self.progress["rows"]), parts, state)

    def _advance(self, lines: Iterable[bytes], parts: Sequence[Mapping[str, int]], state: Mapping[str, Any]) -> None:
        """Append to the row table, then say so."""
        if self._complete:
            self._write_manifest(complete=False)
        added = 0
        with (self.folder / ROWS).open("ab") as stream:
            for chunk in lines:
                added += stream.write(chunk)
            stream.flush()
            os.fsync(stream.fileno())
        self.progress = {
            "parts": [*self.progress["parts"], *parts],
            "rows": self.progress["rows"] + sum(part["rows"] for part in parts),
            "row_bytes": self.progress["row_bytes"] + added,
            "state": dict(state),
        }
        write_json(self.folder / PROGRESS, self.progress)

    def finish(self, **counts: Any) -> None:
        """Mark the store as complete; counts go into its manifest."""
        self._write_manifest(complete=True, rows=self.progress["rows"], **counts)

    def _write_manifest(self, **more: Any) -> None:
        self._complete = more["complete"]
        content = {"schema": SCHEMA, **self.config, "config_hash": config_hash(self.config)}
        write_json(self.folder / MANIFEST, {**content, "rows": 0, **more})

    def _reopen(self, resume: bool) -> None:
        there = read_json(self.folder / MANIFEST)
        if not resume:
            raise ValueError(f"{self.folder}: features are here already; choose another folder, or resume")
        if there.get("config_hash") != config_hash(self.config):
            before = {key: there.get(key) for key in self.config}
            changed = "; ".join(differences(before, self.config)) or "another version wrote it"
            raise ValueError(f"{self.folder}: features of another configuration are here ({changed}); choose another")
        self._complete = there["complete"]
        self.progress = read_json(self.folder / PROGRESS)
        table = self.folder / ROWS
        table.touch()
        if table.stat().st_size < self.progress["row_bytes"]:
            raise ValueError(f"{table}: shorter than {PROGRESS} says; delete {self.folder} and capture again")
        os.truncate(table, self.progress["row_bytes"])
        kept = {part_path(self.folder, layer, n) for layer in self.layers for n in range(len(self.progress["parts"]))}
        for path in (self.folder / FEATURES).rglob("*"):
            if path.is_file() and path not in kept:
                path.unlink()


def _link(source: Path, target: Path) -> None:
    """A second name for a file; a copy where the file system has none."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _renumbered(stores: Sequence[Path], first: int) -> Iterator[bytes]:
    """The row tables of finished stores, one after the other, with row numbers from `first`."""
    for store in stores:
        with (store / ROWS).open(encoding="utf-8") as lines:
            for line in lines:
                yield json_lines([{**json.loads(line), "row": first}])
                first += 1
