"""Collections too large for memory, read in order from any row on: JSONL, JSON lists and Parquet; also shards of a
webdataset (`hacl.data.tar_source`) and tables of the Hugging Face Hub (`hacl.data.hub_source`).

Written `a.jsonl`, `a.json`, `a.parquet`, `a.tar`, or explicitly `hub:owner/name`.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from hacl.data.json_stream import first_character
from hacl.data.json_text import parse_line, read_lines
from hacl.data.parquet import from_row
from hacl.data.parquet_limits import check_batch, check_group, open_bounded
from hacl.data.records import Record, RecordError, iter_raw, parse_record

_BATCH = 1024  # rows of a Parquet file decoded together


class Source(ABC):
    """Rows in a fixed order. A row stays undecoded until it is asked for, so that passing over it costs little."""

    @abstractmethod
    def rows(self, start: int = 0) -> Iterator[tuple[str, Any]]:
        """(place, undecoded row) from row `start` on."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Names the content: equal for equal rows in equal order."""

    def count(self) -> int | None:
        """Number of rows, None where only reading to the end would tell."""
        return None

    def pictures(self, row: Any) -> dict[str, bytes]:
        """Image path of the record -> content of the image file, for images that the source itself holds."""
        return {}

    @property
    def holds_images(self) -> bool:
        """Whether `pictures` may give any; images of other sources lie below an image root."""
        return False

    def decode(self, where: str, row: Any) -> Record:
        """The record of an undecoded row. Raises RecordError."""
        return parse_record(row, where=where)

    def records(self, start: int = 0) -> Iterator[Record]:
        """The records from row `start` on."""
        return (self.decode(where, row) for where, row in self.rows(start))


class JsonSource(Source):
    """A JSONL file or a JSON list. Empty lines are no rows."""

    def __init__(self, path: Path):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; expected records as .jsonl, .json or .parquet")
        self.path = path
        self._is_list = first_character(path) == "["

    def rows(self, start: int = 0) -> Iterator[tuple[str, Any]]:
        if self._is_list:
            yield from islice(iter_raw(self.path), start, None)
            return
        with self.path.open("rb") as lines:
            for number, line in islice(read_lines(lines), start, None):
                yield f"{self.path}:{number}", line

    def decode(self, where: str, row: Any) -> Record:
        if isinstance(row, bytes):
            try:
                row = parse_line(row)
            except ValueError as error:
                raise RecordError(f"{where}: not a line of UTF-8 JSON ({error}); mend or remove it") from error
        return parse_record(row, where=where)

    def fingerprint(self) -> str:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]

    def count(self) -> int:
        return sum(1 for _ in self.rows())


class ParquetSource(Source):
    """Parquet files, one after the other; passing over a row group reads its header alone.

    What they may unpack to is bounded, see `hacl.data.parquet_limits`.
    """

    def __init__(self, paths: Sequence[Path]):
        import pyarrow
        import pyarrow.parquet as pq

        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise FileNotFoundError(f"{missing[0]}: no such file")
        self.paths = list(paths)
        self._rows: list[list[int]] = []
        for path in self.paths:
            try:
                meta = pq.read_metadata(path)
            except (pyarrow.ArrowException, OSError, ValueError) as error:
                raise RecordError(f"{path}: not a Parquet file ({error}); write it again") from error
            self._rows.append([meta.row_group(group).num_rows for group in range(meta.num_row_groups)])

    def rows(self, start: int = 0) -> Iterator[tuple[str, Any]]:
        import pyarrow

        for path, groups in zip(self.paths, self._rows, strict=True):
            done = 0
            file = None
            for group, count in enumerate(groups):
                if start >= count:
                    start -= count
                else:
                    try:
                        file = open_bounded(path) if file is None else file
                        check_group(path, file, group)
                        yield from _group_rows(path, file, group, start, done)
                    except RecordError:
                        raise
                    except (pyarrow.ArrowException, OSError, ValueError) as error:
                        raise RecordError(f"{path}: row group {group} is damaged ({error}); write it again") from error
                    start = 0
                done += count

    def decode(self, where: str, row: Any) -> Record:
        try:
            raw = from_row(row)
        except ValueError as error:
            raise RecordError(f"{where}: {error}") from error
        return parse_record(raw, where=where)

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for path in self.paths:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]

    def count(self) -> int:
        return sum(map(sum, self._rows))


