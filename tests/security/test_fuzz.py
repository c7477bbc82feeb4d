"""Properties of the readers over generated input: a valid value, or one clear error that names the place. Never another
exception, never a value that cannot be written back."""

import io
import json
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hacl.config import Config, ConfigError, load_config, save_config, to_dict
from hacl.config_io import from_dict, parse_overrides
from hacl.data.images import check_relative, decode_image
from hacl.data.json_text import parse
from hacl.data.parquet import schema, write_parquet
from hacl.data.records import (
    HALLUCINATION_TYPES,
    HallucinatedCaption,
    Record,
    RecordError,
    Turn,
    iter_records,
    parse_record,
    read_records,
    record_to_json,
    write_records,
)
from hacl.data.sources import open_source
from hacl.data.webdataset import read_shards
from hacl.training.manifest import flatten
from tests.security import profiles

profiles.load()

# What files may hold

KEYS = [
    "id", "image_id", "image", "images", "captions", "caption", "text", "hallucinated", "conversations", "objects",
    "Hallucination caption", "Hallucination captions", "hallucination_caption", "license",
]  # fmt: skip
INNER = ["text", "type", "span", "source", "of", "role", "content", "from", "value"]
text = st.text(max_size=12) | st.sampled_from(
    ["", " ", "<image>", "user", "gpt", "object", "a dog", "x" * 300, "\0", "\ud800"]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | text
json_values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS + INNER) | text, inner, max_size=5)
    ),
    max_leaves=20,
)
record_like = st.dictionaries(st.sampled_from(KEYS), json_values, max_size=6)

words = st.text(min_size=1, max_size=20).filter(lambda t: t.strip() and "\0" not in t)
captions = words.map(str.strip)


@st.composite
def edits(draw, count):
    written = draw(words)
    span = None
    if draw(st.booleans()):
        start = draw(st.integers(0, len(written)))
        span = (start, draw(st.integers(start, len(written))))
    kind = draw(st.sampled_from(HALLUCINATION_TYPES))
    of = draw(st.none() | st.integers(0, count - 1)) if count else None
    return HallucinatedCaption(written if span else written.strip(), kind, span, draw(st.text(max_size=5)), of)


@st.composite
def records(draw):
    said = tuple(draw(st.lists(captions, max_size=3)))
    turns = draw(st.lists(words, max_size=3) if said else st.lists(words, min_size=1, max_size=3))
    images = tuple(draw(st.lists(words, max_size=2)))
    return Record(
        id=draw(words),
        images=images,
        image_id=draw(words),
        captions=said,
        hallucinated=tuple(draw(st.lists(edits(len(said)), max_size=2))),
        conversation=tuple(Turn(("user", "assistant")[n % 2], text) for n, text in enumerate(turns)),
        objects=draw(st.none() | st.dictionaries(captions, st.integers(1, 99), max_size=3)),
        extra=draw(
            st.dictionaries(
                st.sampled_from(["license", "split", "note"]), st.integers(-9, 9) | st.text(max_size=5), max_size=2
            )
        ),
    )


def assert_record_or_error(read, place):
    """`read()` gives records that can be written, or an error of a bad record that names the place."""
    try:
        found = list(read())
    except RecordError as error:
        assert place in str(error) and len(str(error)) < 3000
        return []
    for record in found:
        assert record.id and (record.captions or record.conversation)
        assert all(type(said) is str and said for said in record.captions)
        again = json.dumps(record_to_json(record), ensure_ascii=False, allow_nan=False)
        again.encode()
        assert parse_record(parse(again), where="again") == record
    return found


# Records


@given(value=json_values | record_like)
def test_any_value_is_a_record_or_an_error_that_names_the_place(value):
    try:
        record = parse_record(value, where="f.jsonl:9")
    except RecordError as error:
        assert str(error).startswith("f.jsonl:9:") and len(str(error)) < 3000
    else:
        assert record.captions or record.conversation


@given(values=st.lists(json_values | record_like, max_size=3), data=st.data())
def test_any_json_file_gives_records_or_an_error_that_names_the_file(tmp_path, values, data):
    as_list = data.draw(st.booleans())
    written = json.dumps(values) if as_list else "".join(json.dumps(value) + "\n" for value in values)
    path = tmp_path / "x.jsonl"
    path.write_text(written, encoding="utf-8")
    whole = assert_record_or_error(lambda: iter_records(path), "x.jsonl")
    streamed = assert_record_or_error(lambda: open_source(str(path)).records(), "x.jsonl")
    assert whole == streamed


