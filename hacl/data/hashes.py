"""Sets of texts by 64-bit hash: membership over millions of ids or captions in 16 to 32 bytes each.

Two different texts share a hash with probability n^2 / 2^65: one in a hundred million for the 558 thousand records of
LLaVA's pre-training set. Where a repeat is refused, the caller looks the texts up to be sure.
"""

from __future__ import annotations

import hashlib
from array import array


def hash64(text: str | bytes) -> int:
    """A number in [1, 2^64) that names a text in every process."""
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") or 1


class HashSet:
    """A set of non-zero 64-bit numbers in one flat array (open addressing, at most half full)."""

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * 1024))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: int) -> bool:
        return self._slots[self._place(key)] == key

    def add(self, key: int) -> bool:
        """Whether the key is new."""
        place = self._place(key)
        if self._slots[place] == key:
            return False
        self._slots[place] = key
        self._count += 1
        if 2 * self._count > len(self._slots):
            self._grow()
        return True

    @property
    def bytes(self) -> int:
        return 8 * len(self._slots)

    def _place(self, key: int) -> int:
        slots, mask = self._slots, len(self._slots) - 1
        place = key & mask
        while slots[place] != 0 and slots[place] != key:
            place = (place + 1) & mask
        return place

    def _grow(self) -> None:
        old = self._slots
        self._slots = array("Q", bytes(16 * len(old)))
        for key in old:
            if key:
                self._slots[self._place(key)] = key
