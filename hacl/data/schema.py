"""What a record is: its dataclasses, the list of hallucination types, and the error that names a bad one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

HALLUCINATION_TYPES = ("object", "attribute", "number", "relation", "action", "event", "insertion", "other")


class RecordError(ValueError):
    """A record that cannot be used. The message names file and line, record, key, and what to do."""


@dataclass(frozen=True)
class HallucinatedCaption:
    """A caption that is wrong about its image.

    type: one of `HALLUCINATION_TYPES`; span: [start, end) characters of `text` that were edited; source: what wrote
    it; of: index into the record's captions of the caption it was made from.
    """

    text: str
    type: str = "other"
    span: tuple[int, int] | None = None
    source: str = ""
    of: int | None = None


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation; "<image>" in the text marks the position of an image."""

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True)
class Record:
    """One image (or none, or several) and what is said about it.

    images: paths relative to the image root; image_id: identity of the image for false-negative masking; objects:
    name -> count, None when the image is not annotated (never "no objects"); extra: unknown keys, written back as read.
    """

    id: str
    images: tuple[str, ...] = ()
    image_id: str = ""
    captions: tuple[str, ...] = ()
    hallucinated: tuple[HallucinatedCaption, ...] = ()
    conversation: tuple[Turn, ...] = ()
    objects: dict[str, int] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
