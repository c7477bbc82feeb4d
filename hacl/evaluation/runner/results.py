"""From replies to predictions, scores and files: what lies in a benchmark's folder when it is done.

``predictions*.jsonl`` (what scripts/score.py reads), ``items*.jsonl``, ``report*.json`` with the evidence by image.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hacl.evaluation.reports import ScoreReport
from hacl.evaluation.runner.plan import Item, Part, Plan, item_request
from hacl.evaluation.runner.prompts import Prompt
from hacl.evaluation.runner.store import write_json, write_lines
from hacl.evaluation.scorers import score

Answers = Mapping[str, Mapping[str, Any]]
Run = Mapping[str, Any]
SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s|$)")
CUT = ("keep", "drop")


def without_cut_sentence(text: str) -> str:
    """The text up to its last complete sentence; a text without one stays as it is."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else text


def predictions(part: Part, answers: Answers, keys: Mapping[int, str], cut: str) -> list[dict[str, Any]]:
    """One row per item with its reply. keys: of each item's request, by position; cut: what happens to a caption's
    last sentence where the reply reached its limit of tokens."""
    rows = []
    for position, item in enumerate(part.items):
        found = answers[keys[position]]
        text = found["reply"]
        if cut == "drop" and item.reply == "caption" and not found["stopped"]:
            text = without_cut_sentence(text)
        rows.append({**item.fields, item.reply: text})
    return rows


def finish(
    plan: Plan,
    answers: Answers,
    prompt: Prompt,
    limits: Mapping[str, int],
    folder: Path,
    run: Run,
    *,
    options: Mapping[str, Any],
    cut: str,
    allow_missing: bool,
) -> dict[str, ScoreReport | None]:
    """Write and score every part of a generated benchmark; the reports by part, None where a judge must read first.

    limits: new tokens allowed for each item's request, by item id and part (see `limit_of`).
    """
    reports: dict[str, ScoreReport | None] = {}
    for part in plan.parts:
        suffix = f"_{part.name}" if part.name else ""
        keys = {n: request_of(item, prompt, limits).key for n, item in enumerate(part.items)}
        path = folder / f"predictions{suffix}.jsonl"
        rows = predictions(part, answers, keys, cut)
        write_lines(path, rows)
        if part.scorer is None:
            reports[part.name] = None
            continue
        if part.scorer == "chair_words":
            report = _own_words(part, rows)
            write_lines(folder / f"items{suffix}.jsonl", report.items)
        else:
            given = dict(options) | part.options
            report = score_rows(
                part.scorer, path, part.references, folder / f"items{suffix}.jsonl", given, allow_missing
            )
        replies = [answers[key] for key in dict.fromkeys(keys.values())]
        report.counts["replies"] = len(replies)
        report.counts["replies_at_the_limit"] = sum(not reply["stopped"] for reply in replies)
        report.counts["empty_replies"] = sum(not reply["reply"] for reply in replies)
        if report.counts["replies_at_the_limit"] and any(item.reply == "caption" for item in part.items):
            done = "lost that sentence" if cut == "drop" else "end in a cut sentence, which may name objects wrongly"
            report.warnings.append(f"{report.counts['replies_at_the_limit']} replies reached max_new_tokens and {done}")
        save_report(folder / f"report{suffix}.json", report, run)
        reports[part.name] = report
    return reports


def request_of(item: Item, prompt: Prompt, limits: Mapping[str, int]):
    """The request of an item: its question in the words of the prompt, and the tokens its kind of reply may take."""
    allowed = limits.get("all") or item.max_new_tokens
    return item_request(item, prompt.render(item.question), allowed)


def score_rows(
    scorer: str, path: Path, references: Any, items: Path, options: Mapping[str, Any], allow_missing: bool
) -> ScoreReport:
    """Score a predictions file; the items also go to a file of their own."""
    report = score(scorer, path, references, allow_missing=allow_missing, **options)
    write_lines(items, report.items)
    return report


def save_report(path: Path, report: ScoreReport, run: Run) -> None:
    """The report with its items, its evidence by image, and how the replies were made."""
    config = run["config"]
    report.meta |= {
        "prompt": config["prompt"]["id"],
        "prompt_version": config["prompt"]["version"],
        "decoding": config["decoding"],
        "model": run["model"]["path"],
        "model_fingerprint": run["model"]["fingerprint"],
    }
    write_json(path, {**report.to_json(tables=True), "run": dict(run)})


def _own_words(part: Part, rows: Sequence[Mapping[str, Any]]) -> ScoreReport:
    from hacl.evaluation.chair import MentionExtractor, score_chair

    vocabulary, objects = part.references
    truth = {str(name): found for name, found in objects.items()}
    names = [str(row["image_id"]) for row in rows]
    report = score_chair(names, [row["caption"] for row in rows], truth, MentionExtractor(vocabulary))
    with_intervals(report)
    return report


def with_intervals(report: ScoreReport, draws: int = 1000, seed: int = 0) -> None:
    """Fill in the intervals over images of a report that carries its evidence by item."""
    from hacl.evaluation.statistics import bootstrap_runs

    for name, table in report.by_image().items():
        interval = bootstrap_runs([table], draws=draws, seed=seed)
        report.intervals[name] = None if interval.low is None else [interval.low, interval.high]


def split_by_type(report: ScoreReport) -> tuple[ScoreReport, ScoreReport]:
    """(measures by hallucination type, measures over all pairs): a comparison corrects over what one report holds."""
    parts = []
    for typed in (True, False):
        chosen = {name for name in report.metrics if ("/" in name) is typed}
        parts.append(
            replace(
                report,
                metrics={name: value for name, value in report.metrics.items() if name in chosen},
                ratios={name: pairs for name, pairs in report.ratios.items() if name in chosen},
                intervals={name: bounds for name, bounds in report.intervals.items() if name in chosen},
            )
        )
    return parts[0], parts[1]


def summary_rows(benchmark: str, part: str, report: ScoreReport) -> list[dict[str, Any]]:
    """Metrics of one report as table rows."""
    rows = []
    for name, value in report.metrics.items():
        low, high = report.intervals.get(name) or (None, None)
        rows.append({"benchmark": benchmark, "part": part, "metric": name, "value": value, "low": low, "high": high})
    return rows


def mean_rows(benchmark: str, reports: Mapping[str, ScoreReport | None]) -> list[dict[str, Any]]:
    """The plain mean over the parts of each fraction that all have: how POPE's three splits are put together."""
    found = [report.metrics for report in reports.values() if report is not None]
    if len(found) < 2:
        return []
    rows = []
    for name in found[0]:
        values = [metrics.get(name) for metrics in found]
        if any(value is None for value in values) or name in ("TP", "FP", "TN", "FN"):
            continue
        mean = sum(values) / len(values)
        rows.append({"benchmark": benchmark, "part": "mean", "metric": name, "value": mean, "low": None, "high": None})
    return rows


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV text."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, ("benchmark", "part", "metric", "value", "low", "high"), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def as_cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Header and rows as text cells: value with four decimals, interval where there is one."""
    cells = [["benchmark", "part", "metric", "value", "95% interval"]]
    for row in rows:
        value = "undefined" if row["value"] is None else f"{row['value']:.4f}".rstrip("0").rstrip(".")
        interval = "" if row["low"] is None else f"{row['low']:.4f} to {row['high']:.4f}"
        cells.append([row["benchmark"], row["part"] or "all", row["metric"], value, interval])
    return cells


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table."""
    header, *body = as_cells(rows)
    lines = [header, ["---"] * len(header), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
