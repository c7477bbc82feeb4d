"""Compare two runs that answered about the same items: paired differences, tests, and words for a reader.

A run is a saved score report with its evidence per image (``tables``: measure -> image -> [numerator, denominator]).
Two reports are comparable if scorer, version, options (dialect, parser, rounding) and references are the same; anything
else is refused, because the difference would be one of rulers. Several runs of a side (seeds, bases) are pooled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hacl.evaluation.comparable import Report, check_comparable, scored_by, shortened
from hacl.evaluation.paired_tests import McNemar, holm, mcnemar, run_test, swap_test
from hacl.evaluation.reports import sum_by_key
from hacl.evaluation.statistics import Interval, Table, bootstrap_runs, format_interval, paired_difference

ALPHA = 0.05
DRAWS = 2000
WEIGHTS_LIMIT = 20_000_000  # draws times images held at once
ITEM_KEYS = ("question_id", "id", "index", "image_id")


@dataclass(frozen=True)
class Difference:
    """One measure: both values, b minus a with its 95% interval, p values, and the verdict in words.

    p: of the swap test over images and, with several runs, Student's t over runs, the larger; ``p_holm``: corrected
    for all measures of the comparison. verdict: "higher" or "lower" (b against a, larger than noise), "suggestive"
    (beyond noise by itself, not after the correction), "within noise", or "undefined".
    """

    measure: str
    a: Interval
    b: Interval
    difference: Interval
    p: float | None
    p_holm: float | None = None
    mcnemar: McNemar | None = None
    verdict: str = "undefined"

    @property
    def sentence(self) -> str:
        """What the difference means, in words."""
        d = self.difference
        if d.estimate is None:
            return f"{self.measure}: undefined on one side; nothing to compare."
        if d.low is None or d.high is None:
            return f"{self.measure}: B - A = {d.estimate:+.4f}; too few images for an interval."
        if d.low == d.high == 0:
            return f"{self.measure}: A and B are the same on every image."
        where = f"{self.measure}: B is {abs(d.estimate):.4f} {'higher' if d.estimate > 0 else 'lower'} than A"
        p = "" if self.p_holm is None else f", p = {self.p_holm:.2g} after Holm's correction"
        if self.verdict in ("higher", "lower"):
            return f"{where}, larger than noise (95% interval {d.low:+.4f} to {d.high:+.4f}{p})."
        if self.verdict == "suggestive":
            return (
                f"{where}; not to be relied on: by itself it would be beyond noise, but among all measures it may be "
                f"chance (95% interval {d.low:+.4f} to {d.high:+.4f}{p})."
            )
        reach = max(abs(d.low), abs(d.high))
        return (
            f"{self.measure}: no difference larger than noise (B - A = {d.estimate:+.4f}{p}; one of up to "
            f"{reach:.4f} cannot be excluded)."
        )


@dataclass(frozen=True)
class Comparison:
    """rows: one per measure; images: how many both sides have; warnings: what a reader must know."""

    rows: list[Difference]
    images: int
    runs: int
    warnings: list[str] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, safe for ``json.dumps``."""
        rows = [asdict(row) | {"sentence": row.sentence} for row in self.rows]
        return asdict(self) | {"rows": rows}

    def text(self) -> str:
        """The paired table and one sentence per measure, for the screen."""
        head = ["measure", "A", "B", "B - A [95%]", "p", "p (Holm)", "McNemar p (exact / mid; only A : only B)"]
        body = [
            [
                row.measure,
                format_interval(row.a, ".4f"),
                format_interval(row.b, ".4f"),
                format_interval(row.difference, "+.4f"),
                _p(row.p),
                _p(row.p_holm),
                "" if (m := row.mcnemar) is None else f"{_p(m.exact)} / {_p(m.mid)}; {m.only_a} : {m.only_b}",
            ]
            for row in self.rows
        ]
        table = [head, *body]
        if not any(row[-1] for row in body):
            table = [row[:-1] for row in table]
        runs = "" if self.runs == 1 else f", {self.runs} pairs of runs"
        lines = [f"paired over {self.images} images{runs}", "", _align(table), ""]
        lines += [row.sentence for row in self.rows]
        return "\n".join(lines + [f"note: {warning}" for warning in self.warnings])


