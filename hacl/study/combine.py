"""Several models' sweeps as one table: the same questions, each method at the setting that validation chose there.

One model says nothing about others: intervals are over models and images together, and the sign test is over models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hacl.compare.plain import Row, interval_columns, write_tables
from hacl.evaluation.paired_tests import holm, swap_test
from hacl.evaluation.statistics import (
    Interval,
    base_differences,
    bootstrap_runs,
    format_interval,
    paired_difference,
    sign_test,
    table_ratio,
)
from hacl.plain_text import markdown_row
from hacl.representations.manifest import read_json
from hacl.study.methods_table import ORDER
from hacl.study.points import Point
from hacl.study.sweep_checks import NONE

FORMAT = "hacl-sweeps-1"
SAME = ("test", "objective")  # of the configuration of sweeps that can be put together


def combine(folders: Sequence[Path | str], *, draws: int = 2000, seed: int = 0) -> dict[str, Any]:
    """The table of sweeps on one test set, one folder per model.

    Returns {format, objective, folders, rows}: per method its role, models, settings by folder, value and difference
    from the unsteered model with intervals over models and images, how many models moved in the good direction, p_sign
    over models, p_swap over images, and p_holm over all methods that are no control of another's setting.

    Raises:
        FileNotFoundError: a folder without a finished sweep.
        ValueError: fewer than two folders, sweeps of other test questions or another objective, or one of them twice.
    """
    paths = [Path(folder) for folder in folders]
    if len(paths) < 2 or len(set(paths)) != len(paths):
        raise ValueError(f"{len(paths)} folders, {len(set(paths))} different: give the sweeps of two models or more")
    sweeps = {str(path): _read(path) for path in paths}
    first = next(iter(sweeps.values()))
    for name, content in sweeps.items():
        unlike = [key for key in SAME if content["meta"].get(key) != first["meta"].get(key)]
        if unlike:
            raise ValueError(
                f"{name}: another {' and '.join(unlike)} than {paths[0]}; only like sweeps can be combined"
            )
    points = {name: _test_points(Path(name), content["chosen"]) for name, content in sweeps.items()}
    models = [sweep["meta"].get("model", {}).get("fingerprint", name) for name, sweep in sweeps.items()]
    if len(set(models)) != len(models):
        raise ValueError("two of the sweeps are of one model, which would count twice; give one sweep per model")
    objective = first["objective"]
    methods = dict.fromkeys(method for found in points.values() for method in found)
    roles = {method: _role(method, sweeps) for method in methods}
    methods = sorted(methods, key=lambda method: (method.startswith("control/"), ORDER.index(roles[method]), method))
    interval = {"draws": draws, "seed": seed}
    rows = [_row(method, roles[method], points, objective, first["lower_is_better"], interval) for method in methods]
    tested = [row for row in rows if row["p_swap"] is not None and not row["method"].startswith("control/")]
    for row, p in zip(tested, holm([row["p_swap"] for row in tested]), strict=True):
        row["p_holm"] = p
    return {
        "format": FORMAT, "objective": objective, "lower_is_better": first["lower_is_better"],
        "folders": [str(path) for path in paths], "rows": rows,
    }  # fmt: skip


def markdown(found: Mapping[str, Any]) -> str:
    """The table; settings are in the JSON."""
    lines = [
        f"| method | models | {found['objective']} | difference | models better | sign p | swap p | Holm |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in found["rows"]:
        cells = [row["method"] + (" (oracle)" if row["role"] == "oracle" else ""), str(row["models"])]
        cells.append(_interval(row, "value"))
        cells.append("" if row["method"] == NONE else _interval(row, "difference"))
        cells.append("" if row["better"] is None else f"{row['better']} of {row['models']}")
        cells += [_p(row[key]) for key in ("p_sign", "p_swap", "p_holm")]
        lines.append(markdown_row(cells))
    return "\n".join(lines) + "\n"


def write(found: Mapping[str, Any], out: Path | str) -> Path:
    """sweeps.json, sweeps.md and sweeps_rows.csv in `out`; returns the first."""
    flat = [{key: value for key, value in row.items() if key != "settings"} for row in found["rows"]]
    path = write_tables(out, "sweeps", dict(found), {"rows": flat})
    path.with_suffix(".md").write_text(markdown(found), encoding="utf-8")
    return path


def _read(folder: Path) -> dict[str, Any]:
    path = folder / "sweep.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no finished sweep; make it with steer.py sweep --out {folder}")
    return read_json(path)


def _test_points(folder: Path, chosen: Mapping[str, Any]) -> dict[str, Point]:
    """By method; one without an allowed setting is the unsteered model, as in the sweep's own table."""
    found = [Point.from_json(read_json(path)) for path in sorted((folder / "points" / "test").glob("*.json"))]
    if not any(point.name == NONE for point in found):
        raise FileNotFoundError(f"{folder / 'points' / 'test'}: no point of the unsteered model; run the sweep again")
    named = {point.name: point for point in found}
    fallen = [method for method, setting in chosen.items() if setting is None]
    return named | {method: replace(named[NONE], name=method) for method in fallen}


def _role(method: str, sweeps: Mapping[str, Any]) -> str:
    return next(sweep["methods"][method]["role"] for sweep in sweeps.values() if method in sweep["methods"])


def _row(method: str, role: str, points, objective: str, lower: bool, interval: Mapping[str, int]) -> Row:
    own = {name: found for name, found in points.items() if method in found and objective in found[method].tables}
    treated = [found[method].tables[objective] for found in own.values()]
    before = [found[NONE].tables[objective] for found in own.values()]
    bases = list(own)
    value = bootstrap_runs(treated, bases=bases, **interval)
    row: Row = {
        "method": method, "role": role, "models": len(own),
        "settings": {name: str(found[method].setting or "") for name, found in own.items()},
        **interval_columns("value", value),
        "better": None, "p_sign": None, "p_swap": None, "p_holm": None,
    }  # fmt: skip
    if method == NONE:
        return row
    moved = paired_difference(treated, before, bases=bases, **interval)
    differences = base_differences([table_ratio(t) for t in treated], [table_ratio(t) for t in before], bases)
    return row | interval_columns("difference", moved) | {
        "better": sum((d < 0) if lower else (d > 0) for d in differences),
        "p_sign": sign_test(differences), "p_swap": swap_test(treated, before),
    }  # fmt: skip


def _interval(row: Row, name: str) -> str:
    return format_interval(Interval(row[name], row[f"{name}_low"], row[f"{name}_high"], 0, 0))


def _p(value: float | None) -> str:
    return "" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"
