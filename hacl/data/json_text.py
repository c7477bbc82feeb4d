"""JSON as records may have it: no key twice, no NaN or infinity, no half characters, nothing too deep or too long.

Stricter than `json.loads`, which keeps the last of two equal keys and accepts what no JSON file can hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

LONGEST = 64 * 2**20  # bytes of a line, characters of an element of a list
DEEPEST = 100
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def parse(text: str) -> Any:
    """The value that `text` holds. Raises ValueError (JSONDecodeError where it is no JSON), which names no file."""
    try:
        value = DECODER.decode(text)
    except RecursionError as error:
        raise ValueError(f"nested deeper than {DEEPEST} levels") from error
    check_value(value, text)
    return value


def parse_line(line: bytes) -> Any:
    """`parse` of a line of UTF-8 with or without a byte order mark. Raises ValueError."""
    if len(line) > LONGEST:
        raise ValueError(f"longer than {LONGEST:,} bytes; is it one record per line?")
    return parse(line.decode("utf-8-sig"))


def read_lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(number from 1 on, line) of every line with something on it; of one longer than `LONGEST` only its beginning."""
    number = 0
    while line := file.readline(LONGEST + 1):
        number += 1
        rest = line
        while len(rest) > LONGEST and not rest.endswith(b"\n"):
            rest = file.readline(LONGEST + 1)
        if line.strip(b" \t\r\n\xef\xbb\xbf"):
            yield number, line


def check_value(value: Any, text: str) -> None:
    """Refuse (ValueError) what `DECODER` lets pass: text, of which `value` was decoded, tells what to look for."""
    if text.count("[") + text.count("{") > DEEPEST and _depth(value) > DEEPEST:
        raise ValueError(f"nested deeper than {DEEPEST} levels")
    if _HALF.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("half of a surrogate pair, which no UTF-8 file can hold; mend the escape") from None


def _depth(value: Any) -> int:
    """Lists and objects within each other, at most one more than `DEEPEST`."""
    depth, level = 0, [value]
    while depth <= DEEPEST and (level := [inner for inner in level if isinstance(inner, (list, dict))]):
        depth += 1
        level = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)]
    return depth


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"key {twice[:80]!r} is given twice")
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON; write null or leave the key out")


def _number(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {digits[:20]} is too large")
    return value


def _integer(digits: str) -> int:
    if len(digits) > 400:
        raise ValueError(f"a number of {len(digits)} digits; write an identifier as text")
    return int(digits)


DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_constant, parse_float=_number, parse_int=_integer)
