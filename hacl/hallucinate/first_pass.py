"""The first pass over an input: ids are unique, and what the collection is like; kept beside the output."""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import nsmallest
from itertools import islice
from pathlib import Path
from typing import Any

from hacl.data.hashes import HashSet, hash64
from hacl.data.parallel import chunked, ordered_map
from hacl.data.records import Record, RecordError, iter_raw, parse_record
from hacl.data.sources import JsonSource
from hacl.hallucinate.backends.base import Backend
from hacl.hallucinate.balance import Balance
from hacl.hallucinate.select import fit_balance
from hacl.hallucinate.survey import SAMPLE_RECORDS, Survey

CHUNK = 2048  # records a worker gets at a time


@dataclass(frozen=True)
class InputSummary:
    """sha256: of the file's bytes; survey: of all its records."""

    sha256: str
    survey: Survey

    @property
    def records(self) -> int:
        return self.survey.records


def take_survey(path: Path, *, workers: int = 1, beside: Path | None = None) -> InputSummary:
    """Read the input once, or take the survey of the same bytes from the file `beside`, which is written otherwise.

    Processes decode and count chunks of it; this one adds the chunks up in order and decides which ids and images are
    new, so the survey is the same whatever the number of processes. Raises RecordError for a bad record, and where two
    records have one id, which resuming could not tell apart.
    """
    source = JsonSource(path)
    digest = sha256_of(path)
    if beside is not None and (kept := _kept(beside, digest)) is not None:
        return InputSummary(digest, kept)
    whole, ids, images = Survey(), HashSet(), HashSet()
    chunks = chunked(source.rows(), CHUNK)
    for part in ordered_map(dict, partial(_count_chunk, source), chunks, workers=workers):
        for number, name in enumerate(part.ids, start=whole.records):
            if not ids.add(name):
                _refuse_repeat(path, number)
        for image, names in part.images.items():
            if images.add(image):
                whole.add_objects(names)
        whole.merge(part.survey)
    survey = Survey.from_json(whole.to_json())  # sorted, so that no generator sees the order of counting
    if beside is not None:
        beside.parent.mkdir(parents=True, exist_ok=True)
        write_json(beside, {"input_sha256": digest, "survey": survey.to_json()})
    return InputSummary(digest, survey)


def take_balance(
    backend: Backend, summary: InputSummary, *, k: int, candidates: int, seed: int, beside: Path | None = None
) -> Balance:
    """Fit the balance of `backend` on the survey's sample, or take it from the file `beside`, written otherwise.

    The file is used where input, settings, k and candidates are the same. Both ways give the same numbers.
    """
    made_from = {"input_sha256": summary.sha256, "backend": backend.name, "settings": backend.settings(), "k": k,
                 "candidates": candidates, "seed": seed}  # fmt: skip
    made_from = json.loads(json.dumps(made_from))
    if beside is not None and beside.is_file():
        try:
            content = json.loads(beside.read_text(encoding="utf-8"))
            if content["made_from"] == made_from:
                return Balance.from_json(content["balance"])
        except (ValueError, KeyError, TypeError):
            pass  # of another version, or damaged: fitted again
    fitted = fit_balance(backend, summary.survey, k=k, candidates=candidates, seed=seed).to_json()
    if beside is not None:
        beside.parent.mkdir(parents=True, exist_ok=True)
        write_json(beside, {"made_from": made_from, "balance": fitted})
    return Balance.from_json(fitted)


def located(path: Path) -> Iterator[tuple[str, Record]]:
    """Each record with its place, "file:line"."""
    for where, raw in iter_raw(path):
        yield where, parse_record(raw, where=where)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    """In one step: complete, or the old file stays."""
    partial_file = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial_file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial_file, path)


def _kept(beside: Path, digest: str) -> Survey | None:
    """The survey in a file, None where it is of another input, of another version of the survey, or no survey."""
    if not beside.is_file():
        return None
    try:
        content = json.loads(beside.read_text(encoding="utf-8"))
        return Survey.from_json(content["survey"]) if content["input_sha256"] == digest else None
    except (ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True)
class _Chunk:
    """survey: of some records without their objects; ids: hashes, one per record; images: hash -> annotated objects of
    the first annotated record of that image."""

    survey: Survey
    ids: array
    images: dict[int, list[str]]


def _count_chunk(source: JsonSource, kept: dict[str, None], rows: Sequence[tuple[str, Any]]) -> _Chunk:
    """Decode and count some rows.

    kept: the smallest hashes of the sample that this process has met, its state. A record outside them is outside the
    whole sample too, so it is not sent back.
    """
    survey, ids, images = Survey(), array("Q"), {}
    for where, row in rows:
        record = source.decode(where, row)
        ids.append(hash64(record.id))
        survey.add(record, new_image=False)
        if record.objects is not None:
            images.setdefault(hash64(record.image_id), sorted(record.objects))
    smallest = nsmallest(SAMPLE_RECORDS, {*kept, *survey.sample})
    kept.clear()
    kept.update(dict.fromkeys(smallest))
    survey.sample = {key: record for key, record in survey.sample.items() if key in kept}
    return _Chunk(survey, ids, images)


def _refuse_repeat(path: Path, number: int) -> None:
    """Raise where a record before record `number` has its id itself and not only its hash."""
    where, repeated = next(islice(located(path), number, None))
    for earlier, record in islice(located(path), number):
        if record.id == repeated.id:
            raise RecordError(f"{where}: record {record.id!r} repeats the id of {earlier}; make ids unique")
