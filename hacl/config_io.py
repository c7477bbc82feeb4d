"""Read typed configuration: YAML without duplicate keys, `section.key=value` overrides, dataclasses checked key by key.

Knows no setting by name: any nested dataclass can be the schema.
"""

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Iterator
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

import yaml


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names file, key and fix."""


def setting(default: Any, help: str) -> Any:
    """A dataclass field with the line of help for `train.py --help`; mutable defaults are copied per instance."""
    if isinstance(default, type):
        return field(default_factory=default, metadata={"help": help})
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


LONGEST_FILE = 2**20  # bytes
DEEPEST = 20  # levels; every node below the top is one more


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader of plain data: no key twice in one mapping, no tags, no aliases (ten lines of which can stand for
    gigabytes), no deep nesting."""

    def __init__(self, text: str, where: str):
        self.where, self.depth = where, 0
        super().__init__(text)
        self.name = where

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        problem = None
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            problem = "anchors and aliases (&name, *name) are not read; write the value out"
        elif getattr(event, "tag", None) not in (None, "!"):
            problem = f"the tag {event.tag!r} is not read; write plain values"
        elif self.depth >= DEEPEST:
            problem = f"nested deeper than {DEEPEST} levels"
        if problem is not None:
            raise ConfigError(f"{self.where}:{event.start_mark.line + 1}: {problem}")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int, float, bool, type(None))):
                raise ConfigError(
                    f"{node.start_mark.name}:{key_node.start_mark.line + 1}: a key is text, found {short(key)}"
                )
            if key in seen:
                raise ConfigError(
                    f"{node.start_mark.name}:{key_node.start_mark.line + 1}: key {short(key)} is given twice"
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str, where: str) -> Any:
    try:
        loader = _UniqueKeyLoader(text, where)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {error}") from error
    try:
        return loader.get_single_data()
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date in month 13, a number of too many digits
        raise ConfigError(f"{where}:{loader.line + 1}: not valid YAML: {error}") from error
    finally:
        loader.dispose()


def short(value: Any) -> str:
    """`repr` for a message: cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes out no integer of many thousand digits
        return "a number of very many digits"
    return text if len(text) <= 200 else f"{text[:200]}... ({len(text):,} characters)"


def _read_text(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(LONGEST_FILE + 1)
    if len(content) > LONGEST_FILE:
        raise ConfigError(f"{path}: longer than {LONGEST_FILE:,} bytes; is it a configuration?")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 ({error.reason}); save the file as UTF-8") from error


def read_plain(path: Path) -> Any:
    """What a YAML (or JSON) file of at most `LONGEST_FILE` bytes holds. Raises ConfigError naming file and line."""
    return _parse_yaml(_read_text(path), str(path))


def read_yaml(path: str | Path, _seen: tuple[Path, ...] = ()) -> dict:
    """Read one YAML mapping; `defaults: other.yaml` is read first and overridden key by key."""
    path = Path(path)
    try:
        is_file = path.is_file()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{short(str(path))} is no name of a file ({error})") from error
    if not is_file:
        raise FileNotFoundError(f"configuration file not found: {path}")
    if path.resolve() in _seen:
        raise ConfigError(f"{path}: 'defaults' refers back to a file that is being read")
    data = read_plain(path)
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping at the top, got {type(data).__name__}")
    parent = data.pop("defaults", None)
    if parent is None:
        return data
    return merge(read_yaml(path.parent / str(parent), (*_seen, path.resolve())), data)


def merge(base: dict, over: dict) -> dict:
    """Nested dictionaries merged key by key, `over` wins; neither argument is changed."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def parse_overrides(overrides: typing.Sequence[str]) -> dict:
    """`["train.epochs=2", "data.path=[a, b]"]` to nested dictionaries; values are YAML scalars, lists or mappings."""
    merged: dict = {}
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"override {short(text)}: expected section.key=value, e.g. train.epochs=2")
        nested: Any = _parse_yaml(value, f"override {name.strip()}")
        for part in reversed(name.strip().split(".")):
            nested = {part: nested}
        merged = merge(merged, nested)
    return merged


