"""The result of a behaviour recovery: curve, confirmation, controls, verdict line; as JSON, Markdown and CSV rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hacl.compare.plain import Row, interval_columns, plain, write_tables
from hacl.compare.recovery_fraction import Fraction
from hacl.evaluation.statistics import Interval, format_interval
from hacl.plain_text import markdown, markdown_row

if TYPE_CHECKING:
    from hacl.compare.behaviour_tasks import Measured
    from hacl.compare.divergence import Setting


@dataclass(frozen=True)
class CurvePoint:
    """One setting on the validation images."""

    setting: Setting
    closed: Fraction


@dataclass(frozen=True)
class Effect:
    """A side effect: its value for the three models; difference: moved minus original with its interval (for
    "changed_outside" the interval of the share itself)."""

    original: float | None
    tuned: float | None
    moved: float | None
    difference: Interval | None


@dataclass
class VariantResult:
    """A method or control on the test images.

    role: "chosen", "method", "reference" (never chosen) or "control"; closed: share of KL(b || a) closed; behind: by
    how much more the chosen method closes; measures: F of every behaviour measure; effects: side effects.
    """

    name: str
    role: str
    setting: Setting
    closed: Fraction
    behind: Interval | None = None
    measures: dict[str, Fraction] = field(default_factory=dict)
    effects: dict[str, Effect] = field(default_factory=dict)


@dataclass
class BehaviourReport:
    """curve: validation; variants: test, the chosen one first; kl: KL(b || a) per token there, nats; replies: what each
    model said, by variant name."""

    curve: list[CurvePoint] = field(default_factory=list)
    variants: list[VariantResult] = field(default_factory=list)
    kl: float | None = None
    replies: dict[str, Measured] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def chosen(self) -> VariantResult | None:
        return self.variants[0] if self.variants else None

    @property
    def verdict(self) -> str:
        """The line to quote: setting, KL gap closed, gaps of hallucination measures closed, changes outside."""
        if self.chosen is None:
            return "nothing to recover: " + "; ".join(self.warnings)
        found = self.chosen
        parts = [f"KL gap closed {_share(found.closed)}"]
        parts += [
            f"{name} gap {'closed ' + _share(f) if f.defined else 'undefined'}"
            for name, f in found.measures.items() if _is_headline(name)
        ]  # fmt: skip
        if "changed_outside" in found.effects:
            parts.append(f"off-domain changes {100 * found.effects['changed_outside'].moved:.0f} %")
        parts += [f"{v.name} (reference) {_share(v.closed)}" for v in self.variants if v.role == "reference"]
        best = max(self._controls(), key=lambda c: c.closed.share.estimate, default=None)
        if best is not None:
            parts.append(f"best control ({best.name.removeprefix('control/')}) {_share(best.closed)}")
        return f"{found.setting}: " + "; ".join(parts)

    def gate_failures(self) -> list[str]:
        """Why a gate must not pass: nothing was closed beyond noise, or a control closes at least as much."""
        if self.chosen is None:
            return [self.verdict]
        found = self.chosen.closed
        failures = []
        if not found.defined or found.share.low is None or found.share.low <= 0:
            failures.append(f"{self.chosen.setting}: the KL gap closed, {found}, is not above 0 beyond noise")
        for control in self._controls():
            if control.closed.share.estimate >= (found.share.estimate or 0.0):
                failures.append(f"{control.name} closes {_share(control.closed)}, the method {_share(found)}")
        return failures

    @property
    def exit_code(self) -> int:
        """0, or 1 where `gate_failures` has something to say."""
        return int(bool(self.gate_failures()))

    def _controls(self) -> list[VariantResult]:
        return [v for v in self.variants if v.role == "control" and v.closed.defined]

    # Files

    def curve_rows(self) -> list[Row]:
        return [{**_setting(point.setting), **_fraction(point.closed)} for point in self.curve]

    def variant_rows(self) -> list[Row]:
        rows = []
        for v in self.variants:
            row = {"name": v.name, "role": v.role, **_setting(v.setting), **_fraction(v.closed)}
            rows.append(row | (interval_columns("chosen_minus_this", v.behind) if v.behind else {}))
        return rows

    def measure_rows(self) -> list[Row]:
        return [
            {"name": v.name, "role": v.role, "measure": name, **_fraction(f)}
            for v in self.variants for name, f in v.measures.items()
        ]  # fmt: skip

    def effect_rows(self) -> list[Row]:
        rows = []
        for v in self.variants:
            for name, e in v.effects.items():
                row = {"name": v.name, "role": v.role, "effect": name}
                row |= {"original": e.original, "tuned": e.tuned, "moved": e.moved}
                rows.append(row | (interval_columns("difference", e.difference) if e.difference else {}))
        return rows

    def tables(self) -> dict[str, list[Row]]:
        """Flat rows by table, for files, pages and plots."""
        return {
            "curve": self.curve_rows(), "variants": self.variant_rows(), "measures": self.measure_rows(),
            "effects": self.effect_rows(),
        }  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Plain values; no NaN."""
        return plain(
            {
                "verdict": self.verdict, "gate_failures": self.gate_failures(), "kl_original": self.kl,
                "meta": self.meta, "warnings": self.warnings, **self.tables(),
            }
        )  # fmt: skip

    def to_markdown(self) -> str:
        """The verdict, the confirmation with its controls, measures and side effects."""
        lines = ["# Training-free recovery of behaviour", "", self.verdict, ""]
        lines += [f"- {markdown(warning)}" for warning in self.warnings]
        if self.kl is not None:
            lines += [f"KL(tuned || original) on the test texts: {self.kl:.4f} nats per token.", ""]
        lines += _table(
            ["variant", "setting", "KL gap closed", "chosen minus this"],
            [
                [v.name, str(v.setting), str(v.closed), format_interval(v.behind) if v.behind else ""]
                for v in self.variants
            ],
        )
        lines += _table(
            ["variant", "measure", "original", "tuned", "steered", "F"],
            [
                [v.name, name, _number(f.original), _number(f.tuned), _number(f.moved), str(f)]
                for v in self.variants for name, f in v.measures.items()
            ],
        )  # fmt: skip
        lines += _table(
            ["variant", "side effect", "original", "tuned", "steered", "difference or interval"],
            [
                [v.name, name, _number(e.original), _number(e.tuned), _number(e.moved),
                 format_interval(e.difference) if e.difference else ""]
                for v in self.variants for name, e in v.effects.items()
            ],
        )  # fmt: skip
        return "\n".join(lines)

    def write(self, folder: Path | str, name: str = "behaviour") -> Path:
        """NAME.json, NAME.md and NAME_curve.csv, _variants, _measures, _effects. Returns the JSON's path."""
        path = write_tables(folder, name, self.to_json(), self.tables())
        path.with_suffix(".md").write_text(self.to_markdown(), encoding="utf-8")
        return path


def _is_headline(measure: str) -> bool:
    return measure in ("CHAIR_i", "margin_accuracy") or (measure.startswith("pope_") and measure.endswith("_f1"))


def _share(fraction: Fraction) -> str:
    """Percent with an interval: 41 % [36, 46]."""
    share = fraction.share
    if share.estimate is None:
        return f"undefined ({fraction.note})"
    text = f"{100 * share.estimate:.0f} %"
    return text if share.low is None else f"{text} [{100 * share.low:.0f}, {100 * share.high:.0f}]"


def _setting(setting: Setting) -> Row:
    layers = None if setting.layers is None else "+".join(map(str, setting.layers))
    return {"method": setting.method, "layers": layers, "policy": setting.policy, "alpha": setting.alpha}


def _fraction(fraction: Fraction) -> Row:
    row = {"original": fraction.original, "tuned": fraction.tuned, "moved": fraction.moved}
    return (
        row
        | interval_columns("share", fraction.share)
        | interval_columns("gap", fraction.gap)
        | {"note": fraction.note}
    )


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4g}"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    if not rows:
        return []
    return [markdown_row(head), markdown_row("---" for _ in head), *map(markdown_row, rows), ""]
