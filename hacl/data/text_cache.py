"""Pooled states of constant texts on disk, at the size of a pre-training set: sharded, resumable, refused when stale.

A folder holds `meta.json`, which names all that decides a state, and `states-*.safetensors`, each with the 128-bit keys
(M, 2) and the rows (M, D) of some texts. A shard appears when it is complete, so a killed run keeps all but its last.
In memory an opened cache has 16 bytes per text; rows are read from memory-mapped files.

Shapes: M texts, D hidden size.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

META = "meta.json"
_SHARDS = "states-*.safetensors"


class StaleCacheError(ValueError):
    """A cache that was made with something else than the run that wants to read it."""


def text_key(root: Iterable[int]) -> tuple[int, int]:
    """Two signed 64-bit numbers that name the token ids of a root."""
    digest = hashlib.blake2b(json.dumps([int(token) for token in root]).encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "big", signed=True), int.from_bytes(digest[8:], "big", signed=True)


class TextCache:
    """Token ids of a root -> its pooled state before the heads.

    meta: what the states must have been made with. Raises FileNotFoundError where there is no cache, StaleCacheError
    naming what differs.
    """

    def __init__(self, folder: Path, meta: dict[str, Any]):
        self.folder, self.meta = folder, meta
        file = folder / META
        if not file.is_file():
            raise FileNotFoundError(f"{folder} holds no {META}; make the cache with data_prep/cache_text.py")
        check_meta(folder, json.loads(file.read_text(encoding="utf-8")), meta)
        self.width, self.dtype = int(meta["width"]), getattr(torch, meta["dtype"])
        self._names: list[str] = []
        self._open: dict[int, tuple[Tensor, Tensor]] = {}
        self._keys = np.empty(0, np.int64)
        self._places = np.empty(0, np.int64)
        self.refresh()

    def refresh(self) -> None:
        """See the shards that were added since."""
        from safetensors import safe_open

        keys, places = [self._keys], [self._places]
        for path in sorted(self.folder.glob(_SHARDS)):
            if path.name not in self._names:
                with safe_open(path, framework="np") as shard:
                    found = shard.get_tensor("keys")[:, 0]
                keys.append(found)
                places.append((len(self._names) << 32) + np.arange(len(found)))
                self._names.append(path.name)
        merged = np.concatenate(keys)
        order = np.argsort(merged, kind="stable")
        self._keys, self._places = merged[order], np.concatenate(places)[order]

    def __len__(self) -> int:
        return len(self._keys)

    def holds(self, roots: Sequence[Sequence[int]]) -> list[bool]:
        """Which roots have a state."""
        return [place is not None for place in map(self._place, roots)]

    def lookup(self, roots: Sequence[Sequence[int]]) -> Tensor:
        """(M, D), in order. Raises ValueError where a text was not cached."""
        found = []
        for root in roots:
            place = self._place(root)
            if place is None:
                raise ValueError(
                    f"{self.folder} lacks the state of a text ({len(root)} tokens); the records have changed since: "
                    "run data_prep/cache_text.py again, which adds what is missing"
                )
            found.append(self._shard(place >> 32)[1][place & 0xFFFFFFFF])
        return torch.stack(found)

    def _place(self, root: Sequence[int]) -> int | None:
        first, second = text_key(root)
        at = int(np.searchsorted(self._keys, first))
        while at < len(self._keys) and self._keys[at] == first:
            place = int(self._places[at])
            if int(self._shard(place >> 32)[0][place & 0xFFFFFFFF, 1]) == second:
                return place
            at += 1
        return None

    def _shard(self, number: int) -> tuple[Tensor, Tensor]:
        if number not in self._open:
            from safetensors.torch import load_file

            tensors = load_file(self.folder / self._names[number])  # memory-mapped
            self._open[number] = (tensors["keys"], tensors["rows"])
        return self._open[number]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": {}}


def check_meta(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises StaleCacheError naming the keys in which a cache differs from what is wanted."""
    changed = sorted(key for key in wanted.keys() | found.keys() if found.get(key) != wanted.get(key))
    if changed:
        raise StaleCacheError(
            f"{folder} was made with another {', '.join(changed)}; make a new cache in another folder with "
            "data_prep/cache_text.py, or set train.text_cache to null"
        )


def open_for_writing(folder: Path, meta: dict[str, Any]) -> TextCache:
    """The cache to go on with, begun where there is none. Raises StaleCacheError."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / META
    if not file.is_file():
        if any(folder.iterdir()):
            raise StaleCacheError(f"{folder} is not empty and holds no {META}; choose another folder")
        partial = file.with_name(f".{META}.{os.getpid()}.partial")
        partial.write_text(json.dumps(meta, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(partial, file)
    for partial in folder.glob(".states-*.partial"):
        if not Path(f"/proc/{partial.name.split('.')[-2]}").exists():  # of a killed run
            partial.unlink(missing_ok=True)
    return TextCache(folder, meta)


def write_shard(folder: Path, roots: Sequence[Sequence[int]], rows_MD: Tensor) -> str:
    """Add the states of some texts; returns the name of the shard."""
    from safetensors.torch import save_file

    keys_M2 = torch.tensor([text_key(root) for root in roots], dtype=torch.int64)
    name = f"states-{hashlib.blake2b(keys_M2.numpy().tobytes(), digest_size=8).hexdigest()}.safetensors"
    partial = folder / f".{name}.{os.getpid()}.partial"
    save_file({"keys": keys_M2, "rows": rows_MD.contiguous()}, partial, metadata={"format": "pt"})
    os.replace(partial, folder / name)
    return name
