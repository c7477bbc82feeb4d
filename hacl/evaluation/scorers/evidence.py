"""Numerator and denominator per image of every measure: the evidence behind intervals and paired comparisons.

The image is the unit because its questions share their errors. Arrays of floats, so a million answers take little room.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

LEVEL = 0.95
BOOTSTRAP_LIMIT = 5000  # images; above it the linearised interval differs from the bootstrap by less than its noise
CHUNK = 50  # draws at once: the weights of 50 draws over 5,000 images are 2 MB
NAN = float("nan")
NORMAL_QUANTILE = 1.959963984540054


class ImageSums:
    """Sums per image of the ratios ``names``."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        self._rows: dict[object, int] = {}
        self._tops = {name: array("d") for name in self.names}
        self._bottoms = {name: array("d") for name in self.names}

    @classmethod
    def from_arrays(
        cls, image_ids: Sequence[object], columns: Mapping[str, tuple[np.ndarray, np.ndarray]]
    ) -> ImageSums:
        """Build from whole columns: for each name numerators and denominators, one per image of ``image_ids``."""
        sums = cls(columns)
        sums._rows = {image_id: row for row, image_id in enumerate(image_ids)}
        for name, (top, bottom) in columns.items():
            sums._tops[name] = array("d", np.asarray(top, dtype=np.float64).tobytes())
            sums._bottoms[name] = array("d", np.asarray(bottom, dtype=np.float64).tobytes())
        return sums

    def add(self, image_id: object, name: str, numerator: float, denominator: float) -> None:
        """Add one summand. An image whose summands are all 0/0 still counts as answered about.

        Raises:
            KeyError: ``name`` is none of the names.
        """
        row = self._rows.setdefault(image_id, len(self._rows))
        tops, bottoms = self._tops[name], self._bottoms[name]
        if row >= len(tops):
            gap = [NAN] * (row + 1 - len(tops))
            tops.extend(gap)
            bottoms.extend(gap)
        if tops[row] != tops[row]:
            tops[row] = bottoms[row] = 0.0
        tops[row] += numerator
        bottoms[row] += denominator

    def tables(self) -> dict[str, dict[str, list[float]]]:
        """``{metric: {image_id: [numerator, denominator]}}``, images in order of first appearance; names to which
        nothing was added are left out."""
        found = {}
        for name in filter(self._tops.get, self.names):
            pairs = zip(self._rows, self._tops[name], self._bottoms[name], strict=False)
            found[name] = {str(image_id): [top, bottom] for image_id, top, bottom in pairs if top == top}
        return found

    def intervals(self, draws: int = 1000, seed: int = 0) -> dict[str, list[float] | None]:
        """95% interval of every ratio over images, ``[low, high]``; None with fewer than two images or for 0/0.

        Percentiles of a bootstrap that draws images with replacement; above 5,000 images the interval of the
        linearised ratio (normal, delta method), which is the bootstrap's limit and needs no draws.
        """
        found: dict[str, list[float] | None] = {}
        alike: dict[bytes, list[str]] = {}  # names about the same images share their draws
        for name in filter(self._tops.get, self.names):
            found[name] = None
            alike.setdefault(np.isnan(self._tops[name]).tobytes(), []).append(name)
        for names in alike.values():
            top, bottom = (np.array([side[name] for name in names]) for side in (self._tops, self._bottoms))
            present = ~np.isnan(top[0])
            make = _linearised if present.sum() > BOOTSTRAP_LIMIT else _bootstrap
            if present.sum() > 1:
                found.update(zip(names, make(top[:, present], bottom[:, present], draws, seed), strict=True))
        return found


def _linearised(top: np.ndarray, bottom: np.ndarray, draws: int, seed: int) -> list[list[float] | None]:
    found: list[list[float] | None] = []
    for tops, bottoms in zip(top, bottom, strict=True):
        total = float(bottoms.sum())
        if not total:
            found.append(None)
            continue
        estimate = float(tops.sum()) / total
        half = NORMAL_QUANTILE * float(np.sqrt(np.sum((tops - estimate * bottoms) ** 2))) / total
        fraction = bool(np.all((tops >= 0) & (tops <= bottoms)))
        low, high = estimate - half, estimate + half
        found.append([max(low, 0.0), min(high, 1.0)] if fraction else [low, high])
    return found


def _bootstrap(top: np.ndarray, bottom: np.ndarray, draws: int, seed: int) -> list[list[float] | None]:
    rng, (names, images) = np.random.default_rng(seed), top.shape
    sides, drawn = np.concatenate([top, bottom]).T, []
    for start in range(0, draws, CHUNK):
        size = min(CHUNK, draws - start)
        picked = rng.integers(images, size=(size, images)) + images * np.arange(size)[:, None]
        weights = np.bincount(picked.ravel(), minlength=size * images).reshape(size, images).astype(float)
        drawn.append(weights @ sides)
    sums = np.concatenate(drawn)
    found: list[list[float] | None] = []
    for number in range(names):
        tops, bottoms = sums[:, number], sums[:, names + number]
        values = tops[bottoms > 0] / bottoms[bottoms > 0]
        ends = np.percentile(values, [50 * (1 - LEVEL), 100 - 50 * (1 - LEVEL)]) if len(values) else None
        found.append(None if ends is None else [float(ends[0]), float(ends[1])])
    return found
