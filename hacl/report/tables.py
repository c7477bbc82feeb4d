"""Plain-text tables of measures with intervals: control first, every difference named better, worse or unclear.

Imports results and statistics only; no model, no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hacl.evaluation import statistics
from hacl.evaluation.statistics import Interval


@dataclass(frozen=True)
class Cell:
    """One arm, one split, one measure.

    ``difference`` is arm minus control paired by base, seed and image; ``verdict`` is "better", "worse" or "unclear"
    (the interval holds zero), "differs" where the measure has no good direction, and None for the control.
    """

    value: Interval
    difference: Interval | None = None
    verdict: str | None = None
    sign_p: float | None = None
    bases: int = 0


def control_first(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The arms with the control in front, otherwise in their given order."""
    control = results.get("control")
    return sorted(results["arms"], key=lambda arm: arm["name"] != control)


def shown_measures(results: dict[str, Any], split: str) -> list[dict[str, Any]]:
    """Declared measures that at least one run has on this split, in declared order."""
    present = {name for arm in results["arms"] for run in arm["runs"] for name in run["metrics"].get(split, {})}
    return [m for m in results["measures"] if m["key"] in present and split in m.get("splits", [split])]


def split_names(results: dict[str, Any]) -> list[str]:
    """Splits in declared order; splits that only runs mention follow."""
    declared = [s["name"] for s in results.get("splits", [])]
    seen = [split for arm in results["arms"] for run in arm["runs"] for split in run["metrics"]]
    return list(dict.fromkeys([s for s in declared if s in seen] + seen))


def cell(results: dict[str, Any], arm: dict[str, Any], split: str, measure: dict[str, Any], draws: int = 1000) -> Cell:
    """Estimate, interval and difference from the control for one arm, split and measure."""
    runs = [run for run in arm["runs"] if run["metrics"].get(split, {}).get(measure["key"]) is not None]
    value = _interval(runs, split, measure, draws)
    control = next((a for a in results["arms"] if a["name"] == results.get("control")), None)
    if control is None or control is arm or arm.get("reference"):
        return Cell(value, bases=len({_base(r) for r in runs}))
    partner = {
        (_base(r), r["seed"]): r for r in control["runs"] if r["metrics"].get(split, {}).get(measure["key"]) is not None
    }
    pairs = [(run, partner[_base(run), run["seed"]]) for run in runs if (_base(run), run["seed"]) in partner]
    if not pairs:
        return Cell(value)
    bases = [_base(run) for run, _ in pairs]
    values = [(a["metrics"][split][measure["key"]], b["metrics"][split][measure["key"]]) for a, b in pairs]
    tables = [(_table(a, split, measure["key"]), _table(b, split, measure["key"])) for a, b in pairs]
    if all(a and b for a, b in tables):
        difference = statistics.paired_difference(
            [a for a, _ in tables], [b for _, b in tables], bases=bases, draws=draws
        )
    else:
        bounds = measure.get("bounds")
        reach = (bounds[0] - bounds[1], bounds[1] - bounds[0]) if bounds else None
        difference = statistics.run_values_interval([a - b for a, b in values], bases=bases, bounds=reach)
    per_base = statistics.base_differences([a for a, _ in values], [b for _, b in values], bases)
    verdict = _verdict(difference, measure.get("better"))
    return Cell(value, difference, verdict, statistics.sign_test(per_base), len(per_base))


def all_cells(results: dict[str, Any], draws: int = 1000) -> dict[tuple[str, str, str], Cell]:
    """Every cell once, keyed (split, arm name, measure key); tables and plots share them."""
    return {
        (split, arm["name"], measure["key"]): cell(results, arm, split, measure, draws)
        for split in split_names(results)
        for measure in shown_measures(results, split)
        for arm in results["arms"]
    }


def text_table(
    results: dict[str, Any], cells: dict[tuple[str, str, str], Cell] | None = None, draws: int = 1000
) -> str:
    """A table for the screen: one block per split, one row per arm (control first), one column per measure.

    Marks after a value: ``+`` better than the control, ``-`` worse, ``~`` unclear, ``*`` differs (no good direction).
    """
    cells = cells if cells is not None else all_cells(results, draws)
    labels = {s["name"]: s.get("label", s["name"]) for s in results.get("splits", [])}
    marks = {"better": " +", "worse": " -", "unclear": " ~", "differs": " *", None: "  "}
    blocks = [results["header"]] if results.get("header") else []
    for split in split_names(results):
        measures = shown_measures(results, split)
        for start in range(0, len(measures), 4):
            part = measures[start : start + 4]
            rows = [["arm", *(column_title(m) for m in part)]]
            for arm in control_first(results):
                row = [arm.get("label", arm["name"])]
                for measure in part:
                    found = cells[split, arm["name"], measure["key"]]
                    text = statistics.format_interval(found.value, measure.get("format", ".3f"))
                    row.append(text + marks[found.verdict])
                rows.append(row)
            title = f"{labels.get(split, split)}" + (" (continued)" if start else "")
            blocks.append(title + "\n" + align(rows))
    blocks.append("against the control, paired by base, seed and image: + better, - worse, ~ interval holds zero")
    return "\n\n".join(blocks)


def column_title(measure: dict[str, Any]) -> str:
    """Label with its good direction in words: "CHAIR_i (lower is better)"."""
    better = measure.get("better")
    label = measure.get("label", measure["key"])
    return f"{label} ({'low' if better == 'lower' else 'high'} good)" if better else label


def align(rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns with a rule under the first row."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _base(run: dict[str, Any]) -> str:
    return str(run.get("base", 0))


def _table(run: dict[str, Any], split: str, key: str) -> dict[str, list[float]] | None:
    return run.get("items", {}).get(split, {}).get(key)


def _interval(runs: Sequence[dict[str, Any]], split: str, measure: dict[str, Any], draws: int) -> Interval:
    if not runs:
        return Interval(None, None, None, 0, 0)
    key, bounds = measure["key"], measure.get("bounds")
    bases = [_base(run) for run in runs]
    found = [_table(run, split, key) for run in runs]
    if all(found):
        return statistics.bootstrap_runs(found, bases=bases, draws=draws)
    values = [run["metrics"][split][key] for run in runs]
    return statistics.run_values_interval(values, bases=bases, bounds=tuple(bounds) if bounds else None)


def _verdict(difference: Interval, better: str | None) -> str:
    if difference.estimate is None or not difference.excludes(0.0):
        return "unclear"
    if better is None:
        return "differs"
    return "better" if (difference.estimate < 0) == (better == "lower") else "worse"
