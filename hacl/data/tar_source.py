"""Webdataset shards as a `Source`: records and images are read where they lie in the tar files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hacl.data.records import Record
from hacl.data.sources import Source
from hacl.data.webdataset import is_image, place_members, sample_record

_SAMPLES = 256  # places of a shard that name its content


class TarSource(Source):
    """Uncompressed shards, one after the other. A row: (shard, key, [(ending, offset, bytes)]); passing over one reads
    the headers of its members."""

    holds_images = True

    def __init__(self, shards: Sequence[Path]):
        for shard in shards:
            if not shard.is_file():
                raise FileNotFoundError(f"{shard}: no such shard")
        self.shards = list(shards)
        self._counts: dict[Path, int] = {}

    def rows(self, start: int = 0) -> Iterator[tuple[str, Any]]:
        for shard in self.shards:
            if start and self._count(shard) <= start:
                start -= self._count(shard)
                continue
            for number, (key, members) in enumerate(place_members(shard)):
                if number >= start:
                    yield f"{shard}:{key}", (shard, key, members)
            start = 0

    def decode(self, where: str, row: Any) -> Record:
        shard, key, members = row
        texts = [(ending, b"" if is_image(ending) else _read(shard, at, size)) for ending, at, size in members]
        return sample_record(shard, key, texts, None)

    def pictures(self, row: Any) -> dict[str, bytes]:
        shard, _, members = row
        files = [_read(shard, at, size) for ending, at, size in members if is_image(ending)]
        return dict(zip(self.decode("", row).images, files, strict=True))

    def fingerprint(self) -> str:
        """Of sizes and of samples spread over each shard; shards that differ elsewhere alone are not told apart."""
        digest = hashlib.sha256()
        for shard in self.shards:
            size = shard.stat().st_size
            digest.update(f"{size} ".encode())
            for sample in range(_SAMPLES):
                digest.update(_read(shard, size * sample // _SAMPLES, 64))
        return digest.hexdigest()[:16]

    def count(self) -> int:
        return sum(map(self._count, self.shards))

    def _count(self, shard: Path) -> int:
        if shard not in self._counts:
            self._counts[shard] = sum(1 for _ in place_members(shard))
        return self._counts[shard]


def _read(shard: Path, at: int, size: int) -> bytes:
    with shard.open("rb") as file:
        file.seek(at)
        return file.read(size)
