"""What is captured from: one prompt, with or without an image, and the text that answers it. No torch here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hacl.data.images import resolve_image
from hacl.data.records import Record


@dataclass(frozen=True)
class Sample:
    """id: unique in a capture; image: its file, None without one; prompt: what the user asks, before any template;
    answer: the reference answer, None where there is none; image_id: what splits keep together (default: the id).
    """

    id: str
    image: Path | str | None = None
    prompt: str = ""
    answer: str | None = None
    image_id: str = ""

    @property
    def group(self) -> str:
        return self.image_id or self.id

    def digest(self) -> str:
        """Names what a forward pass depends on."""
        parts = (self.id, str(self.image), self.prompt, repr(self.answer), self.group)
        return hashlib.blake2b("\x1f".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def samples_from_records(
    records: Iterable[Record], image_root: Path | str, *, prompt: str = "", captions: int | None = 1
) -> list[Sample]:
    """Samples of this project's records, in order, for the template that capture is given.

    A record with captions gives one sample for each of its first `captions` (all of them: None), which answers
    `prompt`; one without gives its first question and answer. The sample of a record's first text has the record's id,
    further ones `id#1`, `id#2`. Ids that several records share are numbered in the same way.

    Raises:
        ValueError: a record has several images, or neither a caption nor a question with an answer.
        FileNotFoundError: an image is missing.
    """
    samples: list[Sample] = []
    used: dict[str, int] = {}
    for record in records:
        if len(record.images) > 1:
            raise ValueError(f"record {record.id!r} has {len(record.images)} images; capture takes at most one")
        image = resolve_image(Path(image_root), record.images[0]) if record.images else None
        texts = [(prompt, caption) for caption in record.captions[:captions]] or [_first_exchange(record)]
        for question, answer in texts:
            number = used[record.id] = used.get(record.id, -1) + 1
            name = f"{record.id}#{number}" if number else record.id
            samples.append(Sample(name, image, question, answer, record.image_id or record.id))
    return samples


def _first_exchange(record: Record) -> tuple[str, str]:
    turns = record.conversation
    for asked, answered in zip(turns, turns[1:], strict=False):
        if asked.role == "user" and answered.role == "assistant":
            return asked.text.replace("<image>", "").strip(), answered.text.strip()
    raise ValueError(f"record {record.id!r}: neither a caption nor a question with an answer; add one or leave it out")
