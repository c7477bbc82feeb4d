"""Read a feature store: its manifest and row table at once, its features lazily. No torch here.

Shapes: N rows, D hidden size.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hacl.representations.manifest import MANIFEST, PROGRESS, ROWS, SCHEMA, part_path, read_json
from hacl.representations.readout import Readout, read_readout
from hacl.representations.tensor_files import TensorFile


@dataclass(frozen=True, slots=True)
class Row:
    """One captured state. row: its place in the store; sample, image_id: whose; image: the file shown, as the sample
    named it; selector, key: why it was kept (key is selector#occurrence, unique in a sample); position: its
    token's place in the sequence, None for a mean; token_id, token: what it predicts (`predicts:`) or lies at; word: as
    found; text: the answer; prompt_hash: of the prompt's token ids and the image's name.
    """

    row: int
    sample: str
    image_id: str
    image: str | None
    selector: str
    key: str
    position: int | None
    token_id: int | None
    token: str
    word: str | None
    text: str
    prompt_hash: str


class FeatureStore:
    """An opened store. Opening reads no features.

    manifest: what made it; layers: names of the stored layers.

    Raises:
        FileNotFoundError: the folder is no store, or a part is missing.
        ValueError: another schema, unfinished (unless `partial`), or a part that is cut off (named).
    """

    def __init__(self, folder: Path | str, *, partial: bool = False):
        self.folder = Path(folder)
        self.manifest: dict[str, Any] = read_json(self.folder / MANIFEST)
        if self.manifest.get("schema") != SCHEMA:
            raise ValueError(f"{self.folder / MANIFEST}: schema {self.manifest.get('schema')!r}, expected {SCHEMA!r}")
        if not (self.manifest["complete"] or partial):
            raise ValueError(f"{self.folder}: this capture did not finish; run it again with resume, into this folder")
        self.layers: tuple[str, ...] = tuple(self.manifest["layers"])
        progress = read_json(self.folder / PROGRESS)
        counts = [part["rows"] for part in progress["parts"]]
        self._table_bytes: int = progress["row_bytes"]
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._parts = {layer: [self._open(layer, *numbered) for numbered in enumerate(counts)] for layer in self.layers}

    def __len__(self) -> int:
        return int(self._starts[-1])

    @cached_property
    def rows(self) -> list[Row]:
        """The row table, in the order of the features."""
        names = [field.name for field in fields(Row)]
        table, found = self.folder / ROWS, []
        if table.stat().st_size < self._table_bytes:
            raise ValueError(f"{table}: cut off ({table.stat().st_size:,} of {self._table_bytes:,} bytes)")
        with table.open(encoding="utf-8") as lines:
            for _, line in zip(range(len(self)), lines, strict=False):  # further ones are not committed
                content = json.loads(line)
                found.append(Row(*(content[name] for name in names)))
        return found

    def read(self, layer: int | str, index: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """float32 (n, D) of the rows `index` (all by default), in its order."""
        parts = self._of(layer)
        if index is None:
            return self._stack([part.read(slice(None)) for part in parts])
        wanted = np.asarray(index, dtype=np.int64)
        if wanted.size and not (0 <= wanted.min() and wanted.max() < len(self)):
            raise IndexError(f"{self.folder}: rows 0 to {len(self) - 1}, asked for {wanted.min()} to {wanted.max()}")
        found_ND = np.empty((len(wanted), self.width), np.float32)
        which = np.searchsorted(self._starts, wanted, side="right") - 1
        for number in np.unique(which):
            mine = which == number
            found_ND[mine] = parts[number].read(wanted[mine] - self._starts[number])
        return found_ND

    def blocks(self, layer: int | str, size: int = 8192) -> Iterator[np.ndarray]:
        """All rows as float32 blocks (at most `size`, D), in order; one block is in memory at a time."""
        for part in self._of(layer):
            for start in range(0, part.rows, size):
                yield part.read(slice(start, start + size))

    def readout(self) -> Readout:
        """LM head, final norm and vocabulary of the model. Raises FileNotFoundError where none was saved."""
        return read_readout(self.folder)

    @property
    def width(self) -> int:
        """The hidden size D."""
        return self.manifest["hidden_size"]

    def _of(self, layer: int | str) -> list[TensorFile]:
        name = str(layer)
        if isinstance(layer, int) and layer < 0 and self.manifest["num_layers"]:
            name = str(self.manifest["num_layers"] + layer)
        if name not in self._parts:
            raise ValueError(f"layer {layer!r} is not in {self.folder}; stored: {', '.join(self.layers)}")
        return self._parts[name]

    def _open(self, layer: str, number: int, rows: int) -> TensorFile:
        part = TensorFile.open(part_path(self.folder, layer, number))
        if (part.rows, part.width) != (rows, self.width):
            raise ValueError(f"{part.path}: {part.rows} x {part.width} values, expected {rows} x {self.width}")
        return part

    def _stack(self, blocks: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(blocks) if blocks else np.zeros((0, self.width), np.float32)
