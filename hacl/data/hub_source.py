"""A table of the Hugging Face Hub as a `Source`: streamed, from any row on, images in it included.

Written `hub:owner/name?split=train&revision=COMMIT` (also `config`, and `columns`, e.g. `columns=captions:sentence`,
renames a column of theirs to a key of a record).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from hacl.data.parquet import from_row
from hacl.data.records import Record, RecordError, parse_record
from hacl.data.sources import Source

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
_BLOCK = 32  # rows read together


class HubSource(Source):
    """A streamed split of a data set on the Hugging Face Hub. Data only: no code of the repository is run."""

    def __init__(self, text: str):
        name, _, query = text.removeprefix("hub:").partition("?")
        options = dict(parse_qsl(query, strict_parsing=bool(query)))
        unknown = options.keys() - {"split", "revision", "config", "columns"}
        if not name or unknown:
            raise ValueError(
                f"{text}: {'unknown ' + ', '.join(sorted(unknown)) if unknown else 'no name'}; write "
                "hub:owner/name?split=train&revision=COMMIT&config=NAME&columns=caption:sentence"
            )
        if not _HUB_NAME.fullmatch(name) or Path(name).exists():
            raise ValueError(
                f"{text}: {name!r} is no name on the Hub, or that of a local folder; name files as they are"
            )
        self.name, self.options = name, options
        pairs = (pair.partition(":") for pair in options.get("columns", "").split(",") if pair)
        self.columns = {theirs: ours for ours, _, theirs in pairs}

    def _open(self):
        from datasets import Image, load_dataset

        rows = load_dataset(
            self.name,
            self.options.get("config"),
            split=self.options.get("split", "train"),
            revision=self.options.get("revision"),
            streaming=True,
        )
        for column, kind in (rows.features or {}).items():
            if isinstance(kind, Image):
                rows = rows.cast_column(column, Image(decode=False))
        return rows

    def rows(self, start: int = 0) -> Iterator[tuple[str, Any]]:
        # Not by iterating over it: in a data-loader worker that gives each worker other rows.
        blocks = self._open().skip(start).iter(_BLOCK)
        rows = (
            dict(zip(block, values, strict=True)) for block in blocks for values in zip(*block.values(), strict=True)
        )
        for index, row in enumerate(rows, start=start):
            renamed = {self.columns.get(key, key): value for key, value in row.items()}
            yield f"hub:{self.name}:[{index}]", (index, renamed)

    def decode(self, where: str, row: Any) -> Record:
        index, cells = row
        try:
            raw = from_row(cells)
        except ValueError as error:
            raise RecordError(f"{where}: {error}") from error
        return parse_record(raw | {"image": _image_name(index)} if _image_in(raw) else raw, where=where)

    def pictures(self, row: Any) -> dict[str, bytes]:
        index, raw = row
        return {_image_name(index): data} if (data := _image_in(raw)) else {}

    @property
    def holds_images(self) -> bool:
        return any(_image_in(raw) for _, (_, raw) in islice(self.rows(), 1))

    def fingerprint(self) -> str:
        """Of name, split and revision; pin `revision` to be sure of the content."""
        text = json.dumps([self.name, sorted(self.options.items())])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _image_in(raw: dict[str, Any]) -> bytes | None:
    """Content of the image that a row of a table holds itself."""
    image = raw.get("image")
    data = image.get("bytes") if isinstance(image, dict) else None
    return data if isinstance(data, bytes) else None


def _image_name(index: int) -> str:
    return f"row-{index}"
