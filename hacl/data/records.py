"""Read and write records: JSON lists and JSONL, this project's keys and those of the released HACL and LLaVA files."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from hacl.data.json_stream import first_character, iter_json_list
from hacl.data.json_text import parse_line, read_lines
from hacl.data.record_fields import KNOWN_KEYS, Fields, kind_of
from hacl.data.schema import HALLUCINATION_TYPES, HallucinatedCaption, Record, RecordError, Turn

__all__ = [
    "HALLUCINATION_TYPES", "HallucinatedCaption", "Record", "RecordError", "RecordWriter", "Turn",
    "iter_raw", "iter_records", "parse_record", "read_records", "record_to_json", "write_records",
]  # fmt: skip

# Reading


def parse_record(raw: Any, *, where: str) -> Record:
    """One decoded JSON object as a `Record`.

    where: "file:line" for messages. A missing id is derived from the content, a missing image_id from the image path.
    A record with an upstream hallucinated caption and no caption takes its first assistant turn as the caption, as the
    released HACL code does in stage 1. Raises RecordError.
    """
    if not isinstance(raw, dict):
        raise RecordError(f"{where}: expected a JSON object with keys, found {kind_of(raw)}")
    fields = Fields(raw, where)
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
        extra={key: value for key, value in raw.items() if key not in KNOWN_KEYS},
    )


def iter_raw(path: Path | str, on_error: Callable[[RecordError], None] | None = None) -> Iterator[tuple[str, Any]]:
    """Yield ("file:line", decoded JSON) of a JSONL file or ("file:[index]", ...) of a JSON list, one at a time.

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

    if first_character(path) == "[":
        rows = enumerate(iter_json_list(path))
        while True:
            try:
                index, row = next(rows)
            except StopIteration:
                return
            except ValueError as error:
                refuse(
                    f"{path}: not a readable JSON list ({error}); mend the file or write one record per line (.jsonl)"
                )
                return
            yield f"{path}:[{index}]", row
    with path.open("rb") as lines:
        for number, line in read_lines(lines):
            try:
                row = parse_line(line)
            except ValueError as error:
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
    if record.image_id:
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


class RecordWriter:
    """Writes JSONL (a JSON list where the name ends in .json) in one step: complete on leaving, or the old file stays.

    `with RecordWriter(path) as out: out.write(record)`; `count` and `captions` say what was written.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.count = self.captions = 0
        self._as_list = self.path.suffix == ".json"
        self._partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")

    def __enter__(self) -> RecordWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._out = self._partial.open("w", encoding="utf-8")
        return self

    def write(self, record: Record) -> None:
        if self._as_list:
            self._out.write(",\n" if self.count else "[\n")
        self._out.write(json.dumps(record_to_json(record), ensure_ascii=False))
        self._out.write("" if self._as_list else "\n")
        self.count += 1
        self.captions += len(record.captions)

    def __exit__(self, kind, error, trace) -> None:
        try:
            with self._out as out:
                if kind is None:
                    if self._as_list:
                        out.write("\n]\n" if self.count else "[]\n")
                    out.flush()
                    os.fsync(out.fileno())
            if kind is None:
                os.replace(self._partial, self.path)
        finally:
            self._partial.unlink(missing_ok=True)


def write_records(path: Path | str, records: Iterable[Record]) -> int:
    """Write all records with a `RecordWriter`; returns their number."""
    with RecordWriter(path) as out:
        for record in records:
            out.write(record)
    return out.count


def _hallucinated_to_json(caption: HallucinatedCaption) -> dict[str, Any]:
    row: dict[str, Any] = {"text": caption.text, "type": caption.type}
    if caption.span is not None:
        row["span"] = list(caption.span)
    if caption.source:
        row["source"] = caption.source
    if caption.of is not None:
        row["of"] = caption.of
    return row


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\x1f".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _normal_path(path: str) -> str:
    return posixpath.normpath(path.replace("\\", "/"))
