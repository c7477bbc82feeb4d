"""A polite request to stop: SIGTERM and SIGUSR1 set a flag, ranks agree on it, and the run saves and leaves.

The handler does nothing else, so a second signal changes nothing, and a save that is under way is finished.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stopped(Exception):
    """The run left because it was asked to; `saved` says whether its last step is in a checkpoint."""

    def __init__(self, reason: str, step: int, *, saved: bool):
        super().__init__(f"stopped by {reason} after step {step}")
        self.reason, self.step, self.saved = reason, step, saved


class StopRequest:
    """Context in which SIGTERM and SIGUSR1 are only noted; leaving it brings the former handlers back.

    at_once: raise Stopped from the handler instead, for the time in which there is nothing to save. Outside the main
    thread, where Python allows no handlers, it notes nothing.
    """

    def __init__(self, at_once: bool = False) -> None:
        self.received: str | None = None
        self.at_once = at_once
        self._former: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *failure: object) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)
        self._former = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number).name
        if self.at_once:
            self.at_once = False
            raise Stopped(self.received, 0, saved=False)

    def agreed(self, device: torch.device) -> bool:
        """Whether any rank was asked to stop (collective over ranks). All ranks get the same answer."""
        import torch

        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self.received is not None
        flag = torch.tensor(int(self.received is not None), device=device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        if flag.item() and self.received is None:
            self.received = "a signal to another rank"
        return bool(flag)


def shield_worker(worker: int) -> None:
    """For a data loader worker: leave signals to the process that trains, which ends its workers itself.

    Schedulers signal whole process groups. A worker that died of it would fail the step before the run could save.
    """
    for number in (*SIGNALS, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def end_workers(iterator: object) -> None:
    """End the workers of a data loader's iterator, which do not listen to signals; without workers nothing happens."""
    shut_down = getattr(iterator, "_shutdown_workers", None)
    if shut_down is not None:
        shut_down()
