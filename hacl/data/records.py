"""The record: one schema for training, validation, generation and evaluation, read from JSON lists and JSONL.

Keys of the released HACL and LLaVA data files ("Hallucination caption", "text", human/gpt turns) are understood too.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

HALLUCINATION_TYPES = ("object", "attribute", "number", "relation", "action", "event", "insertion", "other")

_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
_CAPTION_KEYS = ("captions", "caption", "text")
_UPSTREAM_HALLUCINATED = ("Hallucination caption", "Hallucination captions", "hallucination_caption")
_KNOWN = {"id", "image", "image_id", "hallucinated", "conversations", "objects", *_CAPTION_KEYS, *_UPSTREAM_HALLUCINATED}


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


# Reading


def parse_record(raw: Any, *, where: str) -> Record:
    """One decoded JSON object as a `Record`.

    where: "file:line" for messages. A missing id is derived from the content, a missing image_id from the image path.
    A record with an upstream hallucinated caption and no caption takes its first assistant turn as the caption, as the
    released HACL code does in stage 1. Raises RecordError.
    """
    if not isinstance(raw, dict):
        raise RecordError(f"{where}: expected a JSON object with keys, found {_kind(raw)}")
    fields = _Fields(raw, where)
    images = fields.images()
    conversation = fields.conversation()
    captions = fields.captions()
    upstream = fields.upstream_hallucinated()
    if upstream and not captions:
        captions = tuple(turn.text.strip() for turn in conversation if turn.role == "assistant")[:1]
    if not captions and not conversation:
        raise fields.error("captions", "neither captions nor a conversation", "add one of them or remove the record")
    only = 0 if len(captions) == 1 else None
    upstream_parsed = tuple(HallucinatedCaption(text=text, of=only) for text in upstream)
    identity = _digest(*images, *captions, *(f"{turn.role}:{turn.text}" for turn in conversation))
    record_id = fields.identifier("id") or identity
    if raw.get("image_id") is None:
        image_id = _digest(*map(_normal_path, images)) if images else record_id
    else:
        image_id = fields.identifier("image_id")
    return Record(
        id=record_id,
        images=images,
        image_id=image_id,
        captions=captions,
        hallucinated=fields.hallucinated(len(captions)) + upstream_parsed,
        conversation=conversation,
        objects=fields.objects(),
        extra={key: value for key, value in raw.items() if key not in _KNOWN},
    )


def iter_raw(path: Path | str, on_error: Callable[[RecordError], None] | None = None) -> Iterator[tuple[str, Any]]:
    """Yield ("file:line", decoded JSON) of a JSONL file, line by line, or ("file:[index]", ...) of a JSON list.

    on_error: called with what is wrong with an unreadable line, which is then skipped; without it the error is raised.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected records as .jsonl or as a .json list")

    def refuse(message: str) -> None:
        error = RecordError(message)
        if on_error is None:
            raise error
        on_error(error)

    if _is_list(path):
        try:
            rows = json.loads(path.read_bytes().decode("utf-8-sig"))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            refuse(f"{path}: not a readable JSON list ({error}); mend the file or write one record per line (.jsonl)")
            return
        for index, row in enumerate(rows):
            yield f"{path}:[{index}]", row
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if text.strip():
                    row = json.loads(text)
                else:
                    continue
            except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
                refuse(f"{path}:{number}: not a line of UTF-8 JSON ({error}); write one complete record per line")
                continue
            yield f"{path}:{number}", row


def iter_records(path: Path | str) -> Iterator[Record]:
    """Stream the records of a .jsonl file or a .json list. Raises RecordError, FileNotFoundError."""
    for where, raw in iter_raw(path):
        yield parse_record(raw, where=where)


def read_records(path: Path | str, limit: int | None = None) -> list[Record]:
    """The first `limit` records of a file (all by default). Raises RecordError, FileNotFoundError."""
    return list(islice(iter_records(path), limit))


# Writing


def record_to_json(record: Record) -> dict[str, Any]:
    """The record as a JSON object; `parse_record` of it gives the same record."""
    row: dict[str, Any] = {"id": record.id}
    if record.images:
        row["image"] = record.images[0] if len(record.images) == 1 else list(record.images)
    row["image_id"] = record.image_id
    if record.captions:
        row["captions"] = list(record.captions)
    if record.hallucinated:
        row["hallucinated"] = [_hallucinated_to_json(caption) for caption in record.hallucinated]
    if record.conversation:
        row["conversations"] = [{"role": turn.role, "content": turn.text} for turn in record.conversation]
    if record.objects is not None:
        row["objects"] = dict(record.objects)
    return {**row, **record.extra}


