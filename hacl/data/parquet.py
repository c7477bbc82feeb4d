"""Records as Parquet: one column per key, objects as a map, other keys as one column of JSON text."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hacl.data.json_text import parse
from hacl.data.parallel import chunked
from hacl.data.records import Record, record_to_json

GROUP = 10_000  # records per row group: what a reader holds at a time
OTHER = "other_keys"


def schema():
    """The columns, as a pyarrow schema."""
    import pyarrow as pa

    text, texts = pa.string(), pa.list_(pa.string())
    edit = pa.struct(
        [("text", text), ("type", text), ("span", pa.list_(pa.int64())), ("source", text), ("of", pa.int64())]
    )
    turn = pa.struct([("role", text), ("content", text)])
    return pa.schema(
        [("id", text), ("image", texts), ("image_id", text), ("captions", texts), ("hallucinated", pa.list_(edit)),
         ("conversations", pa.list_(turn)), ("objects", pa.map_(text, pa.int64())), (OTHER, text)]
    )  # fmt: skip


def write_parquet(path: Path, records: Iterable[Record]) -> int:
    """Write a file in one step; returns the number of records. Memory: one row group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = schema()
    count = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with pq.ParquetWriter(partial, columns) as out:
            for chunk in chunked(records, GROUP):
                out.write_table(pa.Table.from_pylist([_to_row(record) for record in chunk], schema=columns))
                count += len(chunk)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def _to_row(record: Record) -> dict[str, Any]:
    row = record_to_json(record)
    known = {name: row.pop(name) for name in schema().names if name in row}
    if isinstance(known.get("image"), str):
        known["image"] = [known["image"]]
    if "objects" in known:
        known["objects"] = list(known["objects"].items())
    return known | ({OTHER: json.dumps(row, ensure_ascii=False)} if row else {})


def from_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of such a file, or of any table of records, as a raw record: empty cells are absent keys.

    Raises ValueError, which names no file, where `OTHER` is no JSON object.
    """
    found = {key: value for key, value in row.items() if value is not None and key != OTHER}
    if isinstance(found.get("objects"), list) and all(isinstance(pair, tuple) for pair in found["objects"]):
        found["objects"] = dict(found["objects"])
    if isinstance(found.get("hallucinated"), list):
        found["hallucinated"] = [
            {key: value for key, value in edit.items() if value is not None} if isinstance(edit, dict) else edit
            for edit in found["hallucinated"]
        ]
    if not row.get(OTHER):
        return found
    other = parse(row[OTHER]) if isinstance(row[OTHER], str) else None
    if not isinstance(other, dict):
        raise ValueError(f"column {OTHER!r} must hold a JSON object as text; mend or drop the column")
    return {**found, **other}
