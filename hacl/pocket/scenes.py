"""Sample scenes with exact ground truth under three laws of co-occurrence.

``like``: a kind's partner is present nine times in ten. ``broken``: partners are never present together, while the
number of kinds keeps the same distribution. ``independent``: kinds are drawn without regard to partners.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass

from hacl.pocket.world import BACKGROUNDS, COLOURS, KINDS, PAIRS

IMAGE_SIZE = 128
GRID = 4
PARTNER_RATE = 0.9
# A scene holds one to three partner groups. A group is complete with probability q, where q / (q + (1 - q) / 2) = 0.9.
_COMPLETE = PARTNER_RATE / (2 - PARTNER_RATE)
_GROUPS, _GROUP_WEIGHTS = (1, 2, 3), (2, 5, 3)
_COUNTS, _COUNT_WEIGHTS = (1, 2, 3), (72, 18, 10)
_PAIR_WEIGHTS = tuple(1 / (1 + 0.12 * rank) for rank in range(len(PAIRS)))

SPLITS = {
    "train": "like",
    "val_like": "like",
    "test_like": "like",
    "val_broken": "broken",
    "test_broken": "broken",
    "val_independent": "independent",
    "test_independent": "independent",
}


@dataclass(frozen=True)
class Thing:
    """One drawn object. ``size`` is a fraction of a grid cell; shifts are pixels from the cell's centre."""

    kind: str
    colour: str
    row: int
    column: int
    size: float
    shift_x: float
    shift_y: float


@dataclass(frozen=True)
class Scene:
    """Everything that is true of one image. All things of one kind share one colour."""

    id: str
    things: tuple[Thing, ...]
    background: int

    @property
    def counts(self) -> dict[str, int]:
        """Kind -> number of things, in the order of drawing."""
        counts: dict[str, int] = {}
        for thing in self.things:
            counts[thing.kind] = counts.get(thing.kind, 0) + 1
        return counts

    def colour_of(self, kind: str) -> str:
        return next(thing.colour for thing in self.things if thing.kind == kind)

    def holds(self, subject: str, relation: str, other: str) -> bool:
        """Whether the one ``subject`` stands in ``relation`` to the one ``other``, by at least one whole grid cell.

        Raises ValueError where either is not there exactly once: a relation of several things is ambiguous.
        """
        places = {}
        for name in (subject, other):
            found = [thing for thing in self.things if thing.kind == name]
            if len(found) != 1:
                raise ValueError(f"{self.id}: relation of {name!r}, which is there {len(found)} times; it must be once")
            places[name] = found[0]
        first, second = places[subject], places[other]
        return {
            "left of": first.column < second.column,
            "right of": first.column > second.column,
            "above": first.row < second.row,
            "below": first.row > second.row,
        }[relation]

    def to_json(self) -> dict:
        return {"background": self.background, "things": [asdict(thing) for thing in self.things]}


def scene_from_json(scene_id: str, raw: dict) -> Scene:
    """Inverse of :meth:`Scene.to_json`."""
    return Scene(scene_id, tuple(Thing(**thing) for thing in raw["things"]), raw["background"])


def _like_kinds(rng: random.Random) -> list[str]:
    groups = rng.choices(_GROUPS, _GROUP_WEIGHTS)[0]
    kinds: list[str] = []
    for pair in _draw_pairs(rng, groups):
        kinds += list(pair) if rng.random() < _COMPLETE else [rng.choice(pair)]
    return kinds


def _draw_pairs(rng: random.Random, count: int) -> list[tuple[str, str]]:
    left, weights, chosen = list(PAIRS), list(_PAIR_WEIGHTS), []
    for _ in range(count):
        index = rng.choices(range(len(left)), weights)[0]
        chosen.append(left.pop(index))
        weights.pop(index)
    return chosen


def sample_kinds(law: str, rng: random.Random) -> list[str]:
    """Distinct kinds of one scene under ``law``."""
    kinds = _like_kinds(rng)
    if law == "like":
        return kinds
    if law == "broken":
        return [rng.choice(pair) for pair in _draw_pairs(rng, len(kinds))]
    if law == "independent":
        return rng.sample([kind.name for kind in KINDS], len(kinds))
    raise ValueError(f"unknown law {law!r}; choose like, broken or independent")


def sample_scene(split: str, index: int, seed: int) -> Scene:
    """Scene number ``index`` of ``split``; a function of (seed, split, index) only, whatever else was drawn before."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    rng = random.Random(f"{seed}/{split}/{index}")
    kinds = sample_kinds(SPLITS[split], rng)
    cells = rng.sample([(row, column) for row in range(GRID) for column in range(GRID)], GRID * GRID)
    things = []
    for kind in kinds:
        colour = rng.choice(list(COLOURS))
        for _ in range(rng.choices(_COUNTS, _COUNT_WEIGHTS)[0]):
            if len(cells) <= len(kinds):  # keep one cell for every kind still to come
                break
            row, column = cells.pop()
            things.append(
                Thing(
                    kind,
                    colour,
                    row,
                    column,
                    round(rng.uniform(0.78, 0.92), 3),
                    round(rng.uniform(-2.0, 2.0), 2),
                    round(rng.uniform(-2.0, 2.0), 2),
                )
            )
    rng.shuffle(things)
    return Scene(f"{split}-{seed}-{index:05d}", tuple(things), rng.randrange(len(BACKGROUNDS)))
