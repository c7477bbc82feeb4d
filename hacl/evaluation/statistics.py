"""Intervals and tests for measures that vary over images, seeds and bases.

A run is one trained model: a base (an independently pre-trained starting point) tuned with one seed. A *table* is the
evidence of one run for one measure: ``{item_id: [numerator, denominator]}``, as :meth:`ScoreReport.by_image` gives it.
The measure of a run is the ratio of the two sums.

Two sources of chance are resampled together (a crossed design, since all runs answer about the same images): runs (by
base where there are several, else by seed) and items, the same draw for every run. The variance of a bootstrap over n
units is (n - 1)/n too small, which matters when n is three; deviations of resampled runs are therefore stretched by
sqrt(n / (n - 1)) (the rescaling of Rao and Wu, 1988) and by the ratio of Student's to the normal quantile, after the
share of their spread that items explain is taken out. In simulations of three and six paired runs on 200 images the 95%
interval covered 91 to 98%. What no interval can mend is that three runs are three runs: :func:`sign_test` says so in
its p value.

A *fraction* (every numerator between zero and its denominator) is stretched on the arcsine scale, asin(sqrt(x)), where
its noise hardly depends on its size; the stretch on the plain scale ran past 0 or 1. In 400 simulations each of three
and six runs on 100 images the 95% interval covered a true fraction of 0.97 in 93% and 93% (plain and clipped: 87% and
90%), one of 0.99 in 91% and 97% (86% and 87%), and was as wide as before between 0.1 and 0.9. A fraction without any
variation (all right, all wrong) has the exact binomial bound over items in place of an interval without width.
Differences of fractions are clipped to [-1, 1], which costs no coverage, as the truth lies there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Table = Mapping[str, Sequence[float]]
DEFAULT_DRAWS = 2000


@dataclass(frozen=True)
class Interval:
    """A point estimate with a percentile interval; ``low``/``high`` are None where none can be given."""

    estimate: float | None
    low: float | None
    high: float | None
    runs: int
    items: int
    level: float = 0.95

    def excludes(self, value: float) -> bool:
        """Whether the interval exists and lies wholly on one side of ``value``."""
        return self.low is not None and self.high is not None and (self.low > value or self.high < value)

    def to_json(self) -> dict[str, float | int | None]:
        return dict(self.__dict__)


def bootstrap(values: Sequence[float], *, draws: int = DEFAULT_DRAWS, level: float = 0.95, seed: int = 0) -> Interval:
    """Percentile interval of a mean over items (one run, no seed variance)."""
    table = {str(i): (float(v), 1.0) for i, v in enumerate(values)}
    return bootstrap_runs([table], draws=draws, level=level, seed=seed)


def bootstrap_runs(
    tables: Sequence[Table],
    *,
    bases: Sequence[object] | None = None,
    draws: int = DEFAULT_DRAWS,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of the mean over runs of each run's ratio, over bases, seeds and items.

    Args:
        tables: one table per run. A single run is resampled over items only.
        bases: the base of each run; None treats every run as its own base.

    Raises:
        ValueError: no run, or lengths differ.
    """
    return _interval([(table, None) for table in tables], bases, draws, level, seed)


