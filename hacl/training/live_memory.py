"""Bytes of tensors that are alive, followed operation by operation: the peak of a step without asking an allocator.

Works on real tensors and on fake ones (shapes without numbers, `torch._subclasses.FakeTensorMode`), so the same count
is a measurement of a model that fits and a prediction for one that does not. What a kernel needs inside itself is not
seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Within the context, `current` and `peak` bytes of storages made since it began; `known` ones do not count."""

    def __init__(self, known: Iterable[Tensor] = ()):
        super().__init__()
        self.current = self.peak = 0
        self._alive: dict[int, int] = {}
        self._known = {_key(tensor) for tensor in known}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, Tensor):
                self._follow(tensor)
        return results

    def _follow(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), _key(tensor)
        if key in self._alive or key in self._known:
            return
        self._alive[key] = storage.nbytes()
        self.current += self._alive[key]
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.current -= self._alive.pop(key, 0)


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
