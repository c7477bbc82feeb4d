"""Keeps the tokens found for sizes of images, in little memory: photographs come in thousands of sizes."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence


class KeptTokens:
    """Named lists of integers under keys; those asked for least recently go once all take more than `room` bytes.

    room: the default holds some 25,000 images of 600 tokens, at four bytes each.
    """

    def __init__(self, room: int = 64 << 20):
        self.room = room
        self._held: OrderedDict[Hashable, dict[str, array]] = OrderedDict()
        self._bytes = 0

    def __contains__(self, key: Hashable) -> bool:
        return key in self._held

    def __len__(self) -> int:
        return len(self._held)

    def put(self, key: Hashable, lists: Mapping[str, Sequence[int]]) -> None:
        self._forget(key)
        self._held[key] = {name: array("i", values) for name, values in lists.items()}
        self._bytes += self._size(key)
        while self._bytes > self.room and len(self._held) > 1:
            self._forget(next(iter(self._held)))

    def get(self, key: Hashable, name: str) -> list[int]:
        """Raises KeyError where nothing is kept."""
        self._held.move_to_end(key)
        return self._held[key][name].tolist()

    def _forget(self, key: Hashable) -> None:
        if key in self._held:
            self._bytes -= self._size(key)
            del self._held[key]

    def _size(self, key: Hashable) -> int:
        return sum(len(values) * values.itemsize for values in self._held[key].values())
