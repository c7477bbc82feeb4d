"""Pairs of a grounded and an associative answer to one prompt: the raw material of an association direction.

JSONL, one pair a line. No torch here.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hacl.data.records import iter_raw
from hacl.representations.samples import Sample

REQUIRED = ("id", "prompt", "grounded", "associative", "induce_method")


@dataclass(frozen=True)
class PairRecord:
    """id: unique in a file; prompt: what the user asks; image: path below the image root, None without one; grounded,
    associative: the two answers; group: what splits keep together, and what links the two orders of one question
    (default: the id); order: 0 or 1, of a question asked in both orders; letter: of the grounded option there;
    induce_method: how the associative answer came about; source_model: who wrote it; meta: whatever else.
    """

    id: str
    prompt: str
    grounded: str
    associative: str
    induce_method: str
    image: str | None = None
    group: str = ""
    order: int = 0
    letter: str | None = None
    source_model: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("grounded", "associative"):
            if not getattr(self, name).strip():
                raise ValueError(f"pair {self.id!r}: {name} is empty")
        if self.order not in (0, 1):
            raise ValueError(f"pair {self.id!r}: order={self.order!r}; expected 0 or 1")
        object.__setattr__(self, "group", self.group or self.id)


def read_pairs(path: Path | str) -> list[PairRecord]:
    """All pairs of a JSONL file.

    Raises:
        FileNotFoundError, ValueError: no file; a line that is no pair, or an id that occurs twice (file, line and key).
    """
    found: dict[str, PairRecord] = {}
    for where, raw in iter_raw(path):
        pair = _parse(raw, where)
        if pair.id in found:
            raise ValueError(f"{where}: id {pair.id!r} occurs twice; each pair has its own")
        found[pair.id] = pair
    if not found:
        raise ValueError(f"{path}: no pair in it")
    return list(found.values())


def _parse(raw: Any, where: str) -> PairRecord:
    known = PairRecord.__dataclass_fields__
    if not isinstance(raw, dict) or not set(REQUIRED) <= raw.keys():
        raise ValueError(f"{where}: a pair is a JSON object with {', '.join(REQUIRED)}")
    if strange := sorted(raw.keys() - known.keys()):
        raise ValueError(f"{where}: unknown key {strange[0]!r}; put it under meta")
    for name in REQUIRED:
        if not isinstance(raw[name], str):
            raise ValueError(f"{where}: {name} is {type(raw[name]).__name__}, expected text")
    if not isinstance(raw.get("meta", {}), dict):
        raise ValueError(f"{where}: meta is {type(raw['meta']).__name__}, expected an object")
    try:
        return PairRecord(**raw)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def write_pairs(path: Path | str, pairs: Iterable[PairRecord]) -> int:
    """Write a JSONL file in one step; returns the number of pairs."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(asdict(pair), ensure_ascii=False, allow_nan=False) + "\n" for pair in pairs]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text("".join(lines), encoding="utf-8")
    os.replace(temporary, path)
    return len(lines)


def samples_of(pairs: Iterable[PairRecord], image_root: Path | str) -> tuple[list[Sample], list[Sample]]:
    """(grounded, associative) samples to capture, both with the pairs' ids, prompts and clean images."""
    sides: tuple[list[Sample], list[Sample]] = ([], [])
    for pair in pairs:
        image = None if pair.image is None else Path(image_root) / pair.image
        for side, answer in zip(sides, (pair.grounded, pair.associative), strict=True):
            side.append(Sample(pair.id, image, pair.prompt, answer, pair.group))
    return sides


def filter_by_mentions(
    pairs: Iterable[PairRecord],
    objects: Callable[[str], Collection[str]],
    truth: Mapping[str, Collection[str]],
) -> tuple[list[PairRecord], dict[str, int]]:
    """Pairs whose associative answer names an object that is not there and whose grounded answer names none.

    objects: the objects a text names (`MentionExtractor.objects` of `hacl.evaluation.chair`); truth: {group: objects
    of its image}; a group without an entry cannot be judged. Returns what is kept, and how many were for which reason
    not: "no labels", "grounded hallucinates", "associative is faithful".
    """
    kept, dropped = [], Counter()
    for pair in pairs:
        if pair.group not in truth:
            dropped["no labels"] += 1
            continue
        there = set(truth[pair.group])
        if set(objects(pair.grounded)) - there:
            dropped["grounded hallucinates"] += 1
        elif not set(objects(pair.associative)) - there:
            dropped["associative is faithful"] += 1
        else:
            kept.append(pair)
    return kept, dict(dropped)
