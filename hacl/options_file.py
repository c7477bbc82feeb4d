"""Options of a command from a YAML file: its keys are the options' long names, and the command line wins."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hacl.config_io import ConfigError, read_plain


def options_from_file(parser: argparse.ArgumentParser, path: Path) -> None:
    """Take a file's values as defaults; what it gives need not be given again.

    A key may be any option of the parser that has the value's kind. Wrong files end the command as wrong arguments do.
    """
    try:
        content = read_plain(path) or {}
    except (OSError, ConfigError) as error:
        parser.error(f"--config: {error}")
    if not isinstance(content, dict):
        parser.error(f"--config {path}: expected keys with values, found {type(content).__name__}")
    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    values: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in actions:
            near = difflib.get_close_matches(name, actions, n=1)
            parser.error(f"--config {path}: unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        if value is None:
            continue
        values[name] = _value(parser, actions[name], f"--config {path}: {key}={value!r}", value)
        actions[name].required = False
    for group in parser._mutually_exclusive_groups:
        group.required &= not any(action.dest in values for action in group._group_actions)
    parser.set_defaults(**values)


def _value(parser: argparse.ArgumentParser, action: argparse.Action, where: str, value: Any) -> Any:
    """A file's value as the command line would give it."""
    if action.nargs == 0:
        return value if isinstance(value, bool) else parser.error(f"{where}; expected true or false")
    several = action.nargs is not None or isinstance(action, argparse._AppendAction)
    items = value if isinstance(value, list) else [value]
    if any(isinstance(item, bool | list | dict) for item in items) or not (several or len(items) == 1):
        parser.error(f"{where}; expected {'texts or numbers' if several else 'one text or number'} (quote yes and no)")
    try:
        items = [(action.type or str)(str(item)) for item in items]
    except ValueError:
        parser.error(f"{where}; expected {getattr(action.type, '__name__', 'text')}")
    if action.choices is not None and any(item not in action.choices for item in items):
        parser.error(f"{where}; choose from {', '.join(map(str, action.choices))}")
    if isinstance(action.nargs, int) and len(items) != action.nargs:
        parser.error(f"{where}; expected {action.nargs} values")
    return items if several else items[0]


def read_options_file(
    parser: argparse.ArgumentParser, commands: Mapping[str, argparse.ArgumentParser], argv: Sequence[str]
) -> argparse.Namespace:
    """Parsed arguments of a program with sub-commands, each of which has `--config FILE`."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    known, _ = first.parse_known_args(argv[1:])
    if known.config is not None and argv[0] in commands:
        options_from_file(commands[argv[0]], known.config)
    return parser.parse_args(argv)
