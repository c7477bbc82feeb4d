"""Promises about hostile configuration files: nothing runs, nothing grows, and the error names file, line and key."""

import os

import pytest

from hacl.config import ConfigError, load_config
from hacl.config_io import LONGEST_FILE, read_plain

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


def refused(tmp_path, content):
    path = tmp_path / "run.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as error:
        load_config(path)
    message = str(error.value)
    assert "run.yaml" in message and len(message) < 2000
    return message


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['touch {marker}']",
        "!!python/object/new:os.system ['touch {marker}']",
        "!!python/name:os.system",
        "!!python/module:os",
        "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch {marker}']",
        "!local x",
        "!!binary aGk=",
        "!!timestamp x",
        "!!int ''",
        "!!bool x",
        "!!set {{a}}",
    ],
)
def test_no_tag_is_read_and_nothing_runs(tmp_path, tag):
    marker = tmp_path / "ran"
    message = refused(tmp_path, "data:\n  path: " + tag.format(marker=marker))
    assert "run.yaml:2" in message and "tag" in message and not marker.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (LAUGHS, ["run.yaml:1", "anchors and aliases"]),
        ("train: {seed: *x}", ["run.yaml:1", "anchors and aliases"]),
        ("train: {seed: 1}\ntrain: {seed: 2}", ["run.yaml:2", "'train' is given twice"]),
        ("train: {seed: 1, seed: 2}", ["run.yaml:1", "'seed' is given twice"]),
        ("data:\n  path: " + "[" * 100_000, ["run.yaml:2", "nested deeper than"]),
        ("data:\n  path: " + "{a: " * 100_000, ["run.yaml:2", "nested deeper than"]),
        ("".join("  " * n + "a:\n" for n in range(500)), ["run.yaml:2", "nested deeper than"]),
        ("? [a, b]\n: 1", ["run.yaml:1", "a key is text"]),
        ("? {a: b}\n: 1", ["run.yaml:1", "a key is text"]),
        ("2020-01-01: 1", ["run.yaml:1", "a key is text"]),
        ("log: {run_name: 2020-13-45}", ["run.yaml", "month"]),
        ("train: {seed: " + "9" * 10_000 + "}", ["run.yaml", "digits"]),
        ("train: {seed: 0x" + "f" * 10_000 + "}", ["train.seed must be int"]),
        ("train: {seed: 99999999999999999999}", ["train.seed must be int"]),
        ("train: {weight_decay: .nan}", ["train.weight_decay must be float"]),
        ("train: {weight_decay: .inf}", ["train.weight_decay must be float"]),
        ("train: {weight_decay: 'nan'}", ["train.weight_decay must be float"]),
        ("train: {epochs: 1e999}", ["train.epochs must be float"]),
        ("train: {epochs: 1" + "0" * 4000 + "}", ["train.epochs must be float"]),
        ("log: {run_name: [" + "'y'," * 5_000 + "]}", ["log.run_name", "characters"]),
        ("x" * 900 + ": 1", ["unknown key", "(902 characters)"]),
        ("data:\n  path: a\n  seed: \0", ["run.yaml", "special characters"]),
        (b"data:\n  seed: 1\n  path: \xff\xfe", ["run.yaml:3", "not UTF-8"]),
        ("data: {seed: 1}".encode("utf-16"), ["run.yaml:1", "not UTF-8"]),
        ("- a\n- b", ["expected a mapping", "list"]),
        ("just text", ["expected a mapping", "str"]),
        ("data: [unclosed", ["run.yaml", "not valid YAML"]),
        ("a: 1\n---\nb: 2", ["run.yaml", "not valid YAML"]),
        ("data: {path: x" + "y" * LONGEST_FILE + "}", ["longer than"]),
        ("data: 5", ["data is a section"]),
        ("objective: {form: [in_place]}", ["objective.form must be one of"]),
    ],
    ids=lambda value: value[:20].decode("latin-1") if isinstance(value, bytes) else str(value)[:20],
)
def test_a_hostile_file_is_refused_by_name_line_and_reason(tmp_path, content, words):
    message = refused(tmp_path, content)
    assert all(word in message for word in words), message


def test_a_byte_order_mark_is_no_error_and_an_empty_file_changes_nothing(tmp_path):
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbftrain: {seed: 3}")
    assert load_config(tmp_path / "bom.yaml").train.seed == 3
    (tmp_path / "empty.yaml").write_bytes(b"")
    assert load_config(tmp_path / "empty.yaml") == load_config(None)


@pytest.mark.parametrize("parent", ["x" * 5000 + ".yaml", '"a\\0b"', "missing.yaml", "[a, b]"])
def test_defaults_that_name_no_file_are_refused(tmp_path, parent):
    (tmp_path / "run.yaml").write_text(f"defaults: {parent}\n")
    with pytest.raises((ConfigError, FileNotFoundError)):
        load_config(tmp_path / "run.yaml")


def test_a_pipe_is_no_configuration(tmp_path):
    os.mkfifo(tmp_path / "run.yaml")
    with pytest.raises(FileNotFoundError, match="configuration file not found"):
        load_config(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    "override",
    ["", "=", "=1", "a", "a..b=1", ".=1", "data=1", "data.path=!!python/name:os.system", "data.path=&a [*a]",
     "data.path=" + "[" * 1000, "train.seed=" + "9" * 10_000, "train.seed=1\0", "train.seed=[1", "train.seed={a: 1}",
     "train.weight_decay=nan", "train.weight_decay=-.inf"],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_a_hostile_override_is_refused(override):
    with pytest.raises(ConfigError) as error:
        load_config(None, [override])
    assert len(str(error.value)) < 2000


def test_an_options_file_is_read_by_the_same_rules(tmp_path):
    (tmp_path / "options.yaml").write_text("a: 1\na: 2\n")
    with pytest.raises(ConfigError, match=r"options.yaml:2: key 'a' is given twice"):
        read_plain(tmp_path / "options.yaml")
