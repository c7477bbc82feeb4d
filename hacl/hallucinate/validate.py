"""Check files of records in one parallel pass: every problem is named, and what the files hold is counted.

Problems are what training refuses or would learn wrongly from; notes are what to know about. Memory: 16 to 32 bytes per
id, record, caption and image, the images of the validation files, and the first `KEEP` problems of each kind.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hacl.config import Config
from hacl.data.hashes import HashSet, hash64
from hacl.data.image_facts import ImageFacts, Looks, image_facts
from hacl.data.measure import Measured, Measurer
from hacl.data.parallel import chunked, ordered_map
from hacl.data.records import Record, RecordError, iter_raw, parse_record, record_to_json
from hacl.hallucinate.english import same_text_key, words_of
from hacl.hallucinate.lexicon import Lexicon
from hacl.hallucinate.record_checks import record_problems
from hacl.hallucinate.validate_report import FileReport, Problem
from hacl.hallucinate.vocabulary import default_lexicon

CHUNK = 256
SAMPLED = 2_000  # records whose sequence lengths are kept for the prediction of packing


@dataclass
class _Part:
    """What a worker found in some rows."""

    problems: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)
    records: list[tuple[str, str, int]] = field(default_factory=list)  # place, id, hash of the content
    captions: array = field(default_factory=lambda: array("Q"))
    images: list[tuple[str, str, ImageFacts]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    types: Counter[str] = field(default_factory=Counter)
    histograms: dict[str, Counter[int]] = field(default_factory=dict)
    lengths: list[list[int]] = field(default_factory=list)

    def count(self, name: str, value: int) -> None:
        self.histograms.setdefault(name, Counter())[value] += 1


def validate_file(
    path: Path,
    *,
    image_root: Path | None = None,
    config: Config | None = None,
    against: Seen | None = None,
    seen: Seen | None = None,
    lexicon: Lexicon | None = None,
    workers: int = 1,
) -> FileReport:
    """Check every record of a file.

    image_root: also decode every image below it, once; without it only the form of image paths is checked. config: also
    measure samples as a run with it would build them, with the processor of its model. against: the images of a
    validation file, which this file must not hold; seen: filled with the images of this file, for that purpose.
    lexicon: recognises objects in hallucinated captions. Raises FileNotFoundError.
    """
    report = FileReport(str(path))
    measured_root = images_of(path, image_root, config)
    setup = partial(_Checker, image_root, config, lexicon, measured_root)
    ids, contents, captions, bytes_ = HashSet(), HashSet(), HashSet(), HashSet()
    repeats: dict[str, list[str]] = {}
    chunks = chunked(_rows(path, report), CHUNK)
    for part in ordered_map(setup, _check, chunks, workers=workers):
        _add_counts(report, part)
        for where, name, content in part.records:
            if not ids.add(hash64(name)):
                repeats.setdefault(name, []).append(where)
            elif not contents.add(content):
                message = "holds the same images and texts as an earlier one; remove one"
                report.note(Problem("duplicate record", where, name, message))
        report.repeated_captions += sum(not captions.add(key) for key in part.captions)
        for problem in part.problems:
            report.problem(problem)
        for note in part.notes:
            report.note(note)
        for where, name, facts in part.images:
            _look_at(report, where, name, facts, bytes_, against, seen)
    for problem in _repeated_ids(path, repeats):
        report.problem(problem)
    if config is not None and report.unlabelled > config.data.max_unlabelled_fraction * report.records:
        message = f"{report.unlabelled} of {report.records} samples have no token to learn, more than the share "
        message += f"data.max_unlabelled_fraction={config.data.max_unlabelled_fraction:g}; raise data.max_length, or"
        report.problem(Problem("unlabelled", str(path), "", f"{path}: {message} see whether data.template fits"))
    order = {row: number for number, row in enumerate(_places(report.problems))}
    report.problems.sort(key=lambda problem: order[problem.where])
    return report


def images_of(path: Path, image_root: Path | None, config: Config | None) -> Path | str:
    """Where a run with this configuration looks for the images of a file, unless a folder is given."""
    return image_root or (config and config.data.image_root) or Path(path).parent


class Seen:
    """The images of a file by path, by bytes and by look."""

    def __init__(self, file: Path):
        self.file = file
        self.paths, self.bytes = HashSet(), HashSet()
        self.looks = Looks()

    def add(self, facts: ImageFacts) -> None:
        self.paths.add(hash64(facts.path))
        if facts.sha256:
            self.bytes.add(facts.sha256)
            self.looks.add(facts.look, facts.path)


def _places(problems: Sequence[Problem]) -> list[str]:
    """The places of problems in the order of the file: line numbers as numbers."""

    def key(where: str) -> tuple[int, str]:
        number = where.rpartition(":")[2].strip("[]")
        return (int(number) if number.isdigit() else -1, where)

    return sorted({problem.where for problem in problems}, key=key)


def _rows(path: Path, report: FileReport) -> Iterator[tuple[str, Any, list[str]]]:
    """Rows with those of their images that no earlier row named."""

    def unreadable(error: RecordError) -> None:
        place = str(error).partition(": not a")[0]
        report.problem(Problem("unreadable", place, "", str(error)))

    images = HashSet()
    for where, raw in iter_raw(path, unreadable):
        named = (raw.get("image") or raw.get("images") or []) if isinstance(raw, dict) else []
        named = named if isinstance(named, list) else [named]
        yield where, raw, [name for name in named if isinstance(name, str) and images.add(hash64(name))]


class _Checker:
    """What a worker needs."""

    def __init__(
        self, image_root: Path | None, config: Config | None, lexicon: Lexicon | None, measured_root: Path | str
    ):
        self.image_root = image_root
        self.lexicon = default_lexicon() if lexicon is None else lexicon
        self.config = config
        self.measure = None if config is None else Measurer(config, measured_root)


def _check(checker: _Checker, chunk: Sequence[tuple[str, Any, list[str]]]) -> _Part:
    part = _Part()
    for where, raw, new_images in chunk:
        part.counts["records"] += 1
        try:
            record = parse_record(raw, where=where)
        except RecordError as error:
            part.problems.append(Problem("bad record", where, "", str(error)))
            continue
        _count(part, record)
        part.records.append((where, record.id, _content(record)))
        part.captions.extend(hash64(" ".join(same_text_key(text))) for text in record.captions)
        found = list(record_problems(record, checker.lexicon))
        for image in new_images:
            part.counts["images"] += 1
            if any(kind == "image path" for kind, _ in found):
                continue
            facts = ImageFacts(image) if checker.image_root is None else image_facts(checker.image_root, image)
            part.images.append((where, record.id, facts))
            if facts.error:
                found.append(("image", facts.error))
            elif facts.width:
                part.count("image width", facts.width)
                part.count("image height", facts.height)
        if checker.measure is not None:
            _count_tokens(part, checker.config, where, record, checker.measure(record))
        part.problems += [Problem(kind, where, record.id, message) for kind, message in found]
    return part


def _count(part: _Part, record: Record) -> None:
    part.counts["captions"] += len(record.captions)
    part.types.update(edit.type for edit in record.hallucinated)
    part.counts["without_hallucinated"] += bool(record.captions) and not record.hallucinated
    part.count("captions per record", len(record.captions))
    part.count("hallucinated captions per record", len(record.hallucinated))
    part.count("turns per record", len(record.conversation))
    part.count("images per record", len(record.images))
    if record.objects is not None:
        part.count("kinds of objects per annotated record", len(record.objects))
    for text in record.captions:
        part.count("words per caption", len(words_of(text)))
    for edit in record.hallucinated:
        part.count("words per hallucinated caption", len(words_of(edit.text)))


def _count_tokens(part: _Part, config: Config, where: str, record: Record, found: Measured) -> None:
    if found.problem:
        part.problems.append(Problem("sample", where, record.id, found.problem))
        return
    part.count("tokens of the generation sequence", found.generation)
    for tokens in found.roots:
        part.count("tokens of a caption or hallucinated caption", tokens)
    longest, cut = config.data.max_length, config.data.max_caption_length
    if found.generation > longest:
        message = f"{found.generation} tokens, of which data.max_length keeps {longest}"
        part.notes.append(Problem("cut sequence", where, record.id, message))
    if any(tokens > cut for tokens in found.roots):
        message = f"a caption of {max(found.roots)} tokens, of which data.max_caption_length keeps {cut}"
        part.notes.append(Problem("cut caption", where, record.id, message))
    if found.image_moved:
        message = "its <image> stands behind text; training moves it to the front of the first turn"
        part.notes.append(Problem("image moved", where, record.id, message))
    if config.objective.lm_weight > 0 and not found.labels:
        part.counts["unlabelled"] += 1
        part.notes.append(Problem("no label", where, record.id, "no token to learn within data.max_length"))
    if len(part.lengths) < CHUNK // 8:
        part.lengths.append(found.lengths)


def _content(record: Record) -> int:
    row = record_to_json(record)
    return hash64(json.dumps({key: row[key] for key in sorted(row) if key != "id"}, sort_keys=True))


def _add_counts(report: FileReport, part: _Part) -> None:
    for name, value in part.counts.items():
        setattr(report, name, getattr(report, name) + value)
    report.hallucinated.update(part.types)
    for name, values in part.histograms.items():
        report.histograms.setdefault(name, Counter()).update(values)
    report.sample_lengths += part.lengths[: SAMPLED - len(report.sample_lengths)]


def _look_at(
    report: FileReport,
    where: str,
    name: str,
    facts: ImageFacts,
    bytes_: HashSet,
    against: Seen | None,
    seen: Seen | None,
) -> None:
    """Compare an image with those of this file and of the validation file."""
    if facts.error:
        return
    if seen is not None:
        seen.add(facts)
    if facts.sha256 and not bytes_.add(facts.sha256):
        message = f"image {facts.path!r} has the bytes of an earlier one"
        report.note(Problem("duplicate image", where, name, f"{message}; give both records one image_id"))
    if against is None:
        return
    same = "the path" if hash64(facts.path) in against.paths else ""
    same = "the bytes" if facts.sha256 and facts.sha256 in against.bytes else same
    if same:
        message = f"image {facts.path!r} has {same} of an image of {against.file}; remove it from one of the two"
        report.problem(Problem("leak", where, name, message))
    elif (near := against.looks.near(facts.look)) is not None:
        message = f"image {facts.path!r} looks like {near!r} of {against.file}; see whether it is the same photograph"
        report.note(Problem("near leak", where, name, message))


def _repeated_ids(path: Path, repeats: dict[str, list[str]]) -> Iterator[Problem]:
    """Problems of ids that occur again, after a second look for where they came first."""
    if not repeats:
        return
    first: dict[str, str] = {}
    for where, raw in iter_raw(path, lambda error: None):
        try:
            name = parse_record(raw, where=where).id
        except RecordError:
            continue
        if name in repeats:
            first.setdefault(name, where)
    for name, places in repeats.items():
        for where in places:
            if where != first[name]:  # else two ids share a hash
                message = f"repeats the id of {first[name]}; make ids unique"
                yield Problem("duplicate id", where, name, message)
