"""The method table of a sweep, as Learn-to-Steer prints it: none, prompt only, random, mean, L2S, P2S (an oracle).

Each row is a method at the setting that was chosen for it on validation images, measured on test images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hacl.compare.plain import Row
from hacl.evaluation.statistics import Interval, format_interval
from hacl.plain_text import markdown_row
from hacl.study.sweep_checks import NONE

if TYPE_CHECKING:
    from hacl.study.sweep_result import SweepResult

ORDER = ("unsteered", "baseline", "control", "method", "oracle")


def methods_table(result: SweepResult, measures: Sequence[str] = ()) -> list[Row]:
    """A row per method: the unsteered model, baselines, controls, methods, oracles.

    Columns: method, setting, the objective with its interval, its paired difference from the unsteered model, p (Holm),
    the value of each further measure, and a note that says what is an oracle, what fell back to the unsteered model and
    what a baseline's guards say.
    """
    found = {(row["name"], row["measure"]): row for row in result.table}
    names = sorted(result.test, key=lambda name: (name.startswith("control/"), ORDER.index(result.roles[name])))
    rows = []
    for name in names:
        goal, setting = found.get((name, result.objective), {}), result.test[name].setting
        row: Row = {"method": name, "setting": str(setting).rpartition(", ")[0] if setting else ""}
        row[result.objective] = _interval(goal, "value")
        row["difference"] = "" if name == NONE else _interval(goal, "difference")
        row["p (Holm)"] = _number(goal.get("p_holm"))
        row |= {measure: _number(found.get((name, measure), {}).get("value")) for measure in measures}
        rows.append(row | {"note": result.note(name)})
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """Rows of one shape as a Markdown table."""
    head = list(rows[0])
    lines = [head, ["---" for _ in head], *([row[name] for name in head] for row in rows)]
    return "\n".join(map(markdown_row, lines))


def _interval(cell: Row, name: str) -> str:
    if cell.get(name) is None:
        return ""
    return format_interval(Interval(cell[name], cell[f"{name}_low"], cell[f"{name}_high"], 1, 0))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.3g}"