def write_records(path: Path | str, records: Iterable[Record]) -> int:
    """Write JSONL (or a JSON list where the name ends in .json) in one step: complete, or the old file stays.

    Returns the number of records.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    count = 0
    as_list = path.suffix == ".json"
    try:
        with partial.open("w", encoding="utf-8") as out:
            for record in records:
                if as_list:
                    out.write("[\n" if count == 0 else ",\n")
                out.write(json.dumps(record_to_json(record), ensure_ascii=False))
                out.write("" if as_list else "\n")
                count += 1
            if as_list:
                out.write("\n]\n" if count else "[]\n")
            out.flush()
            os.fsync(out.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def _hallucinated_to_json(caption: HallucinatedCaption) -> dict[str, Any]:
    row: dict[str, Any] = {"text": caption.text, "type": caption.type}
    if caption.span is not None:
        row["span"] = list(caption.span)
    if caption.source:
        row["source"] = caption.source
    if caption.of is not None:
        row["of"] = caption.of
    return row


# Fields


class _Fields:
    """Typed access to the keys of one raw record; every refusal names place, record and key."""

    def __init__(self, raw: dict[str, Any], where: str):
        self.raw = raw
        self.where = where

    def error(self, key: str, problem: str, fix: str) -> RecordError:
        name = self.raw.get("id")
        record = f" record {name!r}" if isinstance(name, (str, int)) else ""
        return RecordError(f"{self.where}:{record} key {key!r}: {problem}; {fix}")

    def identifier(self, key: str) -> str:
        value = self.raw.get(key)
        if value is None:
            return ""
        if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
            raise self.error(key, f"found {_kind(value)}", "write a non-empty text or a whole number")
        return self.text(key, str(value), strip=False)

    def text(self, key: str, value: Any, *, strip: bool = True) -> str:
        if not isinstance(value, str):
            raise self.error(key, f"expected text, found {_kind(value)}", "write a JSON string")
        if not value.strip():
            raise self.error(key, "empty text", "fill it in or leave the key out")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.error(key, "half of a surrogate pair, which no UTF-8 file can hold", "mend the escape") from None
        return value.strip() if strip else value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.raw.get(key)
        if value is None:
            return ()
        if isinstance(value, list):
            return tuple(self.text(f"{key}[{index}]", item) for index, item in enumerate(value))
        return (self.text(key, value),)

    def images(self) -> tuple[str, ...]:
        value = self.raw.get("image")
        if value is None or value == []:
            return ()
        values = value if isinstance(value, list) else [value]
        return tuple(self.text("image", item, strip=False) for item in values)

    def captions(self) -> tuple[str, ...]:
        for key in _CAPTION_KEYS:
            if found := self.texts(key):
                return found
        return ()

    def upstream_hallucinated(self) -> tuple[str, ...]:
        return tuple(text for key in _UPSTREAM_HALLUCINATED for text in self.texts(key))

    def conversation(self) -> tuple[Turn, ...]:
        value = self.raw.get("conversations")
        if value is None:
            return ()
        if not isinstance(value, list):
            raise self.error("conversations", f"expected a list of turns, found {_kind(value)}", "write a JSON list")
        return tuple(self._turn(f"conversations[{index}]", turn) for index, turn in enumerate(value))

    def _turn(self, key: str, turn: Any) -> Turn:
        if not isinstance(turn, dict):
            raise self.error(key, f"expected a turn, found {_kind(turn)}", 'write {"role": ..., "content": ...}')
        role = turn.get("role", turn.get("from"))
        if not isinstance(role, str) or role not in _ROLES:
            raise self.error(key, f"role {role!r} is unknown", f"use one of {', '.join(_ROLES)}")
        return Turn(_ROLES[role], self.text(key, turn.get("content", turn.get("value")), strip=False))

    def hallucinated(self, num_captions: int) -> tuple[HallucinatedCaption, ...]:
        value = self.raw.get("hallucinated")
        if value is None:
            return ()
        if not isinstance(value, list):
            raise self.error("hallucinated", f"expected a list, found {_kind(value)}", "write a JSON list of objects")
        return tuple(self._hallucinated(f"hallucinated[{i}]", item, num_captions) for i, item in enumerate(value))

    def _hallucinated(self, key: str, item: Any, num_captions: int) -> HallucinatedCaption:
        if isinstance(item, str):
            item = {"text": item}
        if not isinstance(item, dict):
            raise self.error(key, f"expected an object, found {_kind(item)}", 'write {"text": ..., "type": ...}')
        text = self.text(f"{key}.text", item.get("text"), strip=item.get("span") is None)
        kind = item.get("type", "other")
        if kind not in HALLUCINATION_TYPES:
            near = difflib.get_close_matches(str(kind), HALLUCINATION_TYPES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(HALLUCINATION_TYPES)}"
            raise self.error(f"{key}.type", f"{kind!r} is unknown", hint)
        span = item.get("span")
        if span is not None:
            if not (isinstance(span, (list, tuple)) and len(span) == 2 and all(type(edge) is int for edge in span)):
                raise self.error(f"{key}.span", f"found {span!r}", "write [start, end] as whole numbers")
            if not 0 <= span[0] <= span[1] <= len(text):
                raise self.error(f"{key}.span", f"{list(span)} leaves the text of {len(text)} characters", "mend it")
            span = (span[0], span[1])
        of = item.get("of")
        if of is not None and not (type(of) is int and 0 <= of < num_captions):
            raise self.error(f"{key}.of", f"{of!r} is no index into {num_captions} caption(s)", "mend it or leave it out")
        source = item.get("source", "")
        if not isinstance(source, str):
            raise self.error(f"{key}.source", f"expected text, found {_kind(source)}", "write a JSON string")
        return HallucinatedCaption(text, kind, span, source, of)

    def objects(self) -> dict[str, int] | None:
        value = self.raw.get("objects")
        if value is None:
            return None
        if not isinstance(value, dict):
            fix = 'write {"dog": 1, ...}, or null where the image is not annotated'
            raise self.error("objects", f"expected name -> count, found {_kind(value)}", fix)
        for name, count in value.items():
            if type(count) is not int or count < 1:
                raise self.error(f"objects.{name}", f"count {count!r}", "write a whole number, and leave absent ones out")
        return dict(value)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true/false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\x1f".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _normal_path(path: str) -> str:
    return posixpath.normpath(path.replace("\\", "/"))


def _is_list(path: Path) -> bool:
    """Whether the first visible character opens a JSON list."""
    with path.open("rb") as file:
        while block := file.read(4096):
            if visible := block.removeprefix(b"\xef\xbb\xbf").lstrip():
                return visible.startswith(b"[")
    return False
