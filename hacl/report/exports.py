"""Score reports of many runs as one table: CSV, JSON, Markdown, LaTeX rows, and an HTML page with plots.

A column holds numbers of one ruler. Reports of one benchmark that differ in scorer version, dialect, parser, another
option, or references are refused: the table would compare rulers, not models.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from hacl.evaluation.comparable import Report, differences, scored_by, shortened
from hacl.plain_text import markdown
from hacl.report.formats import html_page, html_table, latex_table, markdown_table, value_text
from hacl.report.parts import figure

FORMATS = ("csv", "json", "md", "tex", "html")
COUNTS = ("TP", "FP", "TN", "FN")  # shown when asked for


@dataclass(frozen=True)
class Value:
    """One number of one run; ``benchmark`` and ``part`` (a POPE split, a likelihood) say by which ruler."""

    run: str
    benchmark: str
    part: str
    metric: str
    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Table:
    """values of all runs; rulers: (benchmark, part) to what its numbers were made with; warnings of the reports."""

    values: list[Value]
    rulers: dict[tuple[str, str], dict[str, Any]]
    warnings: list[str]

    @property
    def runs(self) -> list[str]:
        return list(dict.fromkeys(value.run for value in self.values))

    def rows(self, benchmark: str, part: str) -> list[list[str]]:
        """Cells of one benchmark and part: a head, then one row per run with its intervals."""
        cells = {(v.run, v.metric): v for v in self.values if (v.benchmark, v.part) == (benchmark, part)}
        metrics = list(dict.fromkeys(metric for _, metric in cells))
        body = [[run, *(self._text(cells.get((run, metric))) for metric in metrics)] for run in self.runs]
        return [["run", *metrics], *body]

    @staticmethod
    def _text(value: Value | None) -> str:
        return "" if value is None else value_text(value.value, value.low, value.high)


def read_runs(sources: Sequence[str | Path]) -> dict[str, dict[tuple[str, str], tuple[str, Report]]]:
    """Run name -> (benchmark, part) -> (file, report).

    sources: report files, or run folders of scripts/evaluate.py with their ``BENCHMARK/report*.json``; ``NAME=PATH``
    names a run, otherwise the folder or file does. Several files may belong to one named run.

    Raises:
        FileNotFoundError: a path is missing or a folder holds no report. ValueError: a file is no report, or a run has
            two reports of one benchmark and part.
    """
    runs: dict[str, dict[tuple[str, str], tuple[str, Report]]] = {}
    for source in sources:
        name, path = _named(str(source))
        files = [path] if path.is_file() else sorted(path.rglob("report*.json")) if path.is_dir() else []
        if not files:
            raise FileNotFoundError(f"{path}: no report; give a report of a scorer or a run folder with report*.json")
        found = runs.setdefault(name, {})
        for file in files:
            report = _read(file)
            key = (str(report["meta"].get("scorer", "scores")), _part(file, report) if path.is_dir() else "")
            if key in found:
                raise ValueError(
                    f"run {name!r} has two reports of {' '.join(key).strip()}: {found[key][0]} and {file}; give the "
                    "runs other names (NAME=PATH)"
                )
            found[key] = (str(file), report)
    return runs


def build_table(
    runs: Mapping[str, Mapping[tuple[str, str], tuple[str, Report]]], *, metrics: Sequence[str] = ()
) -> Table:
    """One table of several runs. metrics: which, in this order; default all but counts and measures by type.

    Raises:
        ValueError: two runs' reports of one benchmark were made by different rulers, or no metric is left.
    """
    values: list[Value] = []
    first: dict[tuple[str, str], tuple[str, Report]] = {}
    warnings: list[str] = []
    for run, reports in runs.items():
        for (benchmark, part), (file, report) in reports.items():
            known, other = first.setdefault((benchmark, part), (file, report))
            apart = differences(other, report)
            if apart:
                raise ValueError(
                    f"{known} and {file} do not belong in one column: {'; '.join(apart)}. Score both in the same way, "
                    "or make two tables"
                )
            intervals = report.get("intervals") or {}
            for metric in metrics or [m for m in report["metrics"] if "/" not in m and m not in COUNTS]:
                if metric in report["metrics"]:
                    low, high = intervals.get(metric) or (None, None)
                    values.append(Value(run, benchmark, part, metric, report["metrics"][metric], low, high))
            warnings += [f"{run}, {benchmark} {part}".strip() + f": {line}" for line in report.get("warnings") or ()]
    if not values:
        raise ValueError(f"no report has any of the metrics {', '.join(metrics)}")
    rulers = {key: scored_by(report) for key, (_, report) in first.items()}
    return Table(values, rulers, list(dict.fromkeys(warnings)))


def export_reports(
    sources: Sequence[str | Path],
    out: Path | str,
    *,
    metrics: Sequence[str] = (),
    formats: Sequence[str] = FORMATS,
    title: str = "Evaluation",
) -> list[Path]:
    """Write the table of several runs as ``table.csv``, ``.json``, ``.md``, ``.tex`` and ``.html``; returns the paths.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_runs` and :func:`build_table`; an unknown format.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise ValueError(f"format {unknown[0]!r}; use some of {', '.join(FORMATS)}")
    table = build_table(read_runs(sources), metrics=metrics)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    writers: dict[str, Callable[[Table], str]] = {"csv": as_csv, "json": as_json, "md": as_markdown, "tex": as_latex}
    writers["html"] = lambda table: as_html(table, title)
    paths = []
    for name in formats:
        paths.append(out / f"table.{name}")
        paths[-1].write_text(writers[name](table), encoding="utf-8")
    return paths


def as_csv(table: Table) -> str:
    """One line per number: run, benchmark, part, metric, value, low, high."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(Value.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(value.__dict__ for value in table.values)
    return stream.getvalue()


def as_json(table: Table) -> str:
    """Values, rulers and warnings."""
    rulers = [{"benchmark": b, "part": p, "scored_by": ruler} for (b, p), ruler in table.rulers.items()]
    content = {"values": [value.__dict__ for value in table.values], "rulers": rulers, "warnings": table.warnings}
    return json.dumps(content, indent=1) + "\n"


def as_markdown(table: Table) -> str:
    """One pipe table per benchmark, with its ruler under it."""
    parts = [
        f"### {markdown(_title(key))}\n\n{markdown_table(table.rows(*key))}\n{markdown(_ruler(table, key))}\n"
        for key in table.rulers
    ]
    notes = "".join(f"- {markdown(line)}\n" for line in table.warnings)
    return "\n".join(parts) + (f"\n{notes}" if notes else "")


def as_latex(table: Table) -> str:
    """One booktabs ``tabular`` per benchmark, its ruler in a comment above it."""
    return "\n".join(latex_table(table.rows(*key), f"{_title(key)}: {_ruler(table, key)}") for key in table.rulers)


def as_html(table: Table, title: str) -> str:
    """A self-contained page: per benchmark the table and a plot of every metric with its intervals."""
    from hacl.report.plots import intervals_figure

    body = [f"<h1>{escape(title)}</h1>"]
    for key in table.rulers:
        body += [f"<h2>{escape(_title(key))}</h2>", f"<p>{escape(_ruler(table, key))}</p>"]
        body.append(html_table(table.rows(*key), "value with its 95% interval over images"))
        own = [v for v in table.values if (v.benchmark, v.part) == key]
        panels = [
            {"title": metric, "rows": [(v.run, v.value, v.low, v.high) for v in own if v.metric == metric]}
            for metric in dict.fromkeys(v.metric for v in own)
        ]
        drawn = intervals_figure(panels)
        if drawn:
            alt = f"{_title(key)}: every metric per run with its interval; the table above holds the numbers."
            body.append(figure(drawn, alt, "Point and bar: value and 95% interval over images."))
    if table.warnings:
        body.append("<h2>Warnings</h2><ul>" + "".join(f"<li>{escape(w)}</li>" for w in table.warnings) + "</ul>")
    return html_page(title, body)


def _title(key: tuple[str, str]) -> str:
    return " ".join(key).strip()


def _ruler(table: Table, key: tuple[str, str]) -> str:
    """In words: scorer version, options that are set, references."""
    ruler = dict(table.rulers[key])
    words = [f"{ruler.pop('scorer')} scorer version {ruler.pop('version')}"]
    words += [
        f"{name.removeprefix('option ')} {shortened(v)}" for name, v in ruler.items() if v not in (None, False, "")
    ]
    return ", ".join(words)


def _named(source: str) -> tuple[str, Path]:
    name, equals, path = source.partition("=")
    if equals and name and "/" not in name:
        return name, Path(path)
    return Path(source).name if Path(source).is_dir() else Path(source).stem, Path(source)


def _part(file: Path, report: Report) -> str:
    """``report_random.json`` -> "random"; the likelihood of pair benchmarks."""
    return str(report["meta"].get("likelihood") or file.stem.removeprefix("report").lstrip("_"))


def _read(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON ({error.msg}); give the report of a scorer") from None
    if not isinstance(report, dict) or not isinstance(report.get("metrics"), dict) or "meta" not in report:
        raise ValueError(f"{path}: no 'metrics' and 'meta'; give the report of a scorer")
    return report
