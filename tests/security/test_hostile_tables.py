"""Promises about hostile Parquet files: they are read or refused by name, in bounded memory."""

import subprocess
import sys
from pathlib import Path

import pytest

from hacl.data import parquet_limits
from hacl.data.parquet import OTHER
from hacl.data.records import RecordError
from hacl.data.sources import open_source

ROOT = Path(__file__).resolve().parents[2]


def table(path, columns):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)
    return open_source(str(path))


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"captions": [5]}, "captions"),
        ({"id": [1.5], "captions": ["a"]}, "id"),
        ({"captions": ["a"], "hallucinated": [5]}, "hallucinated"),
        ({"captions": ["a"], "hallucinated": ["text"]}, "hallucinated"),
        ({"captions": ["a"], "conversations": ["text"]}, "conversations"),
        ({"captions": ["a"], "objects": [[1, 2]]}, "objects"),
        ({"captions": ["a"], "image": [b"\x89PNG"]}, "image"),
        ({"captions": ["a"], OTHER: ["{"]}, "JSON|Expecting"),
        ({"captions": ["a"], OTHER: ["[1]"]}, OTHER),
        ({"captions": ["a"], OTHER: [7]}, OTHER),
        ({"captions": ["a"], OTHER: ['{"a": NaN}']}, "NaN"),
        ({"pixels": [3]}, "neither captions nor a conversation"),
    ],
    ids=str,
)
def test_a_table_of_another_schema_is_refused_by_row(tmp_path, columns, reason):
    source = table(tmp_path / "x.parquet", columns)
    ((where, row),) = source.rows()
    with pytest.raises(RecordError, match=reason) as refused:
        source.decode(where, row)
    assert "x.parquet:[0]" in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1PAR1", b"\0" * 100, b"PAR1" + b"\xff" * 40 + b"PAR1"])
def test_what_is_no_table_is_refused_by_name(tmp_path, content):
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(RecordError, match="x.parquet: not a Parquet file"):
        open_source(str(tmp_path / "x.parquet"))


def test_a_damaged_table_is_refused_by_name(tmp_path):
    table(tmp_path / "x.parquet", {"captions": [f"caption {n}" for n in range(1000)]})
    data = bytearray((tmp_path / "x.parquet").read_bytes())
    data[4:200] = b"\xff" * 196
    (tmp_path / "x.parquet").write_bytes(data)
    with pytest.raises(RecordError, match="x.parquet"):
        list(open_source(str(tmp_path / "x.parquet")).records())


@pytest.mark.parametrize("found", [b"caption 0", b"captions"], ids=["a cell", "a column's name"])
def test_a_table_whose_text_is_not_utf8_is_refused_by_name(tmp_path, found):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "x.parquet"
    columns = {"captions": ["caption 0", "caption 1"]}
    pq.write_table(pa.table(columns), path, compression="none", use_dictionary=False, store_schema=False)
    path.write_bytes(path.read_bytes().replace(found, b"\xff" + found[1:]))
    with pytest.raises(RecordError, match="x.parquet"):
        list(open_source(str(path)).records())


LONG = "x" * 200_000  # 1,024 of them are 195 MiB


@pytest.mark.parametrize(
    ("cells", "how", "reason"),
    [
        (
            [[LONG]] * 1024,
            {},
            r"rows 0 to 1023 together hold 204,8.* of text, 204,8.* in column captions, .*67,108,864",
        ),
        ([[{"text": LONG}] * 1024], {}, r"rows 0 to 0 .*in column captions, the limit is 67,108,864"),
        ([[("k", LONG)] * 512], {}, r"rows 0 to 0 .*in column captions, the limit is 67,108,864"),
        ([[LONG]] * 1024, {"use_dictionary": False}, r"row group 0 of 1\d,\d{3} bytes unpacks to 204,8"),
        ([[1] * 9_000_000], {}, r"hold 9,000,001 values, .* the limit is 8,388,608"),
        ([[True] * 20_000_000], {}, r"row group 0 of .* unpacks to 20,000,000 values"),
        (
            [[LONG]] * 1024,
            {"use_dictionary": False, "column_encoding": {"captions.list.element": "DELTA_BYTE_ARRAY"}},
            r"column captions\.list\.element: what the encoding DELTA_BYTE_ARRAY",
        ),
    ],
    ids=["one text", "structures", "a map", "pages", "a list", "a long list", "shared beginnings"],
)
def test_a_table_that_unpacks_to_far_more_than_its_size_is_refused_before_it_does(tmp_path, cells, how, reason):
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.list_(pa.bool_()) if cells[0][0] is True else None
    kind = pa.map_(pa.string(), pa.string()) if isinstance(cells[0][0], tuple) else kind
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"captions": pa.array(cells, kind)}), path, compression="zstd", **how)
    assert path.stat().st_size < 40_000
    with pytest.raises(RecordError, match=reason) as refused:
        next(open_source(str(path)).rows())
    assert "x.parquet" in str(refused.value)


PEAK = """
import sys, tracemalloc
import pyarrow
from hacl.data.records import RecordError
from hacl.data.sources import open_source

tracemalloc.start()
for path in sys.argv[1:]:
    try:
        next(open_source(path).rows())
    except RecordError:
        continue
    sys.exit(f"{path} was read")
print(pyarrow.default_memory_pool().max_memory() + tracemalloc.get_traced_memory()[1])
"""


def test_the_memory_that_a_refused_table_takes_is_far_below_what_it_unpacks_to(tmp_path):
    table(tmp_path / "one.parquet", {"captions": [[LONG]] * 1024})
    table(tmp_path / "edits.parquet", {"hallucinated": [[{"text": LONG}]] * 1024})
    files = [str(tmp_path / f"{name}.parquet") for name in ("one", "edits")]
    done = subprocess.run([sys.executable, "-c", PEAK, *files], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 32 * 2**20


def test_values_of_a_great_fixed_length_are_refused_by_column(tmp_path):
    import pyarrow as pa

    source = table(tmp_path / "x.parquet", {"id": pa.array([b"a" * 1000], pa.binary(1000))})
    with pytest.raises(RecordError, match="x.parquet: column id: values of 1,000 bytes, the limit is 64"):
        next(source.rows())


def test_a_table_of_long_texts_and_lists_within_the_limits_reads_as_it_was_written(tmp_path):
    """Each batch of rows is measured by itself: all of these would be above a limit together."""
    import pyarrow as pa

    rows = [
        {"id": f"r{n}", "prompt": f"{n} " * 99, "captions": ["same" * 5000], "scores": [n] * 3000,
         "objects": [("d" * 20_000, n)]}
        for n in range(4096)
    ]  # fmt: skip
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    columns["objects"] = pa.array(columns["objects"], pa.map_(pa.string(), pa.int64()))
    source = table(tmp_path / "x.parquet", columns)
    assert all(row == expected for (_, row), expected in zip(source.rows(), rows, strict=True))


def test_rows_that_are_part_of_a_longer_table_are_measured_by_themselves(tmp_path, monkeypatch):
    import pyarrow as pa

    monkeypatch.setattr(parquet_limits, "VALUES", 50)
    columns = {"objects": pa.array([[("dog", n)] for n in range(100)], pa.map_(pa.string(), pa.int64()))}
    columns |= {"captions": [["a", "b"]] * 100, "hallucinated": [[{"text": "c"}]] * 100}
    rows = pa.record_batch(columns)
    parquet_limits.check_batch(tmp_path, rows.slice(95), 95)
    with pytest.raises(RecordError, match="rows 92 to 99 together hold 72 values"):
        parquet_limits.check_batch(tmp_path, rows.slice(92), 92)