@given(record=records(), data=st.data())
def test_a_mutated_line_gives_a_record_or_an_error_that_names_file_and_line(tmp_path, record, data):
    line = bytearray(json.dumps(record_to_json(record), ensure_ascii=data.draw(st.booleans())).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(line)))
        how = data.draw(st.sampled_from(["byte", "insert", "delete", "copy"]))
        if how == "byte" and at < len(line):
            line[at] = data.draw(st.integers(0, 255))
        elif how == "insert":
            line[at:at] = data.draw(
                st.binary(max_size=4) | st.sampled_from([b"[", b"{", b"\\ud800", b"NaN", b"1e999", b"\0"])
            )
        elif how == "delete":
            del line[at : at + data.draw(st.integers(1, 9))]
        else:
            line[at:at] = line[: data.draw(st.integers(0, len(line)))]
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"id": "good", "captions": ["a"]}\n' + bytes(line).replace(b"\n", b" ").replace(b"\r", b" "))
    assert next(iter_records(path)).id == "good"
    assert_record_or_error(lambda: iter_records(path), "x.jsonl:2")


@given(
    content=st.binary(max_size=200),
    start=st.sampled_from([b"", b"[", b"{", b"[{", b'{"id": 1, "captions": ["', b"\xef\xbb\xbf["]),
)
def test_random_bytes_give_records_or_an_error_that_names_the_file(tmp_path, content, start):
    path = tmp_path / "x.json"
    path.write_bytes(start + content)
    assert_record_or_error(lambda: iter_records(path), "x.json")


@given(rows=st.lists(records(), max_size=4), name=st.sampled_from(["x.jsonl", "x.json"]))
def test_what_is_written_reads_back_equal(tmp_path, rows, name):
    assert write_records(tmp_path / name, rows) == len(rows)
    assert read_records(tmp_path / name) == rows
    assert list(open_source(str(tmp_path / name)).records()) == rows


# Tables and shards


@given(rows=st.lists(records(), max_size=3))
def test_what_is_written_to_a_table_reads_back_equal(tmp_path, rows):
    write_parquet(tmp_path / "x.parquet", rows)
    assert list(open_source(str(tmp_path / "x.parquet")).records()) == rows


@given(rows=st.lists(record_like, min_size=1, max_size=3))
def test_a_table_of_any_columns_gives_records_or_an_error_that_names_the_row(tmp_path, rows):
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    except (pa.ArrowException, UnicodeEncodeError, OverflowError, ValueError, TypeError):
        return  # no table
    source = open_source(str(tmp_path / "x.parquet"))
    for where, row in source.rows():
        try:
            source.decode(where, row)
        except RecordError as error:
            assert "x.parquet:[" in str(error)


@given(cut=st.integers(0, 3000), patch=st.binary(min_size=1, max_size=8))
def test_a_damaged_table_gives_records_or_an_error_that_names_the_file(tmp_path, cut, patch):
    path = tmp_path / "x.parquet"
    write_parquet(path, [Record(str(n), captions=(f"caption {n}",), image_id="i") for n in range(30)])
    data = bytearray(path.read_bytes())
    at = cut % len(data)
    data[at : at + len(patch)] = patch
    path.write_bytes(data)
    try:
        list(open_source(str(path)).records())
    except RecordError as error:
        assert "x.parquet" in str(error)


