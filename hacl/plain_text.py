"""Text from data as part of something with a syntax of its own: a cell of a Markdown table, a name for a file."""

from __future__ import annotations

import re
from collections.abc import Iterable

_FILE_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)


def one_line(text: object) -> str:
    """The text with every run of blanks, line breaks and control characters as one space."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())


def short_line(text: object, most: int = 80) -> str:
    """The text as `one_line`, cut to `most` letters."""
    shown = one_line(text)
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."


def markdown(text: object) -> str:
    """The text on one line and in one cell of a table, with nothing in it that Markdown takes for HTML or a link."""
    shown = one_line(text)
    for found, written in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("](", "]\\(")):
        shown = shown.replace(found, written)
    return shown


def markdown_row(cells: Iterable[object]) -> str:
    """One row of a pipe table."""
    return f"| {' | '.join(map(markdown, cells))} |"


def file_part(name: str, what: str) -> str:
    """The name, if it can be part of a file name everywhere: 64 letters, digits, "_", "-", ".", beginning with none of
    the last three. Raises ValueError naming `what` it is."""
    if _FILE_NAME.fullmatch(name) is None:
        raise ValueError(
            f"{what} {name[:80]!r} cannot be part of a file name; use up to 64 letters, digits, '_', '-' and '.'"
        )
    return name
