"""One function for every benchmark: predictions in, :class:`ScoreReport` out. No model, no network, no torch."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hacl.evaluation.reports import ScoreReport
from hacl.evaluation.scorers.base import InputError, Option, Scorer, Totals
from hacl.evaluation.scorers.evidence import LEVEL, ImageSums
from hacl.evaluation.scorers.reading import Rows, is_path, iter_rows, sha256_of, sha256_of_content

__all__ = ["SCORERS", "ImageSums", "InputError", "Option", "Scorer", "Totals", "score", "score_to", "scorer_class"]

# Where each benchmark's scorer is; imported when it is asked for.
SCORERS = {
    "pope": "pope:PopeScorer",
    "chair": "chair:ChairScorer",
    "amber": "amber:AmberScorer",
    "mmhal": "mmhal:MMHalScorer",
    "mme": "mme:MMEScorer",
    "sugarcrepe": "sugarcrepe:SugarCrepeScorer",
    "mm_safety": "mm_safety:MMSafetyScorer",
    "creative": "creative:CreativeScorer",
    "clip_score": "clip_score:ClipScorer",
}
ITEM_LIMIT = 50_000  # above it a report's items are an iterator
DRAWS, SEED = 1000, 0


def scorer_class(benchmark: str) -> type[Scorer]:
    """The scorer of a benchmark.

    Raises:
        ValueError: no such benchmark.
    """
    if benchmark not in SCORERS:
        near = difflib.get_close_matches(str(benchmark), SCORERS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; use one of {', '.join(SCORERS)}"
        raise ValueError(f"no benchmark {benchmark!r}{hint}")
    module, name = SCORERS[benchmark].split(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)


def score(
    benchmark: str,
    predictions: Rows,
    references: Any = None,
    *,
    allow_missing: bool = False,
    zero_division: float | None = None,
    **options: Any,
) -> ScoreReport:
    """Score predictions of one benchmark.

    Args:
        benchmark: a key of :data:`SCORERS`.
        predictions: path of a JSONL file or a JSON array, or an iterable of dictionaries.
        references: path(s) of the ground truth in its upstream layout, or its content already loaded.
        allow_missing: score what is there and list the rest in ``warnings``.
        zero_division: value in place of an undefined ratio; default null.
        options: the scorer's own (``parser=``, ``dialect=``...), see ``scorer_class(benchmark).options``.

    Returns:
        the report; ``items`` is a list up to 50,000 predictions and above that an object that can be iterated.

    Raises:
        InputError: predictions and references do not fit each other.
        ValueError: unknown benchmark, option or value. FileNotFoundError: a file is missing.
    """
    scorer = _open(benchmark, references, options)
    items = _Again(scorer, predictions) if _repeats(scorer, predictions) else _Spooled()
    report = _run(scorer, predictions, items.add, allow_missing, zero_division)
    report.items = items.kept if items.count <= ITEM_LIMIT else items
    return report


def score_to(
    sink: Callable[[dict[str, Any]], object] | None,
    benchmark: str,
    predictions: Rows,
    references: Any = None,
    *,
    allow_missing: bool = False,
    zero_division: float | None = None,
    **options: Any,
) -> ScoreReport:
    """Like :func:`score`, but each item goes to ``sink`` at once (None: nowhere), and the report holds none."""
    return _run(_open(benchmark, references, options), predictions, sink, allow_missing, zero_division)


def _open(benchmark: str, references: Any, options: Mapping[str, Any]) -> Scorer:
    kind = scorer_class(benchmark)
    kind.check_options(options)
    if kind.needs_references and references is None:
        raise InputError(f"{benchmark} needs references: the benchmark's ground-truth file or folder")
    return kind(references, **options)


def _run(scorer: Scorer, predictions: Rows, sink, allow_missing: bool, zero_division: float | None) -> ScoreReport:
    inputs = {str(path): sha256_of(path) for path in scorer.input_files()}
    if isinstance(scorer.references, dict | list | tuple) and not inputs:
        inputs["references"] = sha256_of_content(scorer.references)
    add, count = scorer.add, 0
    if is_path(predictions):
        for where, row in iter_rows(predictions):
            item = add(row, where)
            count += 1
            if sink is not None:
                sink(item)
        inputs[str(predictions)] = sha256_of(predictions)
    else:
        content = hashlib.sha256()
        for where, row in iter_rows(predictions):
            item = add(row, where)
            count += 1
            content.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
            if sink is not None:
                sink(item)
        inputs["predictions"] = content.hexdigest()
    totals = scorer.finish(allow_missing=allow_missing)
    report = ScoreReport(
        metrics=_filled(totals.metrics, zero_division),
        groups={name: _filled(group, zero_division) for name, group in totals.groups.items()},
        counts={"predictions": count} | totals.counts,
        warnings=totals.warnings,
        sums=totals.sums,
    )
    report.meta = {
        "scorer": scorer.benchmark,
        "version": scorer.version,
        "options": {name: _plain(value) for name, value in scorer.settings.items()}
        | {"allow_missing": allow_missing, "zero_division": zero_division},
        "inputs": inputs,
    }
    if totals.sums is not None:
        found = totals.sums.intervals(DRAWS, SEED)
        report.intervals = {n: None if totals.metrics.get(n, 0) is None else found[n] for n in found}
        report.meta["intervals"] = {"level": LEVEL, "unit": "image", "draws": DRAWS, "seed": SEED}
    return report


def _filled(metrics: Mapping[str, Any], zero_division: float | None) -> dict[str, Any]:
    return {name: zero_division if value is None else value for name, value in metrics.items()}


def _plain(value: Any) -> Any:
    """An option as the report shows it: text and numbers as they are, anything else by its name."""
    return value if isinstance(value, str | int | float | bool | type(None)) else getattr(value, "name", repr(value))


def _repeats(scorer: Scorer, predictions: Rows) -> bool:
    """Whether items can be computed a second time in place of being stored."""
    return (is_path(predictions) or isinstance(predictions, Sequence)) and scorer.again() is not None


class _Spooled:
    """Items of a run: in memory up to the limit, then in a temporary file. May be iterated more than once."""

    def __init__(self) -> None:
        self.kept: list[dict[str, Any]] = []
        self.count = 0

    def add(self, item: dict[str, Any]) -> None:
        self.count += 1
        if self.count <= ITEM_LIMIT:
            self.kept.append(item)
            return
        if self.kept:
            self._file = tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".jsonl")
            self._file.writelines(json.dumps(row) + "\n" for row in self.kept)
            self.kept = []
        self._file.write(json.dumps(item) + "\n")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._file.flush()
        with open(self._file.name, encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)


class _Again:
    """Items of a run: in memory up to the limit; above it computed again from predictions that can be read twice."""

    def __init__(self, scorer: Scorer, predictions: Rows) -> None:
        self.kept: list[dict[str, Any]] = []
        self.count = 0
        self._scorer, self._predictions = scorer, predictions

    def add(self, item: dict[str, Any]) -> None:
        self.count += 1
        if self.count <= ITEM_LIMIT:
            self.kept.append(item)
        elif self.kept:
            self.kept = []

    def __iter__(self) -> Iterator[dict[str, Any]]:
        scorer = self._scorer.again()
        return (scorer.add(row, where) for where, row in iter_rows(self._predictions))
