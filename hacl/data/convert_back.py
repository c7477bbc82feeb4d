"""Write records in the forms of other projects: LLaVA, released HACL, COCO captions, Karpathy splits, Flickr30k tokens.

Every writer streams. What a form has no place for is left out; each says what.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

from hacl.data.records import Record, RecordError, record_to_json

_FROM = {"user": "human", "assistant": "gpt"}


@contextmanager
def _whole(path: Path) -> Iterator[TextIO]:
    """A text file that appears under its name only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as out:
            yield out
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _list(out: TextIO, rows: Iterable[Any]) -> int:
    count = 0
    for row in rows:
        out.write((",\n" if count else "[\n") + _dumps(row))
        count += 1
    out.write("\n]" if count else "[]")
    return count


def write_llava(path: Path, records: Iterable[Record]) -> int:
    """LLaVA's training JSON: turns from human and gpt. A record of captions alone becomes one question-less turn with
    its first caption as answer; keys LLaVA does not know are kept, and it ignores them."""

    def row(record: Record) -> dict[str, Any]:
        made = record_to_json(record)
        made["conversations"] = _turns(record, record.captions[0] if record.captions else "")
        return made

    with _whole(path) as out:
        return _list(out, map(row, records))


def write_hacl(path: Path, records: Iterable[Record]) -> int:
    """The released HACL JSON: one entry per hallucinated caption, with `text` the caption it was made from (the first
    where unknown). Types, spans, objects and records without hallucinated captions are left out."""

    def rows() -> Iterator[dict[str, Any]]:
        for record in records:
            for index, edit in enumerate(record.hallucinated):
                if not record.captions or len(record.images) != 1:
                    raise RecordError(f"record {record.id!r}: the released form needs one image and a caption")
                text = record.captions[edit.of or 0]
                name = record.id if index == 0 else f"{record.id}#{index + 1}"
                yield {"id": name, "image": record.images[0], "text": text, "Hallucination caption": edit.text,
                       "task_type": "pretrain", "conversations": _caption_turns(text)}  # fmt: skip

    with _whole(path) as out:
        return _list(out, rows())


def write_coco(path: Path, records: Iterable[Record]) -> int:
    """COCO captions: images and annotations. Image ids are numbers: `image_id` where it is one, else counted on from
    10^9. Objects (which have no boxes here), hallucinated captions and conversations are left out."""
    beside = path.with_name(f".{path.name}.annotations.{os.getpid()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    count = captions = 0
    numbers: dict[str, int] = {}
    try:
        with _whole(path) as out, beside.open("w+", encoding="utf-8") as notes:
            out.write('{"images": [')
            for record in records:
                count += 1
                if len(record.images) != 1:
                    raise RecordError(f"record {record.id!r} has {len(record.images)} images; COCO captions need one")
                number = int(record.image_id) if record.image_id.isascii() and record.image_id.isdigit() else None
                known = record.image_id in numbers
                number = numbers.setdefault(record.image_id, 10**9 + len(numbers) if number is None else number)
                if not known:
                    row = {"id": number, "file_name": record.images[0]}
                    out.write((",\n" if len(numbers) > 1 else "\n") + _dumps(row))
                for caption in record.captions:
                    row = {"id": captions, "image_id": number, "caption": caption}
                    notes.write((",\n" if captions else "\n") + _dumps(row))
                    captions += 1
            out.write('\n],\n"annotations": [')
            notes.seek(0)
            for line in notes:
                out.write(line)
            out.write("\n]}\n")
    finally:
        beside.unlink(missing_ok=True)
    return count


def write_karpathy(path: Path, records: Iterable[Record]) -> int:
    """Karpathy's split form: file name, sentences, and the split of `extra`. Objects, hallucinated captions and
    conversations are left out."""

    def rows() -> Iterator[dict[str, Any]]:
        for number, record in enumerate(records):
            if len(record.images) != 1:
                raise RecordError(f"record {record.id!r} has {len(record.images)} images; this form needs one")
            image = PurePosixPath(record.images[0])
            row = {"filename": image.name, "imgid": number, "sentences": [{"raw": text} for text in record.captions]}
            if len(image.parts) > 1:
                row["filepath"] = str(image.parent)
            if record.image_id.isascii() and record.image_id.isdigit():
                row["cocoid"] = int(record.image_id)
            yield row | ({"split": record.extra["split"]} if "split" in record.extra else {})

    with _whole(path) as out:
        out.write('{"images": ')
        count = _list(out, rows())
        out.write(', "dataset": "records"}\n')
        return count


def write_tokens(path: Path, records: Iterable[Record]) -> int:
    """Flickr30k's `results.token`: image name, number, caption, with line breaks and tabs of captions made spaces."""
    count = 0
    with _whole(path) as out:
        for record in records:
            if len(record.images) != 1:
                raise RecordError(f"record {record.id!r} has {len(record.images)} images; this form needs one")
            for number, caption in enumerate(record.captions):
                out.write(f"{record.images[0]}#{number}\t{' '.join(caption.split())}\n")
            count += 1
    return count


def _turns(record: Record, caption: str) -> list[dict[str, str]]:
    if not record.conversation:
        return _caption_turns(caption, bool(record.images))
    return [{"from": _FROM[turn.role], "value": turn.text} for turn in record.conversation]


def _caption_turns(caption: str, image: bool = True) -> list[dict[str, str]]:
    return [{"from": "human", "value": "<image>" if image else "Describe."}, {"from": "gpt", "value": caption}]


WRITERS = {
    "llava": write_llava,
    "hacl": write_hacl,
    "coco": write_coco,
    "karpathy": write_karpathy,
    "flickr-token": write_tokens,
}
