"""How much a Parquet file may unpack to: a few kilobytes can hold one long text a thousand times, or an endless list.

Texts are read as dictionaries, in which equal texts are one, so what rows would take is known before they are made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hacl.data.schema import RecordError

BYTES = 64 * 2**20  # of the texts of a batch of rows; of a row group as well, or
RATIO = 100  # times its size in the file
VALUES = 2**23  # of a batch of rows, list items and lists counted; twice as many of a row group, or
PER_BYTE = 8  # for each of its bytes in the file
WIDEST = 64  # bytes of a value whose type fixes its length


def open_bounded(path: Path) -> Any:
    """A `ParquetFile` whose texts are read as dictionaries. Raises RecordError for a column that cannot be bounded."""
    import pyarrow.parquet as pq

    schema = pq.ParquetFile(path).schema
    columns = [schema.column(number) for number in range(len(schema))]
    for column in columns:
        if column.length > WIDEST:
            raise RecordError(f"{path}: column {column.path}: values of {column.length:,} bytes, the limit is {WIDEST}")
    return pq.ParquetFile(path, read_dictionary=[c.path for c in columns if c.physical_type == "BYTE_ARRAY"])


def check_group(path: Path, file: Any, group: int) -> None:
    """Refuse a row group that unpacks to far more than it takes in the file, as its footer says. Raises RecordError."""
    meta = file.metadata.row_group(group)
    columns = [meta.column(number) for number in range(meta.num_columns)]
    where = f"{path}: row group {group}"
    for column in columns:
        if "DELTA_BYTE_ARRAY" in column.encodings:
            raise RecordError(
                f"{where}, column {column.path_in_schema}: what the encoding DELTA_BYTE_ARRAY unpacks to is not known "
                "before; write the column with another encoding"
            )
    size = sum(column.total_compressed_size for column in columns)
    for what, limit, found in (
        ("bytes", max(BYTES, RATIO * size), {c.path_in_schema: c.total_uncompressed_size for c in columns}),
        ("values", max(2 * VALUES, PER_BYTE * size), {c.path_in_schema: c.num_values for c in columns}),
    ):
        _refuse_above(limit, found, f"{where} of {size:,} bytes unpacks to", what)


def check_batch(path: Path, batch: Any, first: int) -> None:
    """Refuse rows whose texts or lists would take more than `BYTES` or `VALUES`, before they are made.

    first: number of the first row in the file. Raises RecordError.
    """
    found = {name: _measure(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)}
    where = f"{path}: rows {first} to {first + len(batch) - 1} together hold"
    _refuse_above(BYTES, {name: size for name, (_, size) in found.items()}, where, "bytes of text")
    _refuse_above(VALUES, {name: values for name, (values, _) in found.items()}, where, "values")


def _refuse_above(limit: int, found: dict[str, int], where: str, what: str) -> None:
    total = sum(found.values())
    if total > limit:
        most = max(found, key=found.__getitem__)
        raise RecordError(
            f"{where} {total:,} {what}, {found[most]:,} of them in column {most}, the limit is {limit:,}; shorten "
            "them, leave the column out, or write smaller row groups"
        )


def _measure(array: Any) -> tuple[int, int]:
    """(values, bytes of text) of an array once every entry of a dictionary stands where it is used."""
    import pyarrow.compute as pc
    from pyarrow import types

    kind = array.type
    if types.is_nested(kind):
        parts = list(map(_measure, _children(array)))
        return len(array) + sum(values for values, _ in parts), sum(size for _, size in parts)
    if types.is_dictionary(kind) and not types.is_primitive(kind.value_type):
        lengths = pc.take(pc.binary_length(array.dictionary), array.indices)
        return len(array), pc.sum(lengths).as_py() or 0
    return len(array), 0 if types.is_primitive(kind) else array.nbytes


def _children(array: Any) -> list[Any]:
    """What lies inside the structures, lists or maps of an array, of a part of a longer one only its own."""
    from pyarrow import types

    if types.is_struct(array.type):
        return array.flatten()
    if not types.is_map(array.type):
        return [array.flatten()]
    first, last = array.offsets[0].as_py(), array.offsets[-1].as_py()
    return [inner.slice(first, last - first) for inner in (array.keys, array.items)]
