"""What steps report and how fast they are, reduced over ranks once per log line; the hot path stays on the device."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hacl.training.flops import Execution, StepCost
from hacl.training.work import Work


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

    def state(self) -> dict[str, list[float]]:
        """What `load` goes on from: name -> [sum, count] of this rank."""
        return {name: pair.tolist() for name, pair in self._totals.items()}

    def load(self, state: dict[str, list[float]], device: torch.device) -> None:
        """Go on from what `state` returned."""
        self._totals = {name: torch.tensor(pair, dtype=torch.float64, device=device) for name, pair in state.items()}

    def reduce(self) -> dict[str, tuple[float, float]]:
        """Collective over ranks. Returns name -> (sum, count) and clears; a name only some ranks have is allowed."""
        local = self.state()
        self._totals = {}
        merged: dict[str, tuple[float, float]] = {}
        for part in _everywhere(local):
            for name, (total, count) in part.items():
                before = merged.get(name, (0.0, 0.0))
                merged[name] = (before[0] + total, before[1] + count)
        return merged


def ratios(merged: dict[str, tuple[float, float]]) -> dict[str, float]:
    """name -> sum / count, without the names that counted nothing."""
    return {name: total / count for name, (total, count) in merged.items() if count}


@dataclass(frozen=True)
class Utilisation:
    """What utilisation is measured with. cost: of each unit of the model; peak: FLOP/s of this rank's device."""

    cost: StepCost
    peak: float
    execution: Execution


class Throughput:
    """Rates of training since the last log line. Counts stay on the device, which only `reduce` and `paused` wait for.

    utilisation: None where the peak of the device is not known; `mfu` and `hfu` are then left out.
    """

    def __init__(self, utilisation: Utilisation | None = None) -> None:
        self.utilisation = utilisation
        self.clear()

    def clear(self) -> None:
        self.started = time.perf_counter()
        self.waited = 0.0
        self.steps = 0
        self._work: Tensor | None = None

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time spent inside, once the device has finished what training queued."""
        _synchronise()
        began = time.perf_counter()
        try:
            yield
        finally:
            self.started += time.perf_counter() - began

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the loading of the micro-batches of one step."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.waited += time.perf_counter() - began
            self.steps += 1

    def add(self, batch: dict[str, Tensor]) -> None:
        """batch: of a `CountingCollator`."""
        work = batch["work"]
        self._work = work if self._work is None else self._work + work

    def reduce(self) -> dict[str, float]:
        """Collective. Rates are of all ranks together; waiting and memory of the rank with most of it."""
        _synchronise()
        seconds = max(time.perf_counter() - self.started, 1e-9)
        work = Work() if self._work is None else Work(*self._work.tolist())
        used = self.utilisation
        done = (
            (used.cost.minimal(work), used.cost.executed(work, used.execution), used.peak) if used else (0.0, 0.0, 0.0)
        )
        parts = _everywhere((work, self.waited, memory_gib(), *done))
        works, waited, memory, minimal, executed, peaks = zip(*parts, strict=True)
        steps = self.steps
        self.clear()
        total = sum(works, Work())
        if not total.samples:
            return {}
        rates = {
            "samples_per_second": total.samples / seconds,
            "tokens_per_second": total.tokens / seconds,
            "label_tokens_per_second": total.labels / seconds,
            "padding_percent": 100.0 * (1.0 - total.tokens / max(total.slots, 1)),
            "data_wait_percent": 100.0 * min(1.0, max(waited) / seconds),
            **{name: max(rank[name] for rank in memory) for name in memory[0]},
        }
        if steps:
            rates["seconds_per_step"] = max(0.0, seconds - max(waited)) / steps
        if all(peaks):
            rates["mfu"] = sum(minimal) / (seconds * sum(peaks))
            rates["hfu"] = sum(executed) / (seconds * sum(peaks))
        return rates


def memory_gib() -> dict[str, float]:
    """Peak memory of this process in GiB: `memory_gib` allocated on the GPU, with `memory_reserved_gib` held by its
    allocator, or resident where there is no GPU."""
    if torch.cuda.is_available():
        return {
            "memory_gib": torch.cuda.max_memory_allocated() / 2**30,
            "memory_reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
        }
    unit = 1 if sys.platform == "darwin" else 1024
    return {"memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _everywhere(value) -> list:
    """What every rank passed, in rank order."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
