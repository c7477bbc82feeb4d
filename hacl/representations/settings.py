"""The choices of one capture, checked. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hacl.representations.selectors import Selector, parse_selectors

MODES = ("teacher_forced", "free")
ADAPTERS = ("on", "off", "both")
OCCURRENCES = ("all", "first")
WINDOW = 16


@dataclass(frozen=True)
class Settings:
    """What `capture` takes, by the same names; see there."""

    select: str | Sequence[str]
    mode: str = "teacher_forced"
    occurrences: str = "all"
    classes: Mapping[str, Sequence[str]] | None = None
    batch_size: int = 16
    max_new_tokens: int = 64
    part_bytes: int = 256 << 20
    max_bytes: int = 32 << 30

    def __post_init__(self) -> None:
        for name, allowed in (("mode", MODES), ("occurrences", OCCURRENCES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(allowed)}")
        for name in ("batch_size", "max_new_tokens", "part_bytes", "max_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")

    def selectors(self) -> list[Selector]:
        return parse_selectors(self.select, self.classes)

    @property
    def window(self) -> int:
        """Samples that are sorted by length together; commits and ranks begin at multiples of it."""
        return WINDOW * self.batch_size

    def describe(self) -> dict:
        """For the manifest: everything here that a row depends on."""
        specs = [selector.spec for selector in self.selectors()]
        used = {
            name: list(words) for name, words in (self.classes or {}).items() if any(f"@{name}" in s for s in specs)
        }
        return {
            "mode": self.mode,
            "selectors": specs,
            "classes": used,
            "occurrences": self.occurrences,
            "batch_size": self.batch_size,
        }
