"""What a check of a file found: problems, notes and counts, as JSON and as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any

KEEP = 10_000


@dataclass(frozen=True)
class Problem:
    """kind: what is wrong, for counting; where: "file:line"; id: of the record, "" where unknown."""

    kind: str
    where: str
    id: str
    message: str

    def __str__(self) -> str:
        name = f" record {self.id!r}" if self.id else ""
        return f"{self.where}:{name} {self.message}" if name else self.message


@dataclass
class FileReport:
    """Counts over a whole file. problems and notes: the first `KEEP` of each kind in the order of the file;
    problem_kinds and note_kinds: of all. histograms: name -> value -> how often. sample_lengths: tokens of the
    sequences of some samples, for packing."""

    file: str
    records: int = 0
    captions: int = 0
    images: int = 0
    hallucinated: Counter[str] = field(default_factory=Counter)
    without_hallucinated: int = 0
    unlabelled: int = 0
    repeated_captions: int = 0
    problems: list[Problem] = field(default_factory=list)
    problem_kinds: Counter[str] = field(default_factory=Counter)
    notes: list[Problem] = field(default_factory=list)
    note_kinds: Counter[str] = field(default_factory=Counter)
    histograms: dict[str, Counter[int]] = field(default_factory=dict)
    sample_lengths: list[list[int]] = field(default_factory=list)

    def problem(self, problem: Problem) -> None:
        self.problem_kinds[problem.kind] += 1
        if self.problem_kinds[problem.kind] <= KEEP:
            self.problems.append(problem)

    def note(self, note: Problem) -> None:
        self.note_kinds[note.kind] += 1
        if self.note_kinds[note.kind] <= KEEP:
            self.notes.append(note)

    def to_json(self) -> dict[str, Any]:
        """Histograms become `quantiles` of each."""
        row = {item.name: getattr(self, item.name) for item in fields(self)}
        for name in ("hallucinated", "problem_kinds", "note_kinds"):
            row[name] = dict(row[name])
        row["distributions"] = {name: quantiles(values) for name, values in sorted(row.pop("histograms").items())}
        row.pop("sample_lengths")
        for name in ("problems", "notes"):
            row[name] = [{**asdict(problem), "text": str(problem)} for problem in row[name]]
        return row

    def lines(self) -> Iterator[str]:
        """The counts as text."""
        types = ", ".join(f"{name} {count}" for name, count in self.hallucinated.most_common()) or "none"
        yield (
            f"{self.file}: {self.records} records, {self.images} images, {self.captions} captions, "
            f"hallucinated captions: {types}; {self.without_hallucinated} captioned records without one"
        )
        if self.repeated_captions:
            yield f"{self.file}: {self.repeated_captions} captions repeat an earlier one up to case and punctuation"
        if self.sample_lengths:
            yield f"{self.file}: {self.unlabelled} of {self.records} samples have no token to learn"
        for what, kinds in (("problems", self.problem_kinds), ("notes", self.note_kinds)):
            yield f"{self.file}: " + (
                f"{what}: " + ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
                if kinds
                else f"no {what}"
            )


def quantiles(values: Counter[int]) -> dict[str, float]:
    """Number, mean, and the values at 0, 5, 25, 50, 75, 95, 99 and 100 percent of a histogram."""
    total = sum(values.values())
    if not total:
        return {"count": 0}
    shares = (("min", 0), ("p5", 5), ("p25", 25), ("p50", 50), ("p75", 75), ("p95", 95), ("p99", 99), ("max", 100))
    wanted = [(name, max(1, -(-percent * total // 100))) for name, percent in shares]
    found: dict[str, float] = {"count": total, "mean": sum(value * n for value, n in values.items()) / total}
    seen = 0
    for value, count in sorted(values.items()):
        seen += count
        while wanted and seen >= wanted[0][1]:
            found[wanted.pop(0)[0]] = value
    return found


def distribution_table(histograms: dict[str, Counter[int]]) -> Iterator[str]:
    """One line per histogram."""
    columns = ("count", "mean", "min", "p5", "p50", "p95", "p99", "max")
    width = max(map(len, histograms), default=0)
    yield " " * width + "".join(f"{column:>10}" for column in columns)
    for name, values in sorted(histograms.items()):
        found = quantiles(values)
        cells = (f"{found[column]:.1f}" if column == "mean" else f"{found.get(column, 0)}" for column in columns)
        yield f"{name:<{width}}" + "".join(f"{cell:>10}" for cell in cells)
