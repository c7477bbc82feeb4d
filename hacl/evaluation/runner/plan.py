"""What is asked: items of a benchmark, and the distinct requests that answer them. No torch here.

Several items may share one request (POPE's popular and adversarial questions do); it is put to the model once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Request:
    """One thing to ask a model. key: names image, prompt and text, and so the reply; image None asks without one.

    text: None for generation, else the text whose log-likelihood is asked for; where: file and id, for messages;
    sample: id of the first item that asks it.
    """

    key: str
    image: Path | None
    prompt: str
    where: str
    max_new_tokens: int | None = None
    text: str | None = None
    sample: str = ""


@dataclass(frozen=True)
class Item:
    """One question of a benchmark.

    id: as in its file; question: the benchmark's words; fields: prediction fields besides the reply, as the scorer
    reads them; reply: name of the field that takes the reply; max_new_tokens: what its kind of reply needs; image None:
    the question alone; within: tells images of one name apart where several folders have it.
    """

    id: str
    image: Path | None
    question: str
    fields: dict[str, Any]
    reply: str
    max_new_tokens: int
    where: str
    within: str = ""


@dataclass
class Part:
    """A file of questions that is scored by itself (a POPE split) or the whole benchmark.

    name: "" or the split; scorer: name in `hacl.evaluation.scorers`, None where replies must go to a judge first;
    references: what the scorer reads beside the predictions; options: of the scorer.
    """

    name: str
    items: list[Item]
    scorer: str | None
    references: Any = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Plan:
    """Parts of one benchmark and the files they were read from; notes: sentences for the report."""

    benchmark: str
    parts: list[Part]
    files: list[Path]
    meta: dict[str, Any] = field(default_factory=dict)

    def items(self) -> list[Item]:
        """Items of every part, in order."""
        return [item for part in self.parts for item in part.items]


def request_key(image: Path | None, prompt: str, text: str | None = None, kind: str = "") -> str:
    """Twenty hex digits that name (image, prompt, text); an image by its name and its size in bytes."""
    shown = "" if image is None else f"{image.parent.name}/{image.name}/{image.stat().st_size}"
    content = "\0".join([kind, shown, prompt, "\1" if text is None else text])
    return hashlib.sha256(content.encode()).hexdigest()[:20]


def item_request(item: Item, prompt: str, max_new_tokens: int) -> Request:
    """The request that answers an item asked in these words."""
    key = request_key(item.image, prompt, kind=f"{max_new_tokens}{item.within}")
    return Request(key, item.image, prompt, item.where, max_new_tokens, sample=item.id)


def only_some(plan: Plan, only: str) -> Plan:
    """The plan with some of its questions. only: a pattern of ids ("*-SD_TYPO"), or a JSON file: a list of ids, or
    lists by split as `steer.py fit` writes them, whose test ids are taken.

    Raises:
        ValueError: another content, or no question of that id.
    """
    path = Path(only)
    if path.is_file():
        kept = _listed_ids(path)
        parts = [replace(part, items=[item for item in part.items if item.id in kept]) for part in plan.parts]
    else:
        parts = [replace(p, items=[item for item in p.items if fnmatchcase(item.id, only)]) for p in plan.parts]
    found = replace(plan, parts=[part for part in parts if part.items])
    if not found.parts:
        first = next((item.id for item in plan.items()), "none")
        raise ValueError(f"--only {only}: {plan.benchmark} has no such question; its ids are like {first!r}")
    return found


def each_alone(plan: Plan) -> Plan:
    """The plan with no request shared by two items, for replies that depend on the id of a question."""
    parts = [
        replace(part, items=[replace(item, within=f"{item.within}#{item.id}") for item in part.items])
        for part in plan.parts
    ]
    return replace(plan, parts=parts)


def _listed_ids(path: Path) -> set[str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--only {path}: no JSON ({error}); write a list of ids") from error
    ids = content.get("test") if isinstance(content, dict) else content
    if not isinstance(ids, list):
        raise ValueError(f"--only {path}: expected a list of ids, or an object with such a list under 'test'")
    return set(map(str, ids))


def distinct(requests: Iterable[Request]) -> list[Request]:
    """Each request once, in order of first appearance."""
    found: dict[str, Request] = {}
    for request in requests:
        found.setdefault(request.key, request)
    return list(found.values())


def check_ids(items: Sequence[Item]) -> None:
    """Raise ValueError where an id comes twice in one part."""
    seen: dict[str, str] = {}
    for item in items:
        if item.id in seen:
            raise ValueError(f"{item.where}: id {item.id!r} was already used at {seen[item.id]}; ids must differ")
        seen[item.id] = item.where
