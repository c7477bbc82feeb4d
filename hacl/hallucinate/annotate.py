"""Run a generator over a file of records, resumably: the output grows line by line and can be interrupted anywhere."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from hacl.data.records import Record, RecordError, iter_raw, parse_record, record_to_json
from hacl.hallucinate.cooccurrence import Cooccurrence, cooccurrence
from hacl.hallucinate.english import same_text_key
from hacl.hallucinate.generators import Hallucinator


@dataclass
class AnnotationReport:
    """What a run did, and what is in the output now.

    fewer: number of captions by how many hallucinated captions they got, where less than asked; without: captioned
    records of the whole output, those of earlier runs included, that have no hallucinated caption.
    """

    records: int = 0
    resumed: int = 0
    captions: int = 0
    types: Counter[str] = field(default_factory=Counter)
    fewer: Counter[int] = field(default_factory=Counter)
    without: int = 0
    stopped: bool = False


@dataclass(frozen=True)
class InputSummary:
    """First pass over the input: how many records, their digest, and which objects occur together."""

    records: int
    digest: str
    cooccurrence: Cooccurrence


def survey(path: Path) -> InputSummary:
    """Read the input once. Raises RecordError where two records have one id, which resuming could not tell apart."""
    seen: dict[str, str] = {}
    digest = hashlib.sha256()

    def records() -> Iterator[Record]:
        for where, record in _located(path):
            if record.id in seen:
                raise RecordError(f"{where}: record {record.id!r} repeats the id of {seen[record.id]}; make ids unique")
            seen[record.id] = where
            digest.update(json.dumps(record_to_json(record), sort_keys=True).encode())
            yield record

    together = cooccurrence(records())
    return InputSummary(len(seen), digest.hexdigest(), together)


def annotate(
    source: Path,
    output: Path,
    generator: Hallucinator,
    *,
    num_hallucinated: int,
    captions_per_image: int | None = None,
    limit: int | None = None,
    settings: dict,
    overwrite: bool = False,
    progress=None,
) -> AnnotationReport:
    """Write the records of `source` with `num_hallucinated` hallucinated captions per caption to `output` (JSONL).

    captions_per_image: how many captions of a record to edit: the first ones that offer an edit, the others are passed
    over. Records already in `output` are kept, provided they were made with the same `settings`, which are kept beside
    it; the last line is dropped if it was cut. progress: wraps the iterable of records, called with (records, resumed).
    An interrupt (Ctrl-C) ends the run in good order with `stopped` set.

    Raises:
        ValueError: `output` was made with other settings, or is the input.
    """
    if output.resolve() == source.resolve():
        raise ValueError(f"{output} is the input; write to another file")
    beside = output.with_name(output.name + ".meta.json")
    if overwrite:
        output.unlink(missing_ok=True)
        beside.unlink(missing_ok=True)
    done = _resume(output, beside, settings)
    report = AnnotationReport(resumed=len(done), without=sum(done.values()))
    records: Iterable[Record] = (record for _, record in _located(source))
    records = records if progress is None else progress(records, len(done))
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("a", encoding="utf-8") as out:
        try:
            for number, record in enumerate(records):
                if limit is not None and number >= limit:
                    break
                if record.id in done:
                    continue
                made = _annotate_one(record, generator, num_hallucinated, captions_per_image, report)
                out.write(json.dumps(record_to_json(made), ensure_ascii=False) + "\n")
                report.records += 1
                report.without += _lacks(made)
        except KeyboardInterrupt:
            report.stopped = True
        out.flush()
        os.fsync(out.fileno())
    return report


def _annotate_one(
    record: Record, generator: Hallucinator, k: int, captions_per_image: int | None, report: AnnotationReport
) -> Record:
    found = list(record.hallucinated)
    texts = {same_text_key(caption.text) for caption in found}
    edited = 0
    for index in range(len(record.captions)):
        if edited == captions_per_image:
            break
        made = generator.propose(record, index, k)
        edited += bool(made)
        report.captions += 1
        if len(made) < k:
            report.fewer[len(made)] += 1
        for caption in made:
            if (key := same_text_key(caption.text)) not in texts:
                texts.add(key)
                found.append(caption)
                report.types[caption.type] += 1
    return replace(record, hallucinated=tuple(found))


def _lacks(record: Record) -> bool:
    return bool(record.captions) and not record.hallucinated


def _located(path: Path) -> Iterator[tuple[str, Record]]:
    for where, raw in iter_raw(path):
        yield where, parse_record(raw, where=where)


def _resume(output: Path, beside: Path, settings: dict) -> dict[str, bool]:
    """Ids already written -> whether the record has captions and no hallucinated caption.

    The settings file is written where there is none.
    """
    if output.exists() and output.stat().st_size:
        old = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else None
        if old != settings:
            changed = sorted(key for key in settings if old is None or old.get(key) != settings[key])
            raise ValueError(
                f"{output} was made with other settings or input ({', '.join(changed) or 'unknown'}); "
                "use --overwrite, or another --output"
            )
        _drop_cut_line(output)
        return {record.id: _lacks(record) for _, record in _located(output)}
    output.parent.mkdir(parents=True, exist_ok=True)
    beside.write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return {}


def _drop_cut_line(path: Path) -> None:
    with path.open("r+b") as file:
        data = file.read()
        end = data.rfind(b"\n") + 1
        if end != len(data):
            file.truncate(end)
