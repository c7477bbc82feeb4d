"""The first pass over an input: ids are unique, and what the collection is like; kept beside the output."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hacl.data.hashes import HashSet, hash64
from hacl.data.parallel import ordered_map
from hacl.data.records import Record, RecordError, iter_raw, parse_record
from hacl.hallucinate.backends.base import Backend
from hacl.hallucinate.balance import Balance
from hacl.hallucinate.select import fit_balance
from hacl.hallucinate.survey import Survey


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

    Processes share the work by image, so each image's objects count once whatever the number of processes. Raises
    RecordError for a bad record, and where two records have one id, which resuming could not tell apart.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected records as .jsonl or as a .json list")
    digest = sha256_of(path)
    if beside is not None and (kept := _kept(beside, digest)) is not None:
        return InputSummary(digest, kept)
    whole = Survey()
    for part in ordered_map(_nothing, partial(_count_part, path, workers), range(workers), workers=workers):
        whole.merge(Survey.from_json(part))
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


def _nothing() -> None:
    return None


def _count_part(path: Path, parts: int, _: None, part: int) -> dict:
    """Survey of the images of one part, after a look at the ids of that part."""
    survey, ids, images = Survey(), HashSet(), HashSet()
    for where, record in located(path):
        key = hash64(record.id)
        if key % parts == part and not ids.add(key):
            _refuse_repeat(path, where, record.id)
        image = hash64(record.image_id)
        if image % parts == part:
            survey.add(record, new_image=record.objects is None or images.add(image))
    return survey.to_json()


def _refuse_repeat(path: Path, where: str, name: str) -> None:
    """Raise where an earlier record has the id itself and not only its hash."""
    for earlier, record in located(path):
        if earlier == where:
            return
        if record.id == name:
            raise RecordError(f"{where}: record {name!r} repeats the id of {earlier}; make ids unique")
