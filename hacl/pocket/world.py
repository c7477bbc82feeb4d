"""What exists in the offline world: object kinds with their words and drawings, partners, colours, numbers, relations.

Drawings are lists of primitives in a unit box (x to the right, y downwards). Each primitive is a tuple
``(shape, fill, numbers...)`` where shape is ``poly``, ``oval``, ``rect`` or ``line`` (first number: width), and fill is
``c`` (the object's colour), ``k`` (dark) or ``w`` (white).
"""

# ruff: noqa: E501  (drawings are tables of numbers)
from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi, sin

COLOURS = {
    "red": (214, 40, 40),
    "orange": (245, 140, 20),
    "yellow": (240, 210, 40),
    "green": (50, 160, 70),
    "blue": (40, 90, 210),
    "purple": (140, 60, 170),
}
NUMBERS = ("zero", "one", "two", "three", "four")
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
BACKGROUNDS = ((250, 248, 240), (240, 246, 252), (244, 250, 240), (250, 242, 246), (246, 246, 246))

Primitive = tuple


@dataclass(frozen=True)
class Kind:
    """One object kind. ``words`` are (singular, plural) pairs, the first being its own name, the others synonyms."""

    name: str
    words: tuple[tuple[str, str], ...]
    drawing: tuple[Primitive, ...]


def _ring(points: int, outer: float, inner: float | None = None, turn: float = -pi / 2) -> tuple[float, ...]:
    """Corners of a regular polygon (or of a star, with ``inner``) about the centre of the unit box."""
    count = points if inner is None else 2 * points
    numbers: list[float] = []
    for index in range(count):
        radius = outer if inner is None or index % 2 == 0 else inner
        angle = turn + 2 * pi * index / count
        numbers += [0.5 + radius * cos(angle), 0.5 + radius * sin(angle)]
    return tuple(numbers)


def _kind(words: str, *drawing: Primitive) -> Kind:
    """``words`` is "singular/plural singular/plural ..."."""
    pairs = tuple(tuple(pair.split("/")) for pair in words.split())
    return Kind(pairs[0][0], pairs, drawing)  # type: ignore[arg-type]


