"""Draw a few records from a file of any length."""

from __future__ import annotations

import heapq
from pathlib import Path

from hacl.data.hashes import hash64
from hacl.data.records import Record, RecordError, iter_raw, parse_record


def draw_records(path: Path, count: int, seed: int = 0) -> list[Record]:
    """The readable records whose ids have the smallest hashes: a draw that does not depend on the order of the file."""
    kept: list[tuple[int, int, Record]] = []
    for number, (where, raw) in enumerate(iter_raw(path, lambda error: None)):
        try:
            record = parse_record(raw, where=where)
        except RecordError:
            continue
        entry = (-hash64(f"{seed}/{record.id}"), -number, record)
        if len(kept) < count:
            heapq.heappush(kept, entry)
        elif entry[:2] > kept[0][:2]:
            heapq.heapreplace(kept, entry)
    return [record for *_, record in sorted(kept, key=lambda entry: entry[:2], reverse=True)]
