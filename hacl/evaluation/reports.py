"""The shape every scorer returns: metrics, per-item rows, and the ratio each item adds to each metric.

Scorers are pure functions of text. Nothing here or in a scorer imports torch or transformers.

Every metric of this package is a ratio of two sums over items (accuracy: correct / 1; CHAIR_i: hallucinated mentions /
mentions; F1: 2 TP / (2 TP + FP + FN)). Keeping the two summands per item is what allows a bootstrap over images of any
of them, and a paired comparison of two runs, without scoring again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


class Sums(Protocol):
    """Evidence of a streaming scorer, already added up by image (hacl.evaluation.scorers.evidence.ImageSums)."""

    def tables(self) -> dict[str, dict[str, list[float]]]: ...


@dataclass
class ScoreReport:
    """What a scorer found; JSON-serialisable through :meth:`to_json`, and readable like a dictionary.

    Attributes:
        metrics: metric name to value; ``None`` where the ratio is 0/0, with a line in ``warnings``.
        groups: name of a subset (a POPE split, a hallucination type) to its metrics.
        items: one row per prediction in input order; every row has ``image_id`` where ``ratios`` are given. A list, or
            above 50,000 predictions an object that can only be iterated.
        ratios: metric name to one ``(numerator, denominator)`` per item, aligned with ``items``.
        counts: integers behind the metrics.
        warnings: sentences for the reader of the numbers.
        meta: scorer version, options, sha256 of every input.
        intervals: metric name to ``[low, high]`` (95%, over images), None where there is none.
        sums: evidence by image of a streaming scorer, in place of ``ratios``.
    """

    metrics: dict[str, float | None] = field(default_factory=dict)
    groups: dict[str, dict[str, float | None]] = field(default_factory=dict)
    items: Iterable[dict[str, Any]] = field(default_factory=list)
    ratios: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    intervals: dict[str, list[float] | None] = field(default_factory=dict)
    sums: Sums | None = field(default=None, repr=False)

    def __getitem__(self, name: str) -> Any:
        """``report["metrics"]``, for code that treats the report as the dictionary it becomes in a file."""
        if name not in self.__dataclass_fields__:
            raise KeyError(name)
        return getattr(self, name)

    def keys(self) -> list[str]:
        """Names for :meth:`__getitem__`, so that ``dict(report)`` works."""
        return list(self.__dataclass_fields__)

    def to_json(self, *, items: bool = True, tables: bool = False) -> dict[str, Any]:
        """A plain dictionary, safe for ``json.dumps``.

        items: with the rows (a long run has them in its own file). tables: with the evidence by image,
            ``{"tables": {metric: {image_id: [numerator, denominator]}}}``, which a paired comparison reads.
        """
        names = ("metrics", "intervals", "groups", "counts", "warnings", "meta")
        content = {name: getattr(self, name) for name in names}
        if items:
            content["items"] = list(self.items)
        if tables:
            content["tables"] = self.by_image()
        return content

    def by_image(self) -> dict[str, dict[str, list[float]]]:
        """``{metric: {image_id: [numerator, denominator]}}``: items of one image added up.

        The image is the unit that is resampled by :mod:`hacl.evaluation.statistics`; a POPE image has six questions
        whose errors are not independent.
        """
        if self.sums is not None:
            return self.sums.tables()
        image_ids = [str(item["image_id"]) for item in self.items]
        return {name: sum_by_key(image_ids, pairs) for name, pairs in self.ratios.items()}


def sum_by_key(keys: Iterable[str], pairs: Iterable[tuple[float, float]]) -> dict[str, list[float]]:
    """Add up (numerator, denominator) pairs that share a key, keeping the order of first appearance."""
    sums: dict[str, list[float]] = {}
    for key, (numerator, denominator) in zip(keys, pairs, strict=True):
        entry = sums.setdefault(str(key), [0.0, 0.0])
        entry[0] += float(numerator)
        entry[1] += float(denominator)
    return sums


def ratio(pairs: Iterable[tuple[float, float]], name: str, warnings: list[str]) -> float | None:
    """Sum of numerators over sum of denominators; ``None`` and a warning when the denominators sum to zero."""
    numerator = denominator = 0.0
    for top, bottom in pairs:
        numerator += float(top)
        denominator += float(bottom)
    if denominator == 0:
        warnings.append(f"{name} is undefined (0/0) and reported as null")
        return None
    return numerator / denominator


def collect(
    reports: Mapping[str, ScoreReport],
) -> tuple[dict[str, float | None], dict[str, dict[str, list[float]]]]:
    """Flatten several reports into the ``metrics`` and ``items`` of one split of one run (hacl.report.schema).

    reports: prefix to report; ``{"": chair, "pope_random/": pope}`` gives ``CHAIRi`` and ``pope_random/f1``.

    Raises:
        ValueError: two reports give the same name.
    """
    metrics: dict[str, float | None] = {}
    items: dict[str, dict[str, list[float]]] = {}
    for prefix, report in reports.items():
        for name, value in report.metrics.items():
            if prefix + name in metrics:
                raise ValueError(f"measure {prefix + name!r} comes from two reports; give them different prefixes")
            metrics[prefix + name] = value
        items.update({prefix + name: table for name, table in report.by_image().items()})
    return metrics, items
