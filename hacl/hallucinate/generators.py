"""The seam for generators of hallucinated captions: what one must offer, and the one place that knows them by name."""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from hacl.data.records import HallucinatedCaption, Record
from hacl.hallucinate.lexical import LexicalHallucinator


class Hallucinator(Protocol):
    """Makes hallucinated captions; `rejections` counts candidates that were thought of and refused, by reason."""

    rejections: Counter[str]

    def propose(self, record: Record, caption_index: int, k: int) -> list[HallucinatedCaption]:
        """Up to k different hallucinated captions of one caption, the same for the same arguments."""


_GENERATORS = {"lexical": LexicalHallucinator}


def make_hallucinator(name: str, **options) -> Hallucinator:
    """The generator called `name`, made with its own options. Raises ValueError for an unknown name."""
    if name not in _GENERATORS:
        raise ValueError(f"unknown generator {name!r}; available: {', '.join(_GENERATORS)}")
    return _GENERATORS[name](**options)
