"""The record schema: one image (or none, or several) with captions, hallucinated captions and a conversation.

On disk a record is a JSON object, in a JSON list or one per line (JSONL):

    {"id": "139", "image": "val/000139.jpg", "image_id": "139", "captions": ["A woman ..."],
     "hallucinated": [{"text": "A man ...", "type": "object", "span": [0, 5], "source": "lexical", "of": 0}],
     "conversations": [{"from": "human", "value": "<image>\\nWhat ..."}, {"from": "gpt", "value": "..."}],
     "objects": {"person": 1}}

Keys of LLaVA and of the released HACL code are accepted: `text` or `caption` for one caption, `Hallucination caption`
for one or several hallucinated captions, `conversations` with `from`/`value` or `role`/`content`.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HALLUCINATION_TYPES = ("object", "attribute", "number", "relation", "action", "event", "insertion", "other")
ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
UPSTREAM_HALLUCINATED = ("Hallucination caption", "hallucination_caption")


class RecordError(ValueError):
    """A record that cannot be used; the message names the file and line, the record, the key and the fix."""


@dataclass(frozen=True)
class HallucinatedCaption:
    """A plausible but false edit of a caption.

    type: one of HALLUCINATION_TYPES; span: character offsets of the edited words in `text`; source: what made it;
    of: index of the caption it was derived from.
    """

    text: str
    type: str = "other"
    span: tuple[int, int] | None = None
    source: str = ""
    of: int | None = None


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation; `<image>` in the text marks where an image stands."""

    role: str
    text: str


@dataclass(frozen=True)
class Record:
    """images: paths relative to the image root, () for text only; image_id: the identity of the image, by which false
    negatives are found; objects: name -> count, None where not annotated (never "nothing there"); extra: other keys."""

    id: str
    images: tuple[str, ...]
    image_id: str
    captions: tuple[str, ...]
    hallucinated: tuple[HallucinatedCaption, ...]
    conversation: tuple[Turn, ...]
    objects: dict[str, int] | None
    extra: dict[str, Any] = field(default_factory=dict)


def parse_record(raw: Any, *, where: str) -> Record:
    """One JSON object -> Record. `where` ("file:line") opens every error message. Raises RecordError."""
    if not isinstance(raw, dict):
        raise RecordError(f"{where}: expected a JSON object, found {type(raw).__name__}")
    images = _strings(raw, ("image", "images"), where)
    name = raw.get("id", raw.get("sample_id"))
    captions = _strings(raw, ("captions",), where) or _strings(raw, ("caption", "text"), where)
    conversation = tuple(_turns(raw, where))
    if "Hallucination caption" in raw and not captions:
        captions = tuple(turn.text for turn in conversation if turn.role == "assistant")[:1]
    if not captions and not conversation:
        raise RecordError(f"{where}: record {name!r} has neither 'captions' nor 'conversations'; give one of them")
    if not images and not conversation:
        raise RecordError(f"{where}: record {name!r} has captions but no 'image'; name the image they describe")
    hallucinated = tuple(_hallucinated(raw, len(captions), where))
    content = json.dumps([images, captions, [turn.text for turn in conversation]], ensure_ascii=False)
    digest = hashlib.blake2b(content.encode(), digest_size=8).hexdigest()
    default_image = "|".join(posixpath.normpath(path) for path in images) or digest
    image_id = raw.get("image_id")
    known = {"id", "sample_id", "image", "images", "image_id", "captions", "caption", "text", "hallucinated"}
    known |= {"conversations", "conversation", "objects", *UPSTREAM_HALLUCINATED}
    return Record(
        id=str(name) if name is not None else digest,
        images=images,
        image_id=str(image_id) if image_id is not None else default_image,
        captions=captions,
        hallucinated=hallucinated,
        conversation=conversation,
        objects=_objects(raw, where),
        extra={key: value for key, value in raw.items() if key not in known},
    )


def _strings(raw: dict, keys: tuple[str, ...], where: str) -> tuple[str, ...]:
    for key in keys:
        value = raw.get(key)
        if value is None:
            continue
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list):
            raise RecordError(f"{where}: {key!r} must be a string or a list of strings, found {type(value).__name__}")
        for index, text in enumerate(values):
            if not isinstance(text, str):
                raise RecordError(f"{where}: {key!r}[{index}] must be a string, found {type(text).__name__}")
            if not text.strip():
                raise RecordError(f"{where}: {key!r}[{index}] is empty; remove it or fill it in")
        return tuple(text.strip() for text in values)
    return ()


def _turns(raw: dict, where: str) -> Iterator[Turn]:
    turns = raw.get("conversations", raw.get("conversation")) or []
    if not isinstance(turns, list):
        raise RecordError(f"{where}: 'conversations' must be a list of turns, found {type(turns).__name__}")
    for index, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise RecordError(f"{where}: 'conversations'[{index}] must be an object with 'from' and 'value'")
        role, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        if role not in ROLES:
            raise RecordError(
                f"{where}: 'conversations'[{index}] is from {role!r}; expected one of {', '.join(sorted(ROLES))}"
            )
        if not isinstance(text, str):
            raise RecordError(f"{where}: 'conversations'[{index}] needs its text as a string under 'value'")
        yield Turn(ROLES[role], text)