def paired_difference(
    treated: Sequence[Table],
    control: Sequence[Table],
    *,
    bases: Sequence[object] | None = None,
    draws: int = DEFAULT_DRAWS,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of treated minus control, run by run (same base and seed) and item by item (same images).

    Items that only one side has are left out on both sides, so that a difference never comes from different images.
    """
    if len(treated) != len(control):
        raise ValueError(f"paired_difference: {len(treated)} treated runs but {len(control)} control runs; pair them")
    return _interval(list(zip(treated, control, strict=True)), bases, draws, level, seed)


def run_values_interval(
    values: Sequence[float],
    *,
    bases: Sequence[object] | None = None,
    level: float = 0.95,
    bounds: tuple[float, float] | None = None,
) -> Interval:
    """Student's t interval over runs alone, for measures without per-item evidence (a gap, an AUC).

    Runs are averaged inside each base first, unless there is one base. One run has no interval.
    bounds: values the measure cannot pass (0 and 1 for an AUC); the interval is clipped to them.
    """
    if not len(values):
        return Interval(None, None, None, 0, 0, level)
    groups = _groups(len(values), bases)
    array = np.asarray(values, dtype=float)
    units = np.array([array[group].mean() for group in groups]) if len(groups) > 1 else array[groups[0]]
    estimate, n = float(units.mean()), len(units)
    if n == 1:
        return Interval(estimate, None, None, len(values), 0, level)
    from scipy.stats import t

    half = float(t.ppf(0.5 + level / 2, n - 1)) * float(units.std(ddof=1)) / math.sqrt(n)
    low, high = np.clip([estimate - half, estimate + half], *(bounds or (None, None))).tolist()
    return Interval(estimate, low, high, len(values), 0, level)


def sign_test(differences: Sequence[float]) -> float | None:
    """Exact two-sided p of the sign test; ties are dropped, None if nothing is left.

    With n untied pairs the smallest possible p is 2 ** (1 - n): 0.25 for three, 0.03125 for six.
    """
    signs = [d > 0 for d in differences if d != 0]
    n = len(signs)
    if n == 0:
        return None
    fewer = min(sum(signs), n - sum(signs))
    return min(1.0, 2.0 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2.0**n)


def base_differences(values: Sequence[float], control: Sequence[float], bases: Sequence[object]) -> list[float]:
    """Mean paired difference per base: the independent units a sign test may count."""
    grouped: dict[object, list[float]] = {}
    for value, other, base in zip(values, control, bases, strict=True):
        grouped.setdefault(base, []).append(value - other)
    return [sum(d) / len(d) for d in grouped.values()]


def table_ratio(table: Table) -> float | None:
    """The measure of one run: sum of numerators over sum of denominators, None for 0/0."""
    bottom = sum(pair[1] for pair in table.values())
    return sum(pair[0] for pair in table.values()) / bottom if bottom else None


def format_interval(interval: Interval, fmt: str = ".3f") -> str:
    """``0.312 [0.280, 0.345]``; ``0.312`` without an interval; ``n/a`` without an estimate."""
    if interval.estimate is None:
        return "n/a"
    text = format(interval.estimate, fmt)
    if interval.low is None or interval.high is None:
        return text
    return f"{text} [{format(interval.low, fmt)}, {format(interval.high, fmt)}]"


def _interval(pairs, bases, draws, level, seed) -> Interval:
    if not pairs:
        raise ValueError("a bootstrap needs at least one run")
    if bases is not None and len(bases) != len(pairs):
        raise ValueError(f"{len(pairs)} runs but {len(bases)} bases")
    # A table of one run may lack an image that another has (a denominator of zero): then it counts nothing there.
    ids = sorted(set().union(*(_common_ids(a, b) for a, b in pairs)))
    if not ids:
        return Interval(None, None, None, len(pairs), 0, level)
    groups = _groups(len(pairs), bases)
    rng = np.random.default_rng(seed)
    weights = np.vstack([np.ones(len(ids)), rng.multinomial(len(ids), np.full(len(ids), 1 / len(ids)), size=draws)])
    values = np.stack([_weighted(a, b, ids, weights) for a, b in pairs], axis=1)  # [1 + draws, runs]
    estimate = _two_level_mean(values[:1], groups)[0]
    if not np.isfinite(estimate):
        return Interval(None, None, None, len(pairs), len(ids), level)
    fraction = all(is_fraction(table) for pair in pairs for table in pair if table is not None)
    single = all(other is None for _, other in pairs)
    drawn = _resample_runs(values[1:], values[0], groups, rng, level, arcsine=fraction and single)
    drawn = drawn[np.isfinite(drawn)]
    if len(ids) < 2 and len(pairs) < 2 or not len(drawn):
        return Interval(float(estimate), None, None, len(pairs), len(ids), level)
    low, high = _percentiles(drawn, level)
    if fraction and single and low == high and estimate in (0.0, 1.0):
        counted = max(sum(table[i][1] > 0 for i in ids if i in table) for table, _ in pairs)
        reach = ((1 - level) / 2) ** (1 / counted)
        low, high = (0.0, 1 - reach) if estimate == 0 else (reach, 1.0)
    if fraction and not single:
        low, high = max(low, -1.0), min(high, 1.0)
    return Interval(float(estimate), low, high, len(pairs), len(ids), level)


def is_fraction(table: Table) -> bool:
    """Whether every numerator lies between zero and its denominator, so that the ratio lies between 0 and 1."""
    return all(0 <= pair[0] <= pair[1] for pair in table.values())


def _common_ids(table: Table, other: Table | None) -> set[str]:
    return set(table) if other is None else set(table) & set(other)


def _weighted(table: Table, other: Table | None, ids: Sequence[str], weights: np.ndarray) -> np.ndarray:
    keep = _common_ids(table, other)
    value = _ratio(np.array([table[i] if i in keep else (0.0, 0.0) for i in ids], dtype=float), weights)
    if other is not None:
        value = value - _ratio(np.array([other[i] if i in keep else (0.0, 0.0) for i in ids], dtype=float), weights)
    return value


def _ratio(pairs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    top, bottom = weights @ pairs[:, 0], weights @ pairs[:, 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(bottom > 0, top / bottom, np.nan)


def _groups(runs: int, bases: Sequence[object] | None) -> list[np.ndarray]:
    if bases is None:
        return [np.array([i]) for i in range(runs)]
    return [np.array([i for i, b in enumerate(bases) if b == base]) for base in dict.fromkeys(bases)]


def _two_level_mean(values: np.ndarray, groups: list[np.ndarray]) -> np.ndarray:
    """Mean over seeds inside each base, then over bases. values: [draws, runs] -> [draws]."""
    return np.mean([values[:, group].mean(axis=1) for group in groups], axis=0)


def _resample_runs(
    values: np.ndarray,
    observed: np.ndarray,
    groups: list[np.ndarray],
    rng: np.random.Generator,
    level: float,
    arcsine: bool,
) -> np.ndarray:
    """Add run-to-run variation to item draws. values: [draws, runs], observed: [runs] -> [draws].

    Units are bases, or seeds where there is one base (with several bases, the spread between base means already holds
    that between seeds). Item draws hold the noise of items, and of items within one unit; the spread between observed
    units holds the latter again, so it is estimated and taken out before units are resampled.
    """
    if len(groups) > 1:
        units = np.stack([values[:, group].mean(axis=1) for group in groups], axis=1)
        seen = np.array([observed[group].mean() for group in groups])
    else:
        units, seen = values[:, groups[0]], observed[groups[0]]
    centre, n = units.mean(axis=1), len(seen)
    if n == 1:
        return centre
    if arcsine:
        centre, units, seen = (np.arcsin(np.sqrt(np.clip(x, 0.0, 1.0))) for x in (centre, units, seen))
    spread = float(seen.var(ddof=1))
    if spread > 0:
        within = max(0.0, float(np.nanmean(units.var(axis=1, ddof=1))) - spread)
        between = max(0.0, spread - within)
        stretch = math.sqrt(between / spread * n / (n - 1)) * _student_over_normal(n - 1, level)
        deviations = (seen - seen.mean()) * stretch
        centre = centre + deviations[rng.integers(n, size=units.shape)].mean(axis=1)
    return np.sin(np.clip(centre, 0.0, math.pi / 2)) ** 2 if arcsine else centre


def _student_over_normal(freedom: int, level: float) -> float:
    """How much wider Student's interval is than the normal one: the price of a spread estimated from few units."""
    from scipy.stats import norm, t

    return float(t.ppf(0.5 + level / 2, freedom) / norm.ppf(0.5 + level / 2))


def _percentiles(drawn: np.ndarray, level: float) -> tuple[float, float]:
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return float(low), float(high)
