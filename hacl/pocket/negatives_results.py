"""Compare the arms of the negatives experiment: paired differences, tests, and tables in Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hacl.evaluation.paired_tests import holm, swap_test
from hacl.evaluation.statistics import (
    Interval,
    base_differences,
    format_interval,
    paired_difference,
    sign_test,
    table_ratio,
)

# Measure -> heading. The first six are discrimination, the last two are what is given up or gained in captions.
HEADLINE = {
    "captions/trained": "captions, kind trained on",
    "captions/untrained": "captions, other kinds",
    "statements/trained": "statements, kind trained on",
    "statements/untrained": "statements, other kinds",
    "states/trained": "states, kind trained on",
    "states/untrained": "states, other kinds",
    "chair_i": "CHAIR_i",
    "recall": "object recall",
}
BLIND = {f"{name}/{group}_blind": f"{name}, {group}, no image" for name in ("captions", "statements")
         for group in ("trained", "untrained")}  # fmt: skip
KINDS = {f"{name}/{kind}": f"{name}, {kind}" for name in ("captions", "statements", "states")
         for kind in ("object", "insertion", "attribute", "number", "relation")}  # fmt: skip
MEASURES = {**HEADLINE, **BLIND, **KINDS}
# Better data against worse, of the same loss; "none" is the loss without hallucinated captions.
CONTRASTS = (
    ("scene", "random"),
    ("scene", "naive"),
    ("lexical", "random"),
    ("lexical", "naive"),
    ("scene", "lexical"),
    ("naive", "random"),
)


def regrouped(folder: Path, trained: Sequence[str]) -> list[dict[str, Any]]:
    """Runs of `pocket.py quickstart` with the names of this experiment: their caption margins by kind, pooled over the
    kinds trained on and over the others.

    Raises:
        FileNotFoundError: no finished run in the folder.
    """
    runs = []
    for path in sorted(folder.glob("*/result.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        if "key" not in run:
            continue
        for split, tables in run["items"].items():
            groups = {kind: [kind] for kind in ("object", "insertion", "attribute", "number", "relation")}
            groups |= {"trained": list(trained), "untrained": [kind for kind in groups if kind not in trained]}
            for group, kinds in groups.items():
                table: dict[str, list[float]] = {}
                for kind in kinds:
                    for image, (top, bottom) in tables[f"margin_{kind}"].items():
                        sums = table.setdefault(image, [0.0, 0.0])
                        sums[0] += top
                        sums[1] += bottom
                tables[f"captions/{group}"] = table
                run["metrics"][split][f"captions/{group}"] = table_ratio(table)
        runs.append(run)
    if not runs:
        raise FileNotFoundError(f"{folder}: no finished run; make them with `pocket.py quickstart --full`")
    return runs


def compare(runs: Sequence[dict[str, Any]], split: str, a: str, b: str, measure: str) -> dict[str, Any] | None:
    """Arm ``a`` minus arm ``b`` on the bases that both have; None where one lacks the measure.

    estimate, low, high: over bases and images; sign_p: over bases; swap_p: over images; bases: the difference of each.
    """
    tables, values, bases = _paired(runs, split, a, b, measure)
    if not bases:
        return None
    found = paired_difference(tables[0], tables[1], bases=bases)
    differences = base_differences(values[0], values[1], bases)
    return {
        "split": split, "arm": a, "against": b, "measure": measure,
        "estimate": found.estimate, "low": found.low, "high": found.high,
        "sign_p": sign_test(differences), "swap_p": swap_test(tables[0], tables[1]),
        "bases": dict(zip(map(str, dict.fromkeys(bases)), differences, strict=True)),
    }  # fmt: skip


def _paired(runs, split: str, a: str, b: str, measure: str):
    found = {
        (run["arm"], run["base"], run["seed"]): run
        for run in runs
        if run["arm"] in (a, b) and run["metrics"].get(split, {}).get(measure) is not None
    }
    keys = sorted({key[1:] for key in found if (a, *key[1:]) in found and (b, *key[1:]) in found})
    sides = [[found[arm, *key] for key in keys] for arm in (a, b)]
    tables = [[run["items"][split][measure] for run in side] for side in sides]
    values = [[run["metrics"][split][measure] for run in side] for side in sides]
    return tables, values, [base for base, _ in keys]


def assemble(runs: Sequence[dict[str, Any]], *, provenance: dict[str, Any]) -> dict[str, Any]:
    """Means of every arm, differences from the control, and contrasts between qualities with Holm's correction.

    The correction is over all contrasts of the headline measures of a split, by the swap test: the sign test of six
    bases cannot go below 0.031 and so survives no correction.
    """
    arms = list(dict.fromkeys(run["arm"] for run in runs))
    splits = list(dict.fromkeys(split for run in runs for split in run["metrics"]))
    means, control, contrasts = [], [], []
    for split in splits:
        for arm in arms:
            own = [run for run in runs if run["arm"] == arm]
            for measure in MEASURES:
                values = [run["metrics"][split][measure] for run in own if measure in run["metrics"][split]]
                if values and None not in values:
                    means.append({"split": split, "arm": arm, "measure": measure, "mean": sum(values) / len(values),
                                  "runs": len(values)})  # fmt: skip
        control += _compare_all(runs, split, [(arm, "control") for arm in arms if arm != "control"], MEASURES)
        pairs = [(f"{loss}-{better}", f"{loss}-{worse}") for loss in ("margin", "hacl") for better, worse in CONTRASTS]
        pairs = [pair for pair in (*pairs, ("hacl_paper", "contrastive")) if set(pair) <= set(arms)]
        contrasts += _compare_all(runs, split, pairs, HEADLINE)
    return {"means": means, "control": control, "contrasts": contrasts, "provenance": provenance}


def _compare_all(runs, split: str, pairs, measures) -> list[dict[str, Any]]:
    rows = [compare(runs, split, a, b, measure) for a, b in pairs for measure in measures]
    rows = [row for row in rows if row is not None]
    family = [n for n, row in enumerate(rows) if row["measure"] in HEADLINE]
    for n, p in zip(family, holm([rows[n]["swap_p"] for n in family]), strict=True):
        rows[n]["holm_p"] = p
    return rows


def markdown(results: dict[str, Any]) -> str:
    """Tables of the means, the differences from the control and the contrasts, headline measures first."""
    lines: list[str] = []
    for split in dict.fromkeys(row["split"] for row in results["means"]):
        lines += ["", f"### {split}", "", *_means(results["means"], split, HEADLINE)]
        for measures in (BLIND, KINDS):
            lines += ["", *_means(results["means"], split, measures)]
        for name, title in (("control", "Differences from the control"), ("contrasts", "Better against worse")):
            lines += ["", f"{title}:", "", *_differences([row for row in results[name] if row["split"] == split])]
    return "\n".join(lines[1:]) + "\n"


def _means(rows, split: str, measures) -> list[str]:
    found = {(row["arm"], row["measure"]): row["mean"] for row in rows if row["split"] == split}
    shown = [measure for measure in measures if any(key[1] == measure for key in found)]
    arms = list(dict.fromkeys(arm for arm, _ in found))
    lines = ["| measure | " + " | ".join(arms) + " |", "| --- " * (len(arms) + 1) + "|"]
    for measure in shown:
        cells = [f"{found[arm, measure]:.3f}" if (arm, measure) in found else "" for arm in arms]
        lines.append(f"| {measures[measure]} | " + " | ".join(cells) + " |")
    return lines


def _differences(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["| arm | against | measure | difference | bases up | sign p | swap p | Holm |", "| --- " * 8 + "|"]
    for row in rows:
        if row["measure"] not in HEADLINE:
            continue
        text = format_interval(Interval(row["estimate"], row["low"], row["high"], 0, 0), "+.3f")
        up = sum(value > 0 for value in row["bases"].values())
        ps = [_p(row[key]) for key in ("sign_p", "swap_p", "holm_p")]
        cells = [row["arm"], row["against"], HEADLINE[row["measure"]], text, f"{up} of {len(row['bases'])}", *ps]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _p(value: float | None) -> str:
    return "" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def write(results: dict[str, Any], out: Path) -> Path:
    """``negatives.json`` and ``negatives.md`` in ``out``; returns the second."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "negatives.json").write_text(json.dumps(results, indent=1, allow_nan=False), encoding="utf-8")
    (out / "negatives.md").write_text(markdown(results), encoding="utf-8")
    return out / "negatives.md"
