"""Sums and counts of what a step reports, reduced over ranks once per log line; the hot path stays on the device."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator

import torch
from torch import Tensor


class ReportMeter:
    """Accumulates name -> (sum, count); `reduce` gives the ratio over all ranks and starts again."""

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}

    def add(self, report: dict[str, tuple[Tensor, Tensor]]) -> None:
        """report values are 0-d tensors; sums and counts are kept in fp64 on their device."""
        for name, (total, count) in report.items():
            pair = torch.stack([total.detach().double().reshape(()), count.detach().double().reshape(())])
            known = self._totals.get(name)
            self._totals[name] = pair if known is None else known + pair

    def reduce(self) -> dict[str, tuple[float, float]]:
        """Collective over ranks. Returns name -> (sum, count) and clears; a name only some ranks have is allowed."""
        local = {name: pair.tolist() for name, pair in self._totals.items()}
        self._totals = {}
        everywhere = [local]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            everywhere = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(everywhere, local)
        merged: dict[str, tuple[float, float]] = {}
        for part in everywhere:
            for name, (total, count) in part.items():
                before = merged.get(name, (0.0, 0.0))
                merged[name] = (before[0] + total, before[1] + count)
        return merged


def ratios(merged: dict[str, tuple[float, float]]) -> dict[str, float]:
    """name -> sum / count, without the names that counted nothing."""
    return {name: total / count for name, (total, count) in merged.items() if count}


class Throughput:
    """Samples and tokens per second of training since the last log line, on this rank; `paused` time does not count."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.started = time.perf_counter()
        self.samples = 0
        self.tokens = 0
        self.slots = 0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time spent inside, once the device has finished what training queued."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        began = time.perf_counter()
        try:
            yield
        finally:
            self.started += time.perf_counter() - began

    def add(self, batch: dict[str, Tensor]) -> None:
        self.samples += batch["sample_index"].numel()
        self.tokens = self.tokens + (batch["segment_ids"] > 0).sum()
        self.slots += batch["segment_ids"].numel()

    def reduce(self) -> dict[str, float]:
        """Collective: samples/s and non-padding tokens/s of the whole job, padding in percent, memory of the worst."""
        seconds = max(time.perf_counter() - self.started, 1e-9)
        local = (self.samples, int(self.tokens), self.slots, memory_gib())
        everywhere = [local]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            everywhere = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(everywhere, local)
        self.clear()
        samples, tokens, slots = (sum(part[i] for part in everywhere) for i in range(3))
        if not samples:
            return {}
        return {
            "samples_per_second": samples / seconds,
            "tokens_per_second": tokens / seconds,
            "padding_percent": 100.0 * (1.0 - tokens / max(slots, 1)),
            "memory_gib": max(part[3] for part in everywhere),
        }


def memory_gib() -> float:
    """Peak memory of this process in GiB: allocated on the GPU, or resident where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