def compare(
    a: Report | Sequence[Report],
    b: Report | Sequence[Report],
    *,
    bases: Sequence[object] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    names: tuple[str, str] = ("A", "B"),
) -> Comparison:
    """Paired comparison of one run with another, or of runs with their partners in order (seeds, bases).

    a, b: reports as JSON content, with ``tables`` (or ``items`` and ``ratios``, from which they follow);
    bases: the base of each pair; names: what messages call the two sides.

    Raises:
        ValueError: the sides were scored differently, hold no evidence, share no image, or differ in number.
    """
    left, right = ([side] if isinstance(side, Mapping) else list(side) for side in (a, b))
    if len(left) != len(right) or not left:
        raise ValueError(f"{len(left)} run(s) of {names[0]} against {len(right)} of {names[1]}; give them in pairs")
    for other in [*left[1:], *right]:
        check_comparable(left[0], other, names)
    tables = [[tables_of(report, name) for report in side] for side, name in ((left, names[0]), (right, names[1]))]
    measures = [m for m in tables[0][0] if all(m in found for side in tables for found in side)]
    if not measures:
        raise ValueError(f"{names[0]} and {names[1]} have no measure with evidence per image in common")
    images = _images(tables, measures)
    if not images:
        raise ValueError(f"{names[0]} and {names[1]} have no image in common; were they asked about different splits?")
    draws = max(200, min(draws, WEIGHTS_LIMIT // max(map(len, tables[0][0].values()))))
    rows = []
    for measure in measures:
        sides = [[found[measure] for found in side] for side in tables]
        rows.append(_difference(measure, *sides, left, right, bases, draws, seed))
    rows = [_judged(row, p) for row, p in zip(rows, holm([row.p for row in rows]), strict=True)]
    meta = {"scored": scored_by(left[0]), "draws": draws, "seed": seed, "alpha": ALPHA, "names": list(names)}
    return Comparison(rows, len(images), len(left), _warnings(left, right, tables, images, rows, names), meta)


def compare_files(a: Path | str | Sequence[Path | str], b: Path | str | Sequence[Path | str]) -> str:
    """The comparison of saved reports as text; several files of a side are pooled, in pairs.

    Raises:
        FileNotFoundError, ValueError: a file is missing, no report, or not comparable.
    """
    left, right = ([side] if isinstance(side, Path | str) else list(side) for side in (a, b))
    names = (", ".join(map(str, left)), ", ".join(map(str, right)))
    found = compare([read_report(path) for path in left], [read_report(path) for path in right], names=names)
    return f"A: {names[0]}\nB: {names[1]}\n" + found.text()


def read_report(path: Path | str) -> dict[str, Any]:
    """A saved score report.

    Raises:
        FileNotFoundError, ValueError: the file is missing, or holds no report with ``metrics`` and ``meta``.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such report; `scripts/score.py ... --json {path.name} --tables` writes one"
        )
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON ({error.msg}); give the JSON report of a scorer") from None
    if not isinstance(report, dict) or not isinstance(report.get("metrics"), dict):
        raise ValueError(f"{path}: no 'metrics'; give the JSON report of a scorer")
    return report


def tables_of(report: Report, name: str) -> dict[str, Table]:
    """Evidence per image of a report.

    Raises:
        ValueError: it holds none.
    """
    if report.get("tables"):
        return {m: table for m, table in report["tables"].items() if table}
    if report.get("items") and report.get("ratios"):
        ids = [str(item["image_id"]) for item in report["items"]]
        return {measure: sum_by_key(ids, pairs) for measure, pairs in report["ratios"].items()}
    raise ValueError(f"{name}: the report has no 'tables' (evidence per image); score again with --tables")


def _difference(measure, a: list[Table], b: list[Table], left, right, bases, draws, seed) -> Difference:
    p = swap_test(b, a, draws=draws, seed=seed)
    over_runs = run_test(b, a, bases) if len(a) > 1 else None
    return Difference(
        measure,
        bootstrap_runs(a, bases=bases, draws=draws, seed=seed),
        bootstrap_runs(b, bases=bases, draws=draws, seed=seed),
        paired_difference(b, a, bases=bases, draws=draws, seed=seed),
        p if p is None or over_runs is None else max(p, over_runs),
        mcnemar=_mcnemar(measure, a, b, left, right),
    )


def _mcnemar(measure: str, a: list[Table], b: list[Table], left, right) -> McNemar | None:
    """For one pair of runs: over questions for an accuracy whose items say ``right``, else over yes/no images."""
    if len(a) != 1:
        return None
    if measure.lower().endswith("accuracy"):
        sides = [_correct(report) for report in (left[0], right[0])]
        if all(sides) and len(set(sides[0]) & set(sides[1])) == len(sides[0]):
            keys = sorted(sides[0])
            return mcnemar([sides[0][k] for k in keys], [sides[1][k] for k in keys])
    shared = [i for i in a[0] if i in b[0]]
    if any(tuple(table[i]) not in ((0, 1), (1, 1)) for table in (a[0], b[0]) for i in shared):
        return None
    return mcnemar([a[0][i][0] == 1 for i in shared], [b[0][i][0] == 1 for i in shared])


def _correct(report: Report) -> dict[str, bool]:
    """Item id -> answered right, where every item says so and ids do not repeat; otherwise nothing."""
    items = report.get("items") or []
    key = next((k for k in ITEM_KEYS if items and k in items[0]), None)
    if key is None or not all(isinstance(item.get("right"), bool) and key in item for item in items):
        return {}
    found = {str(item[key]): item["right"] for item in items}
    return found if len(found) == len(items) else {}


def _judged(row: Difference, p_holm: float | None) -> Difference:
    verdict = "within noise"
    if row.difference.estimate is None:
        verdict = "undefined"
    elif row.difference.excludes(0.0) and row.p is not None and row.p < ALPHA:
        certain = p_holm < ALPHA
        verdict = ("higher" if row.difference.estimate > 0 else "lower") if certain else "suggestive"
    return Difference(**(row.__dict__ | {"p_holm": p_holm, "verdict": verdict}))


def _images(tables, measures: Sequence[str]) -> set[str]:
    sides = [set().union(*(found[m] for found in side for m in measures)) for side in tables]
    return sides[0] & sides[1]


def _warnings(left, right, tables, images, rows, names) -> list[str]:
    said = []
    for side, name in zip(tables, names, strict=True):
        more = len(_images([side, side], list(side[0]))) - len(images)
        if more:
            said.append(f"{more} image(s) of {name} have no partner and are left out of differences")
    if len(left) == 1:
        said.append("one run a side: the intervals hold chance over images, not over training seeds")
    elif len(left) < 6:
        said.append(f"{len(left)} pairs of runs show a direction; six or more are needed to claim one")
    if any(row.mcnemar is not None for row in rows):
        said.append(
            "McNemar's test takes questions as independent; those of one image are not, so p (by image) decides"
        )
    for key in ("prompt", "prompt_version", "decoding", "model"):
        one, other = (report.get("meta", {}).get(key) for report in (left[0], right[0]))
        if one != other and key != "model":
            said.append(f"{key} differs: {shortened(one)} against {shortened(other)}")
    return said


def _p(value: float | None) -> str:
    return "" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def _align(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(t.ljust(w) for t, w in zip(row, widths, strict=True)).rstrip() for row in rows)
