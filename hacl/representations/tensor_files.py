"""Row slices of one 2-D tensor in a safetensors file, memory-mapped and upcast to float32. No torch here.

Shapes: N rows, D hidden size.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FEATURES_KEY = "features"
_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True)
class TensorFile:
    """One part: path, dtype as safetensors names it, rows N, width D, and where the values begin in the file."""

    path: Path
    dtype: str
    rows: int
    width: int
    start: int

    @classmethod
    def open(cls, path: Path, key: str = FEATURES_KEY) -> TensorFile:
        """Read the header and check that the file is whole.

        Raises:
            FileNotFoundError: no such file.
            ValueError: cut off, or without this 2-D tensor; names the file.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path}: this part is missing; run the capture again with resume")
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 + length or length < 2:
                raise ValueError(f"{path}: cut off in its header; delete the store and capture again")
            header = json.loads(stream.read(length))
        info = header.get(key)
        if info is None or len(info["shape"]) != 2 or info["dtype"] not in _TYPES:
            raise ValueError(f"{path}: no 2-D floating tensor {key!r} in it; it is no part of a feature store")
        end = 8 + length + max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        if size != end:
            raise ValueError(f"{path}: {size:,} bytes where its header says {end:,}; this part is cut off or damaged")
        return cls(path, info["dtype"], *info["shape"], 8 + length + info["data_offsets"][0])

    def read(self, index: np.ndarray | slice) -> np.ndarray:
        """float32 (n, D) of the rows that `index` names."""
        if not self.rows:
            return np.zeros((0, self.width), np.float32)
        shape = (self.rows, self.width)
        mapped = np.memmap(self.path, mode="r", dtype=_TYPES[self.dtype], offset=self.start, shape=shape)
        values = np.asarray(mapped[index])
        if self.dtype == "BF16":
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32)
