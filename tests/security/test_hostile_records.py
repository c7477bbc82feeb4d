"""Promises about hostile record files: JSON and shards are read or refused by name, in bounded memory."""

import io
import json
import os
import tarfile
import tracemalloc

import pytest

from hacl.data import json_text, webdataset
from hacl.data.records import RecordError, iter_raw, iter_records, parse_record, read_records, write_records
from hacl.data.sources import open_source
from hacl.data.webdataset import read_shards

GOOD = b'{"id": "good", "captions": ["a"]}'
DEEP = 100_000
BAD_VALUES = {
    "a key twice": (b'{"id": "x", "captions": ["a"], "id": "y"}', "'id' is given twice"),
    "a key twice inside": (b'{"captions": ["a"], "objects": {"dog": 1, "dog": 2}}', "'dog' is given twice"),
    "deep lists": (b'{"a": ' + b"[" * DEEP + b"]" * DEEP + b"}", "nested deeper"),
    "deep objects": (b'{"a":' * DEEP + b"1" + b"}" * DEEP, "nested deeper"),
    "just too deep": (b'{"captions": ["a"], "a": ' + b"[" * 100 + b"]" * 100 + b"}", "nested deeper"),
    "NaN": (b'{"captions": ["a"], "x": NaN}', "NaN is no JSON"),
    "infinity": (b'{"captions": ["a"], "x": -Infinity}', "-Infinity is no JSON"),
    "too large a number": (b'{"captions": ["a"], "x": 1e999}', "too large"),
    "10,000 digits": (b'{"id": ' + b"9" * 10_000 + b', "captions": ["a"]}', "10000 digits"),
    "half a character": (b'{"captions": ["\\ud800"]}', "half of a surrogate pair"),
    "half a character in an unknown key": (b'{"captions": ["a"], "x": {"y\\udc00": 1}}', "half of a surrogate pair"),
    "not UTF-8": (b'{"captions": ["\xff"]}', "utf-8"),
    "UTF-16": ('{"captions": ["a"]}'.encode("utf-16-le"), "JSON"),
    "a raw NUL": (b'{"captions": ["a\0b"]}', "control character"),
    "two values": (GOOD + b" " + GOOD, "Extra data"),
    "no JSON": (b"{'captions': ['a']}", "double quotes"),
    "cut": (GOOD[:-3], "JSON"),
}
BAD_FIELDS = {
    "an escaped NUL": (b'{"id": "n", "captions": ["a\\u0000b"]}', "NUL"),
    "10 MB of text": (b'{"id": "n", "captions": ["' + b"a" * 10_000_000 + b'"]}', "10,000,000 characters"),
    "a long role": (b'{"id": "n", "conversations": [{"from": "' + b"r" * 100_000 + b'", "value": "x"}]}', "is unknown"),
    "a long id": (b'{"id": "' + b"i" * 100_000 + b'", "captions": ["a"]}', "longer than 2000 characters"),
    "a long path": (b'{"id": "n", "captions": ["a"], "image": "' + b"p" * 100_000 + b'"}', "more than 2000 characters"),
    "no object": (b'["a"]', "expected a JSON object"),
    "nothing said": (b'{"id": "n"}', "neither captions nor a conversation"),
}


@pytest.mark.parametrize("name", BAD_VALUES)
@pytest.mark.parametrize("as_list", [False, True], ids=["lines", "list"])
def test_bad_json_is_refused_with_file_and_line_after_the_good_before_it(tmp_path, name, as_list):
    content, reason = BAD_VALUES[name]
    path = tmp_path / ("x.json" if as_list else "x.jsonl")
    path.write_bytes(b"[\n" + GOOD + b",\n" + content + b"\n]" if as_list else GOOD + b"\n" + content + b"\n" + GOOD)
    rows = iter_records(path)
    assert (as_list and name == "not UTF-8") or next(rows).id == "good"
    with pytest.raises(RecordError) as refused:
        list(rows)
    message = str(refused.value)
    assert ("x.json" in message) if as_list else ("x.jsonl:2:" in message)
    assert not as_list or "line 3" in message or name == "cut", message
    assert (as_list and name in ("two values", "UTF-16", "cut")) or reason.lower() in message.lower(), message
    assert len(message) < 1000
    if not as_list:
        source = open_source(str(path))
        assert source.count() == 3
        first, second, third = source.rows()
        assert source.decode(*first).id == source.decode(*third).id == "good"
        with pytest.raises(RecordError, match="x.jsonl:2"):
            source.decode(*second)


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_a_bad_record_is_refused_with_file_line_and_reason(tmp_path, name):
    content, reason = BAD_FIELDS[name]
    (tmp_path / "x.jsonl").write_bytes(GOOD + b"\n" + content)
    with pytest.raises(RecordError, match=reason) as refused:
        read_records(tmp_path / "x.jsonl")
    assert "x.jsonl:2" in str(refused.value) and len(str(refused.value)) < 1000