# Neighbours in this list are partners: ball and bat, boat and anchor, and so on. Earlier pairs are more frequent.
KINDS: tuple[Kind, ...] = (
    _kind("ball/balls sphere/spheres", ("oval", "c", 0.1, 0.1, 0.9, 0.9), ("line", "w", 0.08, 0.15, 0.5, 0.85, 0.5)),
    _kind("bat/bats", ("poly", "c", 0.08, 0.8, 0.6, 0.12, 0.9, 0.38, 0.2, 0.92), ("line", "k", 0.06, 0.25, 0.7, 0.37, 0.8)),
    _kind("boat/boats ship/ships", ("poly", "c", 0.05, 0.65, 0.95, 0.65, 0.75, 0.92, 0.25, 0.92),
          ("line", "k", 0.06, 0.5, 0.08, 0.5, 0.65), ("poly", "w", 0.55, 0.12, 0.88, 0.55, 0.55, 0.55)),
    _kind("anchor/anchors", ("line", "c", 0.12, 0.5, 0.25, 0.5, 0.9), ("line", "c", 0.1, 0.28, 0.4, 0.72, 0.4),
          ("line", "c", 0.12, 0.12, 0.62, 0.3, 0.86, 0.5, 0.92, 0.7, 0.86, 0.88, 0.62), ("oval", "c", 0.38, 0.04, 0.62, 0.28)),
    _kind("house/houses cottage/cottages", ("rect", "c", 0.18, 0.45, 0.82, 0.95), ("poly", "k", 0.08, 0.48, 0.5, 0.08, 0.92, 0.48),
          ("rect", "w", 0.42, 0.65, 0.58, 0.95)),
    _kind("tree/trees", ("rect", "k", 0.43, 0.6, 0.57, 0.96), ("oval", "c", 0.12, 0.04, 0.88, 0.7)),
    _kind("cup/cups mug/mugs", ("rect", "c", 0.15, 0.25, 0.68, 0.9), ("line", "c", 0.09, 0.68, 0.38, 0.92, 0.42, 0.92, 0.68, 0.68, 0.74)),
    _kind("spoon/spoons", ("oval", "c", 0.08, 0.06, 0.5, 0.44), ("line", "c", 0.11, 0.38, 0.36, 0.9, 0.92)),
    _kind("sun/suns", ("poly", "c", *_ring(10, 0.48, 0.3)), ("oval", "w", 0.38, 0.38, 0.62, 0.62)),
    _kind("cloud/clouds", ("oval", "c", 0.04, 0.42, 0.46, 0.8), ("oval", "c", 0.26, 0.22, 0.74, 0.72), ("oval", "c", 0.54, 0.42, 0.96, 0.8)),
    _kind("fish/fishes", ("oval", "c", 0.05, 0.28, 0.72, 0.74), ("poly", "c", 0.62, 0.5, 0.95, 0.24, 0.95, 0.78), ("oval", "k", 0.18, 0.42, 0.28, 0.52)),
    _kind("hook/hooks", ("line", "c", 0.13, 0.65, 0.05, 0.65, 0.65, 0.55, 0.85, 0.35, 0.85, 0.22, 0.62), ("poly", "c", 0.1, 0.66, 0.22, 0.4, 0.38, 0.64)),
    _kind("key/keys", ("oval", "c", 0.04, 0.3, 0.42, 0.7), ("line", "c", 0.12, 0.4, 0.5, 0.96, 0.5), ("line", "c", 0.1, 0.72, 0.5, 0.72, 0.74),
          ("line", "c", 0.1, 0.9, 0.5, 0.9, 0.74), ("oval", "w", 0.15, 0.42, 0.3, 0.58)),
    _kind("lock/locks padlock/padlocks", ("rect", "c", 0.16, 0.48, 0.84, 0.95), ("line", "k", 0.1, 0.28, 0.48, 0.28, 0.2, 0.5, 0.08, 0.72, 0.2, 0.72, 0.48),
          ("oval", "w", 0.42, 0.62, 0.58, 0.78)),
    _kind("candle/candles", ("rect", "c", 0.36, 0.38, 0.64, 0.96), ("oval", "k", 0.41, 0.06, 0.59, 0.34)),
    _kind("cake/cakes", ("rect", "c", 0.06, 0.56, 0.94, 0.92), ("rect", "w", 0.06, 0.44, 0.94, 0.58), ("rect", "k", 0.44, 0.16, 0.56, 0.44)),
    _kind("chair/chairs seat/seats", ("rect", "c", 0.2, 0.5, 0.8, 0.64), ("rect", "c", 0.2, 0.06, 0.34, 0.96), ("rect", "c", 0.68, 0.62, 0.8, 0.96)),
    _kind("table/tables desk/desks", ("rect", "c", 0.03, 0.26, 0.97, 0.42), ("rect", "k", 0.12, 0.42, 0.24, 0.94), ("rect", "k", 0.76, 0.42, 0.88, 0.94)),
    _kind("crown/crowns", ("poly", "c", 0.06, 0.86, 0.06, 0.2, 0.3, 0.52, 0.5, 0.12, 0.7, 0.52, 0.94, 0.2, 0.94, 0.86)),
    _kind("ring/rings", ("oval", "c", 0.16, 0.28, 0.84, 0.96), ("oval", "w", 0.32, 0.44, 0.68, 0.8), ("poly", "k", 0.36, 0.06, 0.64, 0.06, 0.5, 0.3)),
    _kind("leaf/leaves", ("poly", "c", 0.08, 0.92, 0.14, 0.4, 0.5, 0.1, 0.94, 0.06, 0.88, 0.52, 0.58, 0.86), ("line", "k", 0.05, 0.08, 0.92, 0.75, 0.25)),
    _kind("flower/flowers", ("oval", "c", 0.34, 0.02, 0.66, 0.36), ("oval", "c", 0.34, 0.6, 0.66, 0.96), ("oval", "c", 0.02, 0.34, 0.38, 0.66),
          ("oval", "c", 0.62, 0.34, 0.98, 0.66), ("oval", "k", 0.34, 0.34, 0.66, 0.66)),
    _kind("lamp/lamps", ("poly", "c", 0.3, 0.08, 0.7, 0.08, 0.92, 0.5, 0.08, 0.5), ("line", "k", 0.08, 0.5, 0.5, 0.5, 0.92), ("line", "k", 0.08, 0.26, 0.92, 0.74, 0.92)),
    _kind("book/books", ("poly", "c", 0.03, 0.24, 0.48, 0.34, 0.48, 0.88, 0.03, 0.78), ("poly", "c", 0.97, 0.24, 0.52, 0.34, 0.52, 0.88, 0.97, 0.78)),
    _kind("flag/flags", ("line", "k", 0.08, 0.16, 0.04, 0.16, 0.97), ("rect", "c", 0.18, 0.08, 0.92, 0.52)),
    _kind("tent/tents", ("poly", "c", 0.03, 0.92, 0.5, 0.1, 0.97, 0.92), ("poly", "w", 0.36, 0.92, 0.5, 0.5, 0.64, 0.92)),
    _kind("hat/hats", ("rect", "c", 0.26, 0.2, 0.74, 0.72), ("rect", "c", 0.04, 0.7, 0.96, 0.84), ("rect", "w", 0.26, 0.54, 0.74, 0.64)),
    _kind("glove/gloves mitten/mittens", ("oval", "c", 0.3, 0.06, 0.82, 0.66), ("rect", "c", 0.36, 0.4, 0.78, 0.78), ("line", "c", 0.16, 0.38, 0.6, 0.1, 0.36),
          ("rect", "k", 0.34, 0.78, 0.8, 0.94)),
    _kind("star/stars", ("poly", "c", *_ring(5, 0.49, 0.2))),
    _kind("moon/moons", ("poly", "c", 0.62, 0.05, 0.3, 0.12, 0.12, 0.36, 0.12, 0.64, 0.3, 0.88, 0.62, 0.95, 0.44, 0.74, 0.38, 0.5, 0.44, 0.26)),
    _kind("drum/drums", ("rect", "c", 0.1, 0.34, 0.9, 0.8), ("oval", "w", 0.1, 0.2, 0.9, 0.46), ("oval", "c", 0.1, 0.68, 0.9, 0.92), ("line", "k", 0.05, 0.2, 0.44, 0.5, 0.84, 0.8, 0.44)),
    _kind("bell/bells", ("poly", "c", 0.4, 0.1, 0.6, 0.1, 0.76, 0.36, 0.8, 0.66, 0.94, 0.8, 0.06, 0.8, 0.2, 0.66, 0.24, 0.36), ("oval", "k", 0.4, 0.76, 0.6, 0.96)),
)  # fmt: skip
BY_NAME = {kind.name: kind for kind in KINDS}
PARTNER = {kind.name: KINDS[index ^ 1].name for index, kind in enumerate(KINDS)}
PAIRS = tuple((KINDS[index].name, KINDS[index + 1].name) for index in range(0, len(KINDS), 2))


def object_vocabulary() -> dict[str, str]:
    """Every noun that names an object (singular, plural, synonym) -> the kind's name, for CHAIR."""
    return {word: kind.name for kind in KINDS for pair in kind.words for word in pair}


def article(noun: str) -> str:
    """``a`` or ``an``, by the noun's first letter (enough for the words of this world)."""
    return "an" if noun[0] in "aeiou" else "a"
