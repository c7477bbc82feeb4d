"""Run a generator over a file of records on all cores: ordered output that grows line by line and survives any kill.

The output holds one line per record in the order of the input, and each line depends on its record, the settings and
the survey alone. So its bytes do not depend on the number of workers, and what a killed run has written is a prefix of
the whole: a later run checks that prefix against the input, drops a cut last line and goes on. Memory holds a few
chunks per worker, whatever the number of records.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from hacl.data.parallel import chunked, ordered_map
from hacl.data.records import HallucinatedCaption, Record, iter_raw, parse_record, record_to_json
from hacl.hallucinate.backends.base import Backend
from hacl.hallucinate.english import same_text_key
from hacl.hallucinate.first_pass import write_json

CHUNK = 64  # records a worker gets at a time


@dataclass
class AnnotationReport:
    """What a run did, and what is in the output now.

    fewer: number of captions by how many hallucinated captions they got, where less than asked; rejected: candidates
    that were refused, by reason; without: captioned records of the whole output, those of earlier runs included, that
    have no hallucinated caption.
    """

    records: int = 0
    resumed: int = 0
    captions: int = 0
    types: Counter[str] = field(default_factory=Counter)
    fewer: Counter[int] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    without: int = 0
    stopped: bool = False

    def add(self, other: AnnotationReport) -> None:
        for name in ("records", "resumed", "captions", "without"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("types", "fewer", "rejected"):
            getattr(self, name).update(getattr(other, name))


def annotate(
    source: Path,
    output: Path,
    recipe: Callable[[], Backend],
    *,
    num_hallucinated: int,
    captions_per_image: int | None = None,
    limit: int | None = None,
    settings: dict,
    overwrite: bool = False,
    workers: int = 1,
    mapped: Callable = ordered_map,
    progress: Callable[[Iterable, int], Iterable] | None = None,
) -> AnnotationReport:
    """Write the records of `source` with `num_hallucinated` hallucinated captions per caption to `output` (JSONL).

    recipe: makes the generator, once per process (picklable where workers > 1). captions_per_image: how many captions
    of a record to edit: the first ones that offer an edit, the others are passed over. settings: kept beside the
    output, which is only continued under equal ones. mapped: what shares out the work, `ordered_map` or another with
    its promises. progress: wraps the iterable of finished records' counts, called
    with (counts, resumed). An interrupt (Ctrl-C) ends the run in good order with `stopped` set.

    Raises:
        ValueError: `output` was made with other settings, is the input, or holds other records than the input.
    """
    if output.resolve() == source.resolve():
        raise ValueError(f"{output} is the input; write to another file")
    beside = output.with_name(output.name + ".meta.json")
    if overwrite:
        output.unlink(missing_ok=True)
        beside.unlink(missing_ok=True)
    _check_settings(output, beside, settings)
    rows = iter_raw(source)
    report = _resume(output, rows)
    left = None if limit is None else max(0, limit - report.resumed)
    work = partial(_annotate_chunk, num_hallucinated, captions_per_image)
    done = mapped(recipe, work, chunked(islice(rows, left), CHUNK), workers=workers)
    with output.open("ab") as out:
        try:
            counts = _write(done, out, report)
            for _ in counts if progress is None else progress(counts, report.resumed):
                pass
        except KeyboardInterrupt:
            report.stopped = True
        done.close()
        out.flush()
        os.fsync(out.fileno())
    return report


def _write(done: Iterable[tuple[bytes, AnnotationReport]], out, report: AnnotationReport) -> Iterator[int]:
    """Append each finished chunk; yields how many records it holds."""
    for text, part in done:
        out.write(text)
        out.flush()
        report.add(part)
        yield part.records


def _annotate_chunk(
    k: int, captions_per_image: int | None, generator: Backend, chunk: Sequence[tuple[str, Any]]
) -> tuple[bytes, AnnotationReport]:
    """The output lines of some raw records, and what was done. What belongs to a record depends on it alone."""
    report = AnnotationReport()
    refused = Counter(generator.rejections)
    records = [parse_record(raw, where=where) for where, raw in chunk]
    proposals = _propose(generator, records, k, captions_per_image)
    lines = []
    for record, made in zip(records, proposals, strict=True):
        result = _with_proposals(generator, record, made, k, report)
        lines.append(json.dumps(record_to_json(result), ensure_ascii=False) + "\n")
        report.records += 1
        report.without += _lacks(result)
    report.rejected = Counter(generator.rejections) - refused
    return "".join(lines).encode(), report


def _propose(
    generator: Backend, records: Sequence[Record], k: int, captions_per_image: int | None
) -> list[list[list[HallucinatedCaption]]]:
    """For each record the proposals of the captions that were tried, in order.

    Rounds: each asks for as many further captions of every record as it still lacks edited ones.
    """
    made: list[list[list[HallucinatedCaption]]] = [[] for _ in records]
    while True:
        items = []
        for record, tried in zip(records, made, strict=True):
            rest = len(record.captions) - len(tried)
            edited = sum(map(bool, tried))
            wanted = rest if captions_per_image is None else min(rest, captions_per_image - edited)
            items += [(record, tried, len(tried) + offset) for offset in range(wanted)]
        if not items:
            return made
        found = generator.propose_batch([(record, index) for record, _, index in items], k)
        for (_, tried, _), proposals in zip(items, found, strict=True):
            tried.append(proposals)


def _with_proposals(
    generator: Backend,
    record: Record,
    made: Sequence[Sequence[HallucinatedCaption]],
    k: int,
    report: AnnotationReport,
) -> Record:
    found = list(record.hallucinated)
    texts = {same_text_key(caption.text) for caption in found}
    report.captions += len(made)
    for index, proposals in enumerate(made):
        kept = _new(proposals, texts, k)
        if len(kept) < len(proposals) and generator.is_local_cpu:
            # Another caption of the record was edited into the same text: take the next best. A model or a server is
            # not asked again for it.
            kept += _new(generator.propose_batch([(record, index)], k + len(proposals))[0], texts, k - len(kept))
        if len(kept) < k:
            report.fewer[len(kept)] += 1
        report.types.update(caption.type for caption in kept)
        found += kept
    return replace(record, hallucinated=tuple(found))


def _new(proposals: Sequence[HallucinatedCaption], texts: set[str], most: int) -> list[HallucinatedCaption]:
    """At most `most` proposals whose texts are not among `texts`, which take them in."""
    kept = []
    for caption in proposals:
        if len(kept) < most and (key := same_text_key(caption.text)) not in texts:
            texts.add(key)
            kept.append(caption)
    return kept


def _lacks(record: Record) -> bool:
    return bool(record.captions) and not record.hallucinated


# Resuming


def _check_settings(output: Path, beside: Path, settings: dict) -> None:
    """Refuse an output of other settings; write them beside a new one."""
    if output.exists() and output.stat().st_size:
        old = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else None
        if old != settings:
            changed = sorted(key for key in settings if old is None or old.get(key) != settings[key])
            raise ValueError(
                f"{output} was made with other settings or input ({', '.join(changed) or 'unknown'}); "
                "use --overwrite, or another --output"
            )
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(beside, settings)
    output.touch()


def _resume(output: Path, rows: Iterator[tuple[str, Any]]) -> AnnotationReport:
    """Pass over the records that are written, comparing each with the input, and count them."""
    _drop_cut_line(output)
    report = AnnotationReport()
    for place, raw in iter_raw(output):
        written = parse_record(raw, where=place)
        where, source = next(rows, (None, None))
        if where is None:
            raise ValueError(f"{place}: the output has more records than the input; use --overwrite")
        expected = parse_record(source, where=where).id
        if written.id != expected:
            raise ValueError(
                f"{place}: holds record {written.id!r} where the input has {expected!r} ({where}); the output was "
                "changed: use --overwrite, or another --output"
            )
        report.resumed += 1
        report.without += _lacks(written)
    return report


def _drop_cut_line(path: Path) -> None:
    """Cut a file after its last line break."""
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        keep = 0
        while end > 0:
            start = max(0, end - (1 << 16))
            file.seek(start)
            last = file.read(end - start).rfind(b"\n")
            if last >= 0:
                keep = start + last + 1
                break
            end = start
        file.truncate(keep)
