"""Results as plain JSON and CSV: no NumPy types, no NaN; what is undefined is null."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hacl.evaluation.statistics import Interval
from hacl.representations.manifest import write_bytes, write_json

Row = dict[str, Any]


def plain(value: Any) -> Any:
    """The value with plain Python types; None for every number that is not finite."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def interval_columns(name: str, interval: Interval) -> Row:
    """`name`, `name_low`, `name_high` for a flat row."""
    return {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV with the columns of all of them; lists are joined by spaces, undefined is an empty field."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(plain(row.get(column))) for column in columns])
    return stream.getvalue()


def write_tables(
    folder: Path | str, name: str, content: Mapping[str, Any], tables: Mapping[str, Sequence[Row]]
) -> Path:
    """Write `NAME.json` and one `NAME_TABLE.csv` for each table that has rows. Returns the JSON's path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for table, rows in tables.items():
        if rows:
            write_bytes(folder / f"{name}_{table}.csv", csv_text(rows).encode("utf-8"))
    write_json(folder / f"{name}.json", plain(content))
    return folder / f"{name}.json"


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "" if value is None else value
