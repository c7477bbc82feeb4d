"""What a sweep found: the curve on validation images, the chosen settings, the table on test images; as files.

JSON "hacl-sweep-1": format, objective, lower_is_better, curve, chosen, table, methods, warnings, meta; see
docs/steering_sweep.md for the columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hacl.compare.divergence import Setting
from hacl.compare.plain import Row, interval_columns, plain, write_tables
from hacl.evaluation.paired_tests import holm, swap_test
from hacl.evaluation.statistics import bootstrap_runs, paired_difference
from hacl.plain_text import markdown as as_text
from hacl.study.methods_table import markdown, methods_table
from hacl.study.points import Point
from hacl.study.sweep_checks import NONE

FORMAT = "hacl-sweep-1"
NOT_MEASURED = "oracle that is not asked for"
NO_SETTING = "no allowed setting: the unsteered model"
LOWER = ("CHAIR_i", "CHAIR_s", "nll", "empty", "longest_repeat")  # and every _unparsed; of others more is better
SHOWN = ("CHAIR_i", "CHAIR_s", "recall", "length")  # measures of captions that a page shows beside the objective


@dataclass(frozen=True)
class CurveRow:
    """One point on validation images. failures: guards that it breaks; setting: None for what has no grid."""

    name: str
    role: str
    setting: Setting | None
    point: Point
    failures: list[str]

    def to_row(self) -> Row:
        named = {"name": self.name, "role": self.role, **setting_columns(self.setting)}
        return {**named, "allowed": not self.failures, "failures": self.failures, **self.point.values()}


@dataclass
class SweepResult:
    """objective: what chose; curve: validation; chosen: {method: setting, None where
    none was allowed}; test: {name: point}; roles: {name: "unsteered", "baseline", "method", "oracle" or "control"};
    interval: draws and seed of the bootstrap.
    """

    objective: str
    curve: list[CurveRow]
    chosen: dict[str, Setting | None]
    test: dict[str, Point]
    roles: dict[str, str]
    interval: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def lower(self) -> bool:
        """Whether less of the objective is better."""
        return lower_is_better(self.objective)

    @cached_property
    def table(self) -> list[Row]:
        """A row per method and measure on the test images: value, paired difference from the unsteered model.

        p: of the swap test, on the objective only; p_holm: adjusted over methods, oracle, baselines and the random
        control that was swept (controls of one chosen setting are not claims, and are left out).
        """
        rows, before = [], self.test[NONE]
        p_values = self._p_values()
        for name, point in self.test.items():
            common = {"name": name, "role": self.roles[name], **setting_columns(point.setting)}
            for measure, table in point.tables.items():
                if measure not in before.tables:
                    continue
                value = bootstrap_runs([table], **self.interval)
                row = {**common, "measure": measure, **interval_columns("value", value), "items": value.items}
                if name != NONE:
                    moved = paired_difference([table], [before.tables[measure]], **self.interval)
                    row |= interval_columns("difference", moved)
                if measure == self.objective and name in p_values:
                    row |= p_values[name]
                rows.append(row | {"note": self.note(name)})
        return rows

    def note(self, name: str) -> str:
        """What a reader must know of a method: that it has no setting, is an oracle, or breaks guards."""
        if name in self.chosen and self.chosen[name] is None:
            return NO_SETTING if self._is_measured(name) else f"{NOT_MEASURED} {self.objective}"
        notes = ["oracle: it is given the answers"] if self.roles[name] == "oracle" else []
        if self.roles[name] == "baseline":
            broken = next((row.failures for row in self.curve if row.name == name), [])
            notes += [f"would break: {text}" for text in broken]
        gain = self.gain(name)
        if gain is not None and gain <= 0:
            notes.append("no better than unsteered on validation")
        return "; ".join(notes)

    def gain(self, name: str) -> float | None:
        """By how much the chosen setting was better on validation, in the objective's unit; None without one."""
        setting = self.chosen.get(name)
        if setting is None:
            return None
        values = [row.point.value(self.objective) for row in self.curve if row.setting in (None, setting)
                  and row.name in (NONE, name)]  # fmt: skip
        if len(values) != 2 or None in values:
            return None
        return (values[0] - values[1]) * (1 if self.lower else -1)

    def to_json(self) -> dict[str, Any]:
        """Plain values; no NaN."""
        methods = {
            name: {"role": role, "chosen": self.chosen.get(name), "note": self.note(name),
                   "validation_gain": self.gain(name), **self._counts(name)}
            for name, role in self.roles.items() if name in self.test
        }  # fmt: skip
        return plain(
            {
                "format": FORMAT, "objective": self.objective, "lower_is_better": self.lower, "methods": methods,
                "chosen": self.chosen, "curve": [row.to_row() for row in self.curve], "table": self.table,
                "warnings": self.warnings, "meta": self.meta,
            }
        )  # fmt: skip

    def to_markdown(self) -> str:
        """The method table of the test images, and what the guards forbade."""
        better = "less" if self.lower else "more"
        lines = [
            "# Steering sweep", "",
            f"Chosen on validation images by {self.objective} ({better} is better); measured on test images. In "
            "brackets: 95 % intervals over images. Difference: from the unsteered model, image by image.",
            "", markdown(methods_table(self, self._beside())), "", "Settings that guards forbade, of those tried:", "",
        ]  # fmt: skip
        for name in self.chosen:
            counts = self._counts(name)
            reasons = "; ".join(f"{as_text(text)} ({n})" for text, n in counts["reasons"].items())
            lines.append(
                f"- {as_text(name)}: {counts['forbidden']} of {counts['settings']}{': ' if reasons else ''}{reasons}"
            )
        return "\n".join([*lines, *(f"- warning: {as_text(text)}" for text in self.warnings), ""])

    def write(self, folder: Path | str) -> Path:
        """sweep.json, sweep.md, sweep_curve.csv and sweep_table.csv. Returns the JSON's path."""
        curve = [{**row.to_row(), "failures": "; ".join(row.failures)} for row in self.curve]
        path = write_tables(folder, "sweep", self.to_json(), {"curve": curve, "table": self.table})
        path.with_suffix(".md").write_text(self.to_markdown(), encoding="utf-8")
        return path

    def _beside(self) -> list[str]:
        there = self.test[NONE].tables
        split = self.objective.rpartition("_")[0]
        near = [name for name in there if name.startswith("pope_") and name.rpartition("_")[0] == split]
        return [name for name in (*SHOWN, *near) if name in there and name != self.objective]

    def _p_values(self) -> dict[str, Row]:
        family = [name for name, point in self.test.items() if name != NONE and not name.startswith("control/")
                  and self.objective in point.tables and self._is_measured(name)]  # fmt: skip
        before = self.test[NONE].tables[self.objective]
        found = [swap_test([self.test[name].tables[self.objective]], [before], **self.interval) for name in family]
        return {
            name: {"p": p, "p_holm": adjusted} for name, p, adjusted in zip(family, found, holm(found), strict=True)
        }

    def _is_measured(self, name: str) -> bool:
        """Whether the objective was measured for it; an oracle is asked only what its table holds."""
        own = [row for row in self.curve if row.name == name]
        return not own or any(self.objective in row.point.tables for row in own)

    def _counts(self, name: str) -> dict[str, Any]:
        rows = [row for row in self.curve if row.name == name and row.setting is not None]
        reasons: dict[str, int] = {}
        for row in rows:
            for text in row.failures:
                what = text.rstrip("0123456789.e+-").rstrip("<> ").rstrip("0123456789.e+-").strip()
                reasons[what] = reasons.get(what, 0) + 1
        return {"settings": len(rows), "forbidden": sum(bool(row.failures) for row in rows), "reasons": reasons}


def lower_is_better(measure: str) -> bool:
    return measure in LOWER or measure.endswith("_unparsed")


def setting_columns(setting: Setting | None) -> Row:
    """layers, policy and alpha as columns; all None without a setting."""
    if setting is None:
        return {"layers": None, "policy": None, "alpha": None}
    layers = "own" if setting.layers is None else "+".join(map(str, setting.layers))
    return {"layers": layers, "policy": setting.policy, "alpha": setting.alpha}
