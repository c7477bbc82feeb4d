"""Train, validation and test rows, split by group (image) and stratified by behaviour.

Several rows often ask about one image; rows of a group are never on two sides. No torch here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

SPLITS = ("train", "validation", "test")
FRACTIONS = (0.7, 0.15, 0.15)


def split_groups(
    groups: Sequence[str],
    behaviours: Sequence[str],
    *,
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """{"train", "validation", "test"}: sorted row indices. The same rows in another order are split alike.

    A group belongs to the stratum of the behaviours its rows have. Strata are visited one after the other, their groups
    in an order drawn from the seed and their names; each goes where most is missing of that side's share.

    Raises:
        ValueError: lengths that differ, shares that do not sum to 1, or a split with a share but without a row.
    """
    if len(groups) != len(behaviours) or not len(groups):
        raise ValueError(f"{len(groups)} groups but {len(behaviours)} behaviours; give one of each per row, some rows")
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions={tuple(fractions)}: three shares (train, validation, test) that sum to 1")
    rows: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        rows.setdefault(str(group), []).append(index)
    strata: dict[tuple[str, ...], list[str]] = {}
    for group, members in rows.items():
        strata.setdefault(tuple(sorted({str(behaviours[i]) for i in members})), []).append(group)
    shares, total = np.asarray(fractions, dtype=float), np.zeros(3)
    sides: tuple[list[int], ...] = ([], [], [])
    for stratum in sorted(strata):
        for group in sorted(strata[stratum], key=lambda name: _order(seed, name)):
            count = len(rows[group])
            missing = shares * (total.sum() + count) - total
            side = int(np.argmax(np.where(shares > 0, missing, -np.inf)))
            total[side] += count
            sides[side].extend(rows[group])
    empty = [name for name, share, side in zip(SPLITS, shares, sides, strict=True) if share > 0 and not side]
    if empty:
        raise ValueError(f"{len(rows)} groups are too few: no row for {', '.join(empty)}; give more images")
    return {name: np.array(sorted(side), dtype=np.int64) for name, side in zip(SPLITS, sides, strict=True)}


def given_split(splits: Sequence[str | None], groups: Sequence[str]) -> dict[str, np.ndarray] | None:
    """The split that the rows name themselves; None if no row names one.

    Raises:
        ValueError: a row without, an unknown name, or a group on two sides.
    """
    if not any(splits):
        return None
    side_of: Mapping[str, str] = {}
    for row, (name, group) in enumerate(zip(splits, groups, strict=True)):
        if name not in SPLITS:
            raise ValueError(f"row {row}: split {name!r}; every row or none says one of {', '.join(SPLITS)}")
        if side_of.setdefault(str(group), name) != name:
            raise ValueError(f"group {group!r} is in {side_of[str(group)]} and in {name}; keep a group on one side")
    return {name: np.flatnonzero(np.array([split == name for split in splits])) for name in SPLITS}


def _order(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