def _hallucinated(raw: dict, captions: int, where: str) -> Iterator[HallucinatedCaption]:
    for key in UPSTREAM_HALLUCINATED:
        if key in raw:
            for text in _strings(raw, (key,), where):
                yield HallucinatedCaption(text, source="upstream")
    entries = raw.get("hallucinated") or []
    if not isinstance(entries, list):
        raise RecordError(f"{where}: 'hallucinated' must be a list, found {type(entries).__name__}")
    for index, entry in enumerate(entries):
        entry = {"text": entry} if isinstance(entry, str) else entry
        at = f"{where}: 'hallucinated'[{index}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("text"), str) or not entry["text"].strip():
            raise RecordError(f"{at} needs a non-empty 'text'")
        kind, span, of = entry.get("type", "other"), entry.get("span"), entry.get("of")
        if kind not in HALLUCINATION_TYPES:
            raise RecordError(f"{at} has type {kind!r}; expected one of {', '.join(HALLUCINATION_TYPES)}")
        if of is not None and (not isinstance(of, int) or not 0 <= of < captions):
            raise RecordError(f"{at} says of={of!r}, but the record has {captions} caption(s)")
        if span is not None:
            ordered = isinstance(span, list | tuple) and len(span) == 2 and all(isinstance(x, int) for x in span)
            if not ordered or not 0 <= span[0] <= span[1] <= len(entry["text"]):
                raise RecordError(f"{at} has span {span!r}, which is not [start, end] within its text")
            span = (span[0], span[1])
        yield HallucinatedCaption(entry["text"], kind, span, str(entry.get("source", "")), of)


def _objects(raw: dict, where: str) -> dict[str, int] | None:
    objects = raw.get("objects")
    if objects is None:
        return None
    if isinstance(objects, list) and all(isinstance(name, str) for name in objects):
        return {name: objects.count(name) for name in objects}
    if isinstance(objects, dict) and all(isinstance(count, int) for count in objects.values()):
        return dict(objects)
    raise RecordError(f"{where}: 'objects' must map names to counts, or list names; use null where not annotated")


def iter_records(path: str | os.PathLike) -> Iterator[Record]:
    """Records of a `.jsonl` file, read line by line, or of a `.json` list. Raises RecordError at the first bad one."""
    for where, raw in iter_raw(path):
        yield parse_record(raw, where=where)


def iter_raw(path: str | os.PathLike) -> Iterator[tuple[str, Any]]:
    """(where, JSON value) of every record of a file, unchecked; a line that is not JSON is a RecordError."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such record file: {path}")
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{path}:{number}", _parse_json(line, f"{path}:{number}")
        return
    if path.suffix != ".json":
        raise RecordError(f"{path}: records are read from .json (a list) or .jsonl (one object per line)")
    values = _parse_json(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(values, list):
        raise RecordError(f"{path}: expected a JSON list of records; for one object per line use the ending .jsonl")
    for index, raw in enumerate(values):
        yield f"{path}[{index}]", raw


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RecordError(f"{where}: not valid JSON ({error})") from None


def read_records(path: str | os.PathLike, limit: int | None = None) -> list[Record]:
    """All records of a file, or the first `limit`. Raises RecordError or FileNotFoundError; ids must be unique."""
    records: list[Record] = []
    seen: set[str] = set()
    for record in iter_records(path):
        if limit is not None and len(records) >= limit:
            break
        if record.id in seen:
            raise RecordError(f"{path}: id {record.id!r} occurs twice; ids must be unique within a file")
        seen.add(record.id)
        records.append(record)
    return records


def record_to_json(record: Record) -> dict[str, Any]:
    """The JSON object of a record, which `parse_record` reads back to an equal one."""
    out: dict[str, Any] = {"id": record.id}
    if record.images:
        out["image"] = record.images[0] if len(record.images) == 1 else list(record.images)
    out["image_id"] = record.image_id
    if record.captions:
        out["captions"] = list(record.captions)
    if record.hallucinated:
        out["hallucinated"] = [_hallucinated_to_json(h) for h in record.hallucinated]
    if record.conversation:
        names = {"user": "human", "assistant": "gpt"}
        out["conversations"] = [{"from": names[turn.role], "value": turn.text} for turn in record.conversation]
    if record.objects is not None:
        out["objects"] = record.objects
    return {**out, **record.extra}


def _hallucinated_to_json(hallucinated: HallucinatedCaption) -> dict[str, Any]:
    out: dict[str, Any] = {"text": hallucinated.text, "type": hallucinated.type}
    if hallucinated.span is not None:
        out["span"] = list(hallucinated.span)
    if hallucinated.source:
        out["source"] = hallucinated.source
    if hallucinated.of is not None:
        out["of"] = hallucinated.of
    return out


def write_records(path: str | os.PathLike, records: Iterable[Record]) -> None:
    """Write JSONL atomically: the file appears whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    with partial.open("w", encoding="utf-8") as out:
        for record in records:
            out.write(json.dumps(record_to_json(record), ensure_ascii=False) + "\n")
    os.replace(partial, path)