def test_what_is_unusual_but_right_is_read(tmp_path):
    lines = [
        b'\xef\xbb\xbf{"id": 17, "captions": ["\\ud83d\\ude00"]}\r\n',
        b"\n  \t \n",
        b'{"captions": ["a"], "x": ' + b"[" * 90 + b"]" * 90 + b"}\n",
        b'{"captions": ["' + b"a" * 900_000 + b'"], "x": 1e-999, "y": -0.0}',
    ]
    (tmp_path / "x.jsonl").write_bytes(b"".join(lines))
    records = read_records(tmp_path / "x.jsonl")
    assert records[0].id == "17" and records[0].captions == ("\U0001f600",) and len(records) == 3
    assert write_records(tmp_path / "y.jsonl", records) == 3
    assert read_records(tmp_path / "y.jsonl") == records


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b"[]", b" [ ] \n"])
def test_a_file_of_nothing_holds_no_records(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    assert read_records(tmp_path / "x.json") == []


def peak_of(call):
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "content",
    [b'{"captions": ["', b"", b'[{"captions": ["a"]}, "', b"[" + b" " * 100, b'{"a": [1, 2, "'],
    ids=["an open text", "no line break", "an open text in a list", "blanks in a list", "an open list"],
)
def test_a_line_or_an_element_without_end_takes_bounded_memory(tmp_path, monkeypatch, content):
    """Ten times the limit in the file, which is lowered here."""
    monkeypatch.setattr(json_text, "LONGEST", 2**20)
    path = tmp_path / "x.json"
    with path.open("wb") as file:
        file.write(content)
        for _ in range(40):
            file.write((b" " if content.startswith(b"[ ") else b"a") * 2**18)

    def read():
        with pytest.raises(RecordError, match="x.json") as refused:
            list(iter_raw(path))
        assert len(str(refused.value)) < 1000

    assert peak_of(read) < 8 * 2**20


def test_the_line_after_one_that_is_too_long_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(json_text, "LONGEST", 100)
    (tmp_path / "x.jsonl").write_bytes(GOOD + b"\n" + b"x" * 1000 + b"\n" + b"y" * 101 + b"\n" + GOOD)
    errors = []
    assert len(list(iter_raw(tmp_path / "x.jsonl", errors.append))) == 2
    assert [f"x.jsonl:{line}: " in str(error) for line, error in zip((2, 3), errors, strict=True)] == [True, True]
    source = open_source(str(tmp_path / "x.jsonl"))
    assert [where.rpartition(":")[2] for where, _ in source.rows()] == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    "key",
    ["id", "image_id", "image", "images", "captions", "caption", "text", "hallucinated", "conversations", "objects",
     "Hallucination caption"],
)  # fmt: skip
@pytest.mark.parametrize("value", [True, 1.5, {"a": {}}, [[]], [None], [{}], [1], {}, {"x": None}])
def test_every_key_refuses_every_wrong_type_by_name_or_reads_it(key, value):
    raw = {"id": "r", "captions": ["a"], key: value}
    try:
        record = parse_record(raw, where="f.jsonl:7")
    except RecordError as error:
        assert str(error).startswith("f.jsonl:7:") and "key " in str(error)
    else:
        assert key in ("objects", "image", "images") or record.captions
        assert parse_record(json.loads(json.dumps(raw)), where="f") == record


# Tables


# Shards


def member(name, data=b"", **changes):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in changes.items():
        setattr(info, key, value)
    return info, data


