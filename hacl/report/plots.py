"""Figures of the report as data addresses (SVG or PNG in base64), drawn by matplotlib without a display.

The control is black; other arms take the Okabe-Ito colours, told apart by marker as well as by colour.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hacl.report.tables import Cell, control_first, shown_measures

COLOURS = ("#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
STATE_STYLE = {
    "image": ("#0072b2", "o", "images"),
    "true": ("#009e73", "^", "true captions"),
    "hallucinated": ("#d55e00", "x", "hallucinated captions"),
}
DEFAULT_CURVES = (
    {"key": "loss", "label": "training loss"},
    {"key": "lm", "label": "generation loss"},
    {"key": "contrastive", "label": "contrastive loss"},
)


def style(results: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Arm name -> (colour, marker); the control comes first and is black."""
    return {
        arm["name"]: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)])
        for i, arm in enumerate(control_first(results))
    }


def read_log(run: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Rows of a run's log: inline, or JSONL with one object a line. A log that is not there is an empty list.

    Raises:
        ValueError: a line is not JSON, named by file and line.
    """
    if "log" in run:
        return run["log"]
    if not run.get("log_path"):
        return []
    path = Path(run["log_path"])
    path = path if path.is_absolute() else folder / path
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}: {error.msg}; a log has one JSON object a line") from None
    return rows


def loss_curves(results: dict[str, Any], folder: Path) -> str | None:
    """One panel per curve; a thin line per run, a thick line for the arm's mean. None if no log holds any of them."""
    logs = {arm["name"]: [read_log(run, folder) for run in arm["runs"]] for arm in results["arms"]}
    curves = []
    for curve in results.get("curves", DEFAULT_CURVES):
        series = {
            name: [points for rows in runs if (points := _points(rows, curve["key"]))] for name, runs in logs.items()
        }
        if any(series.values()):
            curves.append((curve, series))
    if not curves:
        return None
    styles = style(results)
    figure, axes = _grid(len(curves), 4.2, 2.9)
    for axis, (curve, series) in zip(axes, curves, strict=False):
        for arm in control_first(results):
            runs = series[arm["name"]]
            colour = styles[arm["name"]][0]
            for points in runs:
                axis.plot(*zip(*points, strict=True), color=colour, alpha=0.25, linewidth=0.8)
            if runs:
                axis.plot(*zip(*_mean_curve(runs), strict=True), color=colour, linewidth=1.8, label=_label(arm))
        axis.set_title(curve.get("label", curve["key"]), fontsize=10)
        axis.set_xlabel("step")
    _legend(figure, axes[: len(curves)])
    return _svg(figure)


def measures_figure(results: dict[str, Any], split: str, cells: dict[tuple[str, str, str], Cell]) -> str | None:
    """Small multiples for one split: a point and its interval per arm, crosses for the single runs."""
    measures = [m for m in shown_measures(results, split) if m.get("plot", True)]
    if not measures:
        return None
    styles = style(results)
    arms = control_first(results)
    figure, axes = _grid(len(measures), 3.3, 0.75 + 0.33 * len(arms))
    for axis, measure in zip(axes, measures, strict=False):
        for row, arm in enumerate(arms):
            interval = cells[split, arm["name"], measure["key"]].value
            colour, marker = styles[arm["name"]]
            runs = [r["metrics"].get(split, {}).get(measure["key"]) for r in arm["runs"]]
            runs = [value for value in runs if value is not None]
            axis.plot(runs, [row] * len(runs), "|", color=colour, alpha=0.5, markersize=9)
            if interval.estimate is None:
                continue
            if interval.low is not None:
                axis.plot([interval.low, interval.high], [row, row], color=colour, linewidth=1.6)
            axis.plot([interval.estimate], [row], marker, color=colour, markersize=6)
            if row == 0:
                axis.axvline(interval.estimate, color="#999999", linewidth=0.7, linestyle=":")
        direction = {"lower": "  (low is good)", "higher": "  (high is good)"}.get(measure.get("better"), "")
        axis.set_title(measure.get("label", measure["key"]) + direction, fontsize=9)
        axis.set_yticks(range(len(arms)), [_label(arm) for arm in arms])
        axis.set_ylim(len(arms) - 0.4, -0.6)
        axis.margins(x=0.12)
        axis.xaxis.get_major_locator().set_params(nbins=5)
    for index, axis in enumerate(axes[: len(measures)]):
        if index % _columns(len(measures)):
            axis.set_yticklabels([])
    return _svg(figure)


def intervals_figure(panels: Sequence[dict[str, Any]]) -> str | None:
    """Small multiples: ``{"title", "rows": [(label, value, low, high)]}`` each; null values and bounds are left out."""
    panels = [panel for panel in panels if any(row[1] is not None for row in panel["rows"])]
    if not panels:
        return None
    labels = list(dict.fromkeys(row[0] for panel in panels for row in panel["rows"]))
    figure, axes = _grid(len(panels), 3.3, 0.75 + 0.33 * len(labels))
    for number, (axis, panel) in enumerate(zip(axes, panels, strict=False)):
        for label, value, low, high in panel["rows"]:
            if value is None:
                continue
            row = labels.index(label)
            colour, marker = COLOURS[row % len(COLOURS)], MARKERS[row % len(MARKERS)]
            if low is not None:
                axis.plot([low, high], [row, row], color=colour, linewidth=1.6)
            axis.plot([value], [row], marker, color=colour, markersize=6)
        axis.set_title(panel["title"], fontsize=9)
        axis.set_yticks(range(len(labels)), labels if number % _columns(len(panels)) == 0 else [""] * len(labels))
        axis.set_ylim(len(labels) - 0.4, -0.6)
        axis.margins(x=0.12)
        axis.xaxis.get_major_locator().set_params(nbins=5)
    return _svg(figure)


def states_figure(panels: Sequence[dict[str, Any]]) -> str | None:
    """Image, true-caption and hallucinated-caption states in two dimensions; all panels share their axes."""
    if not panels:
        return None
    figure, axes = _grid(len(panels), 4.0, 3.6, share=True)
    for axis, panel in zip(axes, panels, strict=False):
        for kind, (colour, marker, label) in STATE_STYLE.items():
            points = panel["points"].get(kind, [])
            if points:
                width = 0.9 if marker == "x" else 0.0
                x, y = zip(*points, strict=True)
                axis.scatter(x, y, c=colour, marker=marker, s=13, alpha=0.6, label=label, linewidths=width)
        title = panel["title"]
        if panel.get("explained"):
            title += f"\n{100 * sum(panel['explained']):.0f}% of the variance"
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("component 1")
        axis.tick_params(labelbottom=True)  # also where the panel below is empty
    axes[0].set_ylabel("component 2")
    _legend(figure, axes[: len(panels)])
    return _png(figure)


def _label(arm: dict[str, Any]) -> str:
    return arm.get("label", arm["name"])


def _points(rows: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    return [
        (row["step"], row[key])
        for row in rows
        if "step" in row and isinstance(row.get(key), int | float) and math.isfinite(row[key])
    ]


def _mean_curve(runs: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    sums: dict[float, list[float]] = {}
    for points in runs:
        for step, value in points:
            sums.setdefault(step, []).append(value)
    most = max(map(len, sums.values()))
    return [(step, sum(v) / len(v)) for step, v in sorted(sums.items()) if len(v) == most]


def _columns(count: int) -> int:
    return min(count, 3)


def _grid(count: int, width: float, height: float, share: bool = False):
    from matplotlib.figure import Figure

    columns = _columns(count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width * columns, height * rows + 0.35), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.09, w_pad=0.06)
    axes = list(figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share).flat)
    for axis in axes[count:]:
        axis.set_visible(False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        axis.grid(True, axis="both" if share else "x", color="#eeeeee", linewidth=0.7)
        axis.set_axisbelow(True)
    return figure, axes


def _legend(figure, axes) -> None:
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside lower center",
            ncols=min(5, len(handles)),
            frameon=False,
            fontsize=9,
        )


def _svg(figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _png(figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
