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
        return {name: self._interval(name, draws, seed) for name in filter(self._tops.get, self.names)}

    def _interval(self, name: str, draws: int, seed: int) -> list[float] | None:
        top, bottom = np.array(self._tops[name]), np.array(self._bottoms[name])
        present = ~np.isnan(top)
        top, bottom = top[present], bottom[present]
        images, total = len(top), float(bottom.sum())
        if images < 2 or total == 0:
            return None
        if images > BOOTSTRAP_LIMIT:
            estimate = float(top.sum()) / total
            half = 1.959963984540054 * float(np.sqrt(np.sum((top - estimate * bottom) ** 2))) / total
            return [estimate - half, estimate + half]
        rng = np.random.default_rng(seed)
        share, drawn = np.full(images, 1 / images), []
        for start in range(0, draws, CHUNK):
            weights = rng.multinomial(images, share, size=min(CHUNK, draws - start))
            bottoms = weights @ bottom
            drawn.append((weights @ top)[bottoms > 0] / bottoms[bottoms > 0])
        values = np.concatenate(drawn)
        if not len(values):
            return None
        low, high = np.percentile(values, [50 * (1 - LEVEL), 100 - 50 * (1 - LEVEL)])
        return [float(low), float(high)]