def shard(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return path


FINE = [member("1.txt", b"a"), member("1.json", b'{"id": "one"}')]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (member("../2.txt", b"a"), "climbs out"),
        (member("a/../../2.txt", b"a"), "climbs out"),
        (member("/2.txt", b"a"), "absolute"),
        (member("C:/2.txt", b"a"), "drive"),
        (member("a\\2.txt", b"a"), "backslash"),
        (member("2.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "link or a device"),
        (member("2.jpg", type=tarfile.LNKTYPE, linkname="../x"), "link or a device"),
        (member("2.jpg", type=tarfile.CHRTYPE, devmajor=1, devminor=5), "link or a device"),
        (member("2.jpg", type=tarfile.FIFOTYPE), "link or a device"),
        (member("2.json", b'{"id": "x", "id": "y"}'), "given twice"),
        (member("2.json", b"[" * DEEP), "nested deeper"),
        (member("2.txt", b"\xff\xfe"), "UTF-8"),
        (member("2.json", b"5"), "expected a JSON object"),
        (member("2.json", b'{"image": 5}'), "neither captions"),
    ],
    ids=lambda value: str(getattr(value[0], "name", value[0]))[:30] if isinstance(value, tuple) else value,
)
def test_a_hostile_member_is_refused_by_shard_and_name(tmp_path, bad, reason):
    path = shard(tmp_path / "x.tar", [*FINE, bad])
    for read in (lambda: list(read_shards([path], tmp_path / "out")), lambda: list(open_source(str(path)).records())):
        with pytest.raises(RecordError, match=reason) as refused:
            read()
        assert "x.tar" in str(refused.value) and len(str(refused.value)) < 1000
    assert not (tmp_path / "2.txt").exists() and not os.path.lexists(tmp_path / "out" / "2.jpg")


def damaged(path, at, patch):
    data = bytearray(path.read_bytes())
    data[at : at + len(patch)] = patch
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("at", [1024, 1024 + 148], ids=["name", "checksum"])
def test_a_damaged_header_is_no_end_of_the_shard(tmp_path, at):
    path = damaged(shard(tmp_path / "x.tar", [*FINE, member("2.txt", b"b")]), at, b"\xff")
    for read in (lambda: list(read_shards([path])), lambda: open_source(str(path)).count()):
        with pytest.raises(RecordError, match="x.tar.*damaged header"):
            read()


def header(size, kind=tarfile.REGTYPE):
    """A tar header that claims a size, which no writer would."""
    info = tarfile.TarInfo("2.txt")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("size", "kind"),
    [(-512, tarfile.REGTYPE), (-1024, tarfile.XHDTYPE), (2**40, tarfile.XHDTYPE), (2**40, tarfile.GNUTYPE_LONGNAME),
     (2**40, tarfile.REGTYPE), (2**60, tarfile.GNUTYPE_SPARSE)],
)  # fmt: skip
def test_a_header_that_claims_an_absurd_size_is_refused(tmp_path, size, kind):
    shard(tmp_path / "x.tar", FINE)
    whole = (tmp_path / "x.tar").read_bytes()
    path = tmp_path / "y.tar"
    path.write_bytes(whole[:2048] + header(size, kind) + b"\0" * 4096)
    for read in (lambda: list(read_shards([path])), lambda: open_source(str(path)).count()):
        with pytest.raises(RecordError, match="y.tar"):
            read()


def test_a_chain_of_headers_is_refused(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(header(0, tarfile.XHDTYPE) * 5000 + b"\0" * 1024)
    with pytest.raises(RecordError, match="x.tar"):
        list(read_shards([path]))


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
def test_a_cut_shard_is_refused_by_name_whatever_its_compression(tmp_path, mode, keep):
    path = shard(tmp_path / "x.tar", [member(f"{n}.txt", os.urandom(30).hex().encode()) for n in range(40)], mode)
    data = path.read_bytes()
    cut = int((40 * 1024 if mode == "w" else len(data)) * keep)
    path.write_bytes(data[: cut + 7])
    with pytest.raises(RecordError, match="x.tar"):
        list(read_shards([path]))


def test_a_compressed_bomb_of_one_sample_is_refused_before_it_fills_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "MAX_MEMBER_BYTES", 2**20)
    monkeypatch.setattr(webdataset, "MAX_SAMPLE_BYTES", 4 * 2**20)
    path = shard(tmp_path / "x.tar.gz", [member(f"1.{n}.jpg", b"\0" * 2**20) for n in range(128)], "w:gz")
    assert path.stat().st_size < 2**20

    def read():
        with pytest.raises(RecordError, match="x.tar.gz:1 holds more than"):
            list(read_shards([path]))

    assert peak_of(read) < 48 * 2**20


def test_a_link_below_the_image_folder_leads_nothing_out(tmp_path):
    out, outside = tmp_path / "out", tmp_path / "outside"
    out.mkdir(), outside.mkdir()
    (out / "link").symlink_to(outside)
    image = io.BytesIO()
    from PIL import Image

    Image.new("RGB", (4, 4)).save(image, "PNG")
    content = [member("1.png", image.getvalue()), member("1.json", b'{"image": "link/deep/x.png", "captions": ["a"]}')]
    with pytest.raises(RecordError, match="leads through a link"):
        list(read_shards([shard(tmp_path / "x.tar", content)], out))
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "y/" * 700 + "z" * 300 + ".png"])
def test_a_name_that_no_file_can_have_is_refused(tmp_path, name):
    image = io.BytesIO()
    from PIL import Image

    Image.new("RGB", (4, 4)).save(image, "PNG")
    row = json.dumps({"image": name, "captions": ["a"]}).encode()
    path = shard(tmp_path / "x.tar", [member("1.png", image.getvalue()), member("1.json", row)])
    with pytest.raises(RecordError, match="is no name for a file here"):
        list(read_shards([path], tmp_path / "out"))