def shard_bytes():
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as tar:
        for name, content in (
            ("1.txt", b"a"),
            ("1.json", b'{"id": "1"}'),
            ("sub/" + "x" * 120 + ".txt", b"b"),
            ("2.txt", b"c"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return written.getvalue()


SHARD = shard_bytes()


@given(
    patches=st.lists(st.tuples(st.integers(0, 8 * 512), st.binary(min_size=1, max_size=12)), min_size=1, max_size=4),
    keep=st.integers(0, len(SHARD)) | st.just(len(SHARD)),
)
def test_a_damaged_shard_gives_records_or_an_error_that_names_the_shard(tmp_path, patches, keep):
    data = bytearray(SHARD)
    for at, patch in patches:
        data[at : at + len(patch)] = patch
    path = tmp_path / "x.tar"
    path.write_bytes(data[:keep])
    assert_record_or_error(lambda: read_shards([path]), "x.tar")
    assert_record_or_error(lambda: open_source(str(path)).records(), "x.tar")


# Images


def pictures():
    image = Image.effect_noise((24, 16), 80)
    for kind, options in (("PNG", {}), ("JPEG", {}), ("GIF", {}), ("WEBP", {}), ("BMP", {}), ("TIFF", {}),
                          ("TIFF", {"compression": "tiff_lzw"}), ("PPM", {})):  # fmt: skip
        written = io.BytesIO()
        image.convert("RGB").save(written, kind, **options)
        yield written.getvalue()


PICTURES = list(pictures())


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about EXIF data
@given(
    start=st.sampled_from(PICTURES),
    patches=st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=6), st.integers(0, 6)), max_size=4),
)
def test_a_damaged_image_is_an_rgb_image_or_an_error_that_names_it(start, patches):
    data = bytearray(start)
    for at, patch, gone in patches:
        data[at : at + gone] = patch
    try:
        assert decode_image(bytes(data), "x.png").mode == "RGB"
    except ValueError as error:
        assert str(error).startswith("x.png: ")


@given(
    path=st.text(max_size=40) | st.lists(st.sampled_from(["..", ".", "a", "", "C:", "~", "\\", "%2e"])).map("/".join)
)
def test_any_path_stays_below_the_root_or_is_refused(tmp_path, path):
    try:
        check_relative(path)
    except ValueError as error:
        assert "image path" in str(error)
    else:
        joined = (tmp_path / path).resolve() if len(path) < 200 and "\0" not in path else tmp_path
        assert joined.is_relative_to(tmp_path.resolve())


# Configurations

TOKENS = (
    "data train model : &a *a !!int 1e3 .nan null 2020-13-13 0x 1:60 ' \" | > # % @ ? << seed path ~ --- [ ] { } - <<:"
).split()
yaml_text = st.text(max_size=60) | st.lists(st.sampled_from([*TOKENS, ": ", "\n", "  ", "- "]), max_size=25).map(
    "".join
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
CONFIG_KEYS = sorted(flatten(Config()))


def config_or_error(read):
    try:
        found = read()
    except (ConfigError, FileNotFoundError) as error:
        assert len(str(error)) < 5000
        return None
    assert from_dict(Config, to_dict(found)) == found
    return found


@given(content=yaml_text | st.binary(max_size=60))
def test_any_file_is_a_configuration_or_an_error_that_names_it(tmp_path, content):
    path = tmp_path / "run.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    try:
        load_config(path)
    except ConfigError as error:
        assert "run.yaml" in str(error) and len(str(error)) < 5000
    except FileNotFoundError as error:
        assert "configuration file not found" in str(error)


@given(chosen=st.dictionaries(st.sampled_from(CONFIG_KEYS), plain, max_size=4))
def test_any_values_of_known_keys_are_a_configuration_or_an_error(tmp_path, chosen):
    import yaml

    nested = {}
    for key, value in chosen.items():
        *sections, last = key.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump(nested, allow_unicode=True), encoding="utf-8", errors="surrogatepass"
    )
    found = config_or_error(lambda: load_config(tmp_path / "run.yaml"))
    if found is not None:
        save_config(found, tmp_path / "saved.yaml")
        assert load_config(tmp_path / "saved.yaml") == found


@given(
    key=st.sampled_from(CONFIG_KEYS)
    | st.text(max_size=12)
    | st.lists(st.sampled_from(["train", "data", ".", ""])).map(".".join),
    value=yaml_text | st.integers().map(str) | st.floats().map(str),
)
def test_any_override_is_a_configuration_or_an_error(key, value):
    config_or_error(lambda: load_config(None, [f"{key}={value}"]))


@given(overrides=st.lists(st.text(max_size=20), max_size=3))
def test_any_overrides_are_a_mapping_or_an_error(overrides):
    try:
        assert isinstance(parse_overrides(overrides), dict)
    except ConfigError:
        pass


def test_the_columns_of_a_table_are_those_the_generator_of_records_fills():
    assert set(schema().names) >= set(record_to_json(Record("1", captions=("a",))))


def test_the_short_profile_makes_the_same_examples_every_time():
    from hypothesis import settings

    if profiles.EXAMPLES:
        pytest.skip("the long profile is on")
    assert settings.default.derandomize and settings.default.deadline is None