def _coerce(value: Any, hint: Any, key: str, where: str, root: type) -> Any:
    """`value` checked against a type hint; integers become floats and a lone string a list where the field says so."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: {key} is a section and needs keys below it, got {short(value)}")
        return from_dict(hint, value, where=where, prefix=f"{key}.", root=root)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{where}: {key} must be one of {', '.join(map(str, arguments))}; got {short(value)}")
        return value
    if origin in (types.UnionType, typing.Union):
        for option in arguments:
            if option is type(None) and value is None:
                return None
            if option is not type(None) and value is not None:
                try:
                    return _coerce(value, option, key, where, root)
                except ConfigError:
                    continue
        names = " or ".join("null" if a is type(None) else getattr(a, "__name__", str(a)) for a in arguments)
        raise ConfigError(f"{where}: {key} must be {names}; got {short(value)}")
    if origin is list:
        items = value if isinstance(value, list) else [value]
        return [_coerce(item, arguments[0], f"{key}[{i}]", where, root) for i, item in enumerate(items)]
    if hint is float:
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):  # YAML 1.1 reads 1e-3 as text
            try:
                number = float(value)
            except (ValueError, OverflowError):
                number = math.nan
            if math.isfinite(number):
                return number
    elif hint in (int, bool, str) and type(value) is hint and (hint is not int or abs(value) < 2**63):
        return value
    raise ConfigError(f"{where}: {key} must be {hint.__name__}; got {short(value)} ({type(value).__name__})")


def from_dict(
    schema: type, data: dict, *, where: str = "configuration", prefix: str = "", root: type | None = None
) -> Any:
    """Build a (nested) dataclass from a mapping; errors name `where` and the dotted key.

    `root` is the outermost schema, searched for a key that was put in the wrong section. Raises ConfigError for an
    unknown key (with the nearest valid name) or a value of another type.
    """
    root = root or schema
    hints = typing.get_type_hints(schema)
    for key in data:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1, cutoff=0.5)
            elsewhere = [name for name in _all_keys(root) if name.split(".")[-1] == key]
            if elsewhere:
                hint = f"did you mean {elsewhere[0]!r}?"
            elif near:
                hint = f"did you mean {prefix + near[0]!r}?"
            else:
                hint = f"known keys: {', '.join(prefix + n for n in hints)}"
            raise ConfigError(f"{where}: unknown key {short(prefix + str(key))}; {hint}")
    return schema(**{key: _coerce(value, hints[key], prefix + key, where, root) for key, value in data.items()})


def _all_keys(schema: type, prefix: str = "") -> list[str]:
    names = []
    for item in dataclasses.fields(schema):
        hint = typing.get_type_hints(schema)[item.name]
        if dataclasses.is_dataclass(hint):
            names += _all_keys(hint, f"{prefix}{item.name}.")
        else:
            names.append(prefix + item.name)
    return names


def describe(schema: type) -> list[str]:
    """One line per key: `name (type, default): help`, for `--help`."""
    return [
        f"{name}: {text}" if kind is None else f"  {name} ({kind}, default {default}): {text}"
        for name, kind, default, text in entries(schema)
    ]


def entries(schema: type, prefix: str = "") -> Iterator[tuple[str, str | None, str, str]]:
    """(key, type, default, help) of every key, in order; type None where the key is a section."""
    defaults = schema()
    hints = typing.get_type_hints(schema)
    for item in dataclasses.fields(schema):
        hint, text = hints[item.name], item.metadata["help"]
        if dataclasses.is_dataclass(hint):
            yield f"{prefix}{item.name}", None, "", text
            yield from entries(hint, f"{prefix}{item.name}.")
            continue
        if typing.get_origin(hint) is Literal:
            kind = "|".join(map(str, typing.get_args(hint)))
        else:
            kind = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
        yield f"{prefix}{item.name}", kind, json.dumps(getattr(defaults, item.name)), text
