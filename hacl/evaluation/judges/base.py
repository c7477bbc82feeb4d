"""What a judge is: questions about one prediction, a parser of the replies, and the row a scorer reads."""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hacl.chat_api import ChatReply, image_part
from hacl.evaluation.scorers.base import InputError

Messages = list[dict[str, Any]]
THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL | re.IGNORECASE)
FIELD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Item:
    """One prediction to review. `id` is unique among predictions; `row` holds the benchmark's fields too."""

    id: str | int
    row: Mapping[str, Any]
    where: str


@dataclass(frozen=True)
class Answer:
    """What a judge said to one question. `value` None: the reply could not be read (`text` keeps it).

    first: the reply before the one in `text`, where the judge was asked again.
    """

    value: Any
    text: str
    first: str | None = None


class Judge(ABC):
    """Base of the judges.

    Attributes:
        name: in `JUDGES`.
        version: raised whenever a prompt or parser changes.
        id_field: the field that tells predictions apart.
        prompts: every text the judge is given, by name; `{field}` stands for a field of the prediction.
        reminder: what is said when a reply could not be read and is asked for again; empty: it is not asked for.
        max_tokens: room for a reply, unless the user says otherwise.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    id_field: ClassVar[str] = "id"
    max_tokens: ClassVar[int] = 512
    prompts: Mapping[str, str]
    reminder: str

    def __init__(self, image_root: Path | str | None = None):
        """image_root: folder of the `image` of each prediction, which is then shown to the judge."""
        self.image_root = image_root

    @property
    def settings(self) -> dict[str, Any]:
        """Options that change what is asked."""
        return {"images": self.image_root is not None}

    @abstractmethod
    def questions(self, item: Item) -> dict[str, Messages]:
        """Conversations to continue, by name of the question.

        Raises:
            InputError: the prediction lacks a field.
        """

    @abstractmethod
    def parse(self, question: str, reply: ChatReply, item: Item) -> Any:
        """The value a reply states, None where it states none or several."""

    @abstractmethod
    def rows(self, item: Item, answers: Mapping[str, Answer]) -> list[dict[str, Any]]:
        """The lines that the scorer reads, with what the judge wrote."""

    def summary(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Counts worth reporting beside the parse rate."""
        return {}

    def prompt_sha256(self) -> str:
        """Hash of every text the judge may be given."""
        texts = {**self.prompts, "reminder": self.reminder}
        return hashlib.sha256(json.dumps(texts, sort_keys=True).encode("ascii")).hexdigest()

    def top_logprobs(self) -> int | None:
        """How many alternatives of the first token are asked for; None: none."""
        return None

    def message(self, prompt: str, item: Item, fields: Mapping[str, str]) -> Messages:
        """One user message: the prompt with its fields, behind the image where images are shown."""
        text = filled(self.prompts[prompt], fields)
        if self.image_root is None:
            return [{"role": "user", "content": text}]
        from hacl.data.images import resolve_image

        image = text_of(item, "image")
        try:
            part = image_part(resolve_image(Path(self.image_root), image))
        except (ValueError, FileNotFoundError) as error:
            raise InputError(f"{item.where}: image {image!r}: {error}") from None
        return [{"role": "user", "content": [part, {"type": "text", "text": text}]}]


def filled(template: str, fields: Mapping[str, str]) -> str:
    """`template` with each `{field}` replaced, in one pass: braces inside a field mean nothing.

    A field stands between tags of its name in our prompts; the closing tag inside it is broken, so that a reply under
    review cannot end its own block and speak to the judge.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name not in fields:
            return match[0]
        return re.sub(rf"</({name})>", r"<\\/\1>", fields[name], flags=re.IGNORECASE)

    return FIELD.sub(value, template)


def text_of(item: Item, *names: str) -> str:
    """The first of the named fields that is there, as text.

    Raises:
        InputError: none is, or it is no text.
    """
    for name in names:
        if name in item.row:
            value = item.row[name]
            if not isinstance(value, str):
                raise InputError(f"{item.where} ({item.id!r}): {name!r} must be text, found {json.dumps(value)[:60]}")
            return value
    wanted = " or ".join(map(repr, names))
    raise InputError(f"{item.where} ({item.id!r}): no {wanted}; the row has {', '.join(map(repr, item.row))}")


def visible(text: str) -> str:
    """A reply without the part that reasoning models write between <think> tags."""
    return THOUGHTS.sub("", text).strip()
