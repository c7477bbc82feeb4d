"""Contexts and steering vectors with a known best predictor: antipodal classes that no constant vector can serve.

Classes 2j and 2j + 1 have the directions D and -D. A fixed vector that reaches one by more than a threshold >= 0 misses
the other, so on balanced data it succeeds on at most half of the rows.

Shapes: N rows, D width, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LENGTH = 3.0


@dataclass(frozen=True)
class Planted:
    """contexts, targets, directions (targets without noise) (N, D); classes (N); ceiling: an R2 that no
    predictor passes, |D|^2 / (|D|^2 + width * noise^2).
    """

    contexts: Tensor
    targets: Tensor
    directions: Tensor
    classes: list[int]
    ceiling: float

    def success(self, predicted: Tensor, rows=slice(None)) -> float:
        """Share of rows whose vector goes more than half the way along the noiseless direction."""
        wanted = self.directions[rows]
        return float(((predicted * wanted).sum(1) > LENGTH**2 / 2).double().mean())

    @property
    def behaviours(self) -> list[str]:
        return [f"class-{number}" for number in self.classes]

    @property
    def groups(self) -> list[str]:
        return [f"image-{row // 2}" for row in range(len(self.classes))]


def antipodal(rows: int, width: int, classes: int, context_noise: float, target_noise: float, seed: int) -> Planted:
    """context = 4 w_c + noise with orthonormal w; target = D_c + noise, |D_c| = 3, D_2j+1 = -D_2j; balanced."""
    draw = torch.Generator().manual_seed(seed)
    places = torch.linalg.qr(torch.randn(width, classes, generator=draw)).Q.T
    half = torch.linalg.qr(torch.randn(width, classes // 2, generator=draw)).Q.T * LENGTH
    directions = torch.stack([half, -half], dim=1).flatten(0, 1)
    label = torch.arange(rows) % classes
    label = label[torch.randperm(rows, generator=draw)]
    contexts = 4 * places[label] + context_noise * torch.randn(rows, width, generator=draw)
    targets = directions[label] + target_noise * torch.randn(rows, width, generator=draw)
    ceiling = LENGTH**2 / (LENGTH**2 + width * target_noise**2)
    return Planted(contexts, targets, directions[label], label.tolist(), ceiling)


def exclusive_or(rows: int, width: int, seed: int, noise: float = 0.1) -> Planted:
    """context = a p + b q + noise, target = a b u with signs a, b: no affine map sees the product."""
    draw = torch.Generator().manual_seed(seed)
    p, q, u = torch.linalg.qr(torch.randn(width, 3, generator=draw)).Q.T
    a, b = (torch.randint(0, 2, (2, rows), generator=draw) * 2 - 1).float()
    contexts = 2 * (a[:, None] * p + b[:, None] * q) + noise * torch.randn(rows, width, generator=draw)
    classes = ((a * b) > 0).int().tolist()
    targets = LENGTH * (a * b)[:, None] * u
    return Planted(contexts, targets, targets, classes, 1.0)
