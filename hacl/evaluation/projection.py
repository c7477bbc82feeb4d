"""Two-dimensional pictures of states that can be compared: one set of axes for every checkpoint.

Shapes: n rows, P width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hacl.evaluation.diagnostics import States
from hacl.training.state_measures import unit


class SharedProjection:
    """Principal components fitted once on the union of several state sets and reused for each, so panels share axes.

    Rows are scaled to length one first. Every set has the same weight whatever its size.
    """

    def __init__(self, sets: Sequence[States], components: int = 2):
        if not sets:
            raise ValueError("a shared projection needs at least one set of states")
        parts = [
            unit(rows) for states in sets for rows in (states.image, states.true, states.hallucinated) if len(rows)
        ]
        widths = {part.shape[1] for part in parts}
        if len(widths) != 1:
            raise ValueError(f"states of widths {sorted(widths)} cannot share axes; compare states of one stage")
        self.mean = np.mean([part.mean(axis=0) for part in parts], axis=0)
        rows = np.concatenate([(part - self.mean) / np.sqrt(len(part)) for part in parts])
        _, singular, right = np.linalg.svd(rows, full_matrices=False)
        self.axes = right[:components]
        self.explained = (singular[:components] ** 2 / max(float((singular**2).sum()), 1e-30)).tolist()

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """(n, P) -> (n, components)."""
        return (unit(rows) - self.mean) @ self.axes.T

    def panel(self, states: States, title: str, *, limit: int = 150, seed: int = 0) -> dict[str, Any]:
        """One entry of ``results["states2d"]``: at most ``limit`` points of each kind, drawn by seed."""
        rng = np.random.default_rng(seed)
        points = {}
        for kind, rows in (("image", states.image), ("true", states.true), ("hallucinated", states.hallucinated)):
            keep = np.sort(rng.permutation(len(rows))[:limit])
            points[kind] = np.round(self(rows[keep]), 4).tolist() if len(keep) else []
        return {"title": title, "explained": self.explained, "points": points}