def _group_rows(path: Path, file: Any, group: int, start: int, done: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of one row group from its row `start` on, `_BATCH` of them in memory as Python objects."""
    index = 0
    for batch in file.iter_batches(_BATCH, row_groups=[group]):
        skipped = min(start - index, batch.num_rows) if index < start else 0
        check_batch(path, batch, done + index)
        for offset, row in enumerate(batch.slice(skipped).to_pylist(), start=index + skipped):
            yield f"{path}:[{done + offset}]", row
        index += batch.num_rows


class Joined(Source):
    """Several sources, one after the other."""

    def __init__(self, parts: Sequence[Source]):
        self.parts = list(parts)

    def rows(self, start: int = 0) -> Iterator[tuple[str, tuple[int, Any]]]:
        for number, part in enumerate(self.parts):
            if start and (count := part.count()) is not None and count <= start:
                start -= count
                continue
            empty = True
            for where, row in part.rows(start):
                empty = False
                yield where, (number, row)
            if empty and start:
                start -= sum(1 for _ in part.rows())
            else:
                start = 0

    def decode(self, where: str, row: Any) -> Record:
        number, inner = row
        return self.parts[number].decode(where, inner)

    def pictures(self, row: Any) -> dict[str, bytes]:
        number, inner = row
        return self.parts[number].pictures(inner)

    @property
    def holds_images(self) -> bool:
        return any(part.holds_images for part in self.parts)

    def fingerprint(self) -> str:
        return hashlib.sha256(" ".join(part.fingerprint() for part in self.parts).encode()).hexdigest()[:16]

    def count(self) -> int | None:
        counts = [part.count() for part in self.parts]
        return None if None in counts else sum(counts)


class Limited(Source):
    """The first `limit` rows of a source."""

    def __init__(self, source: Source, limit: int):
        self.source, self.limit = source, limit

    def rows(self, start: int = 0) -> Iterator[tuple[str, Any]]:
        return islice(self.source.rows(start), max(0, self.limit - start))

    def decode(self, where: str, row: Any) -> Record:
        return self.source.decode(where, row)

    def pictures(self, row: Any) -> dict[str, bytes]:
        return self.source.pictures(row)

    @property
    def holds_images(self) -> bool:
        return self.source.holds_images

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.limit} of {self.source.fingerprint()}".encode()).hexdigest()[:16]

    def count(self) -> int | None:
        count = self.source.count()
        return None if count is None else min(count, self.limit)


def open_source(paths: str | Sequence[str]) -> Source:
    """The source that one or several texts name. Raises ValueError, FileNotFoundError."""
    from hacl.data.hub_source import HubSource
    from hacl.data.tar_source import TarSource

    texts = [paths] if isinstance(paths, str) else list(paths)
    if not texts:
        raise ValueError("no source: name a .jsonl, .json, .parquet or .tar file, or hub:owner/name")
    made: list[Source] = []
    for text in texts:
        if text.startswith("hub:"):
            made.append(HubSource(text))
        elif text.endswith(".tar"):
            made.append(TarSource([Path(text)]))
        elif text.endswith(".parquet"):
            made.append(ParquetSource([Path(text)]))
        else:
            made.append(JsonSource(Path(text)))
    return made[0] if len(made) == 1 else Joined(made)


def parquet_records(paths: Iterable[Path]) -> Iterator[Record]:
    """The records of Parquet files, in order."""
    return ParquetSource(list(paths)).records()
