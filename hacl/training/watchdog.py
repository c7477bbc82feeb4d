"""Says which rank hangs: every rank leaves word of its step and phase, and one that waits too long reads them all.

A collective that times out only says that somebody did not come. Heartbeats go through the store of the process group,
whose server answers while Python sleeps; a thread on every rank writes down where its main thread is once nothing has
moved for most of the timeout, and prints what all ranks left.
"""

from __future__ import annotations

import faulthandler
import json
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch

from hacl.plain_text import short_line

PREFIX = "hacl/heartbeat"
NAMED = 8  # records in a heartbeat
EARLY = 0.8  # share of the timeout after which a standstill is reported, before the collective gives up
WAITING = ("torch/distributed", "nn/parallel/distributed", "deepspeed/comm", "autograd/graph")  # where it is quiet
LOST = ("timed out", "timeout", "connection closed", "connection reset", "communicator was aborted", "broken pipe")
LOADER = "dataloader worker"  # whose end is told in words like those above


class HungRankError(TimeoutError):
    """A collective was given up; the message names the ranks that did not come, with their last step and phase."""


class Watchdog:
    """Heartbeats of one rank. `beat` at every phase; `start` and `stop` the thread that watches for a standstill.

    seconds: the timeout of the process group; store: key-value store that all ranks reach (None: that of the group, or
    a dictionary of this process alone).
    """

    def __init__(self, seconds: float, *, rank: int = 0, ranks: int = 1, store: Any = None):
        self.seconds, self.rank, self.ranks = seconds, rank, ranks
        self._store = store
        self._mine: dict[str, Any] = {"count": 0, "step": 0, "phase": "start", "records": []}
        self._last, self._reported = time.monotonic(), -1
        self._done, self._lock = threading.Event(), threading.Lock()
        self._thread: threading.Thread | None = None
        self._main = threading.get_ident()

    def start(self) -> None:
        """Begin to watch."""
        if self._store is None:
            self._store = _group_store(self.seconds) if self.ranks > 1 else _Local()
        self._done.clear()
        self._leave_word()
        self._thread = threading.Thread(target=self._watch, name="hacl-watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; heartbeats after this are noted by nobody."""
        self._done.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
            self._thread = None

    def beat(self, phase: str, *, step: int, records: Sequence[str] | None = None) -> None:
        """This rank enters `phase` of `step`. records: ids it works on (None: those it had). All ranks beat alike."""
        if self._thread is None:
            return
        with self._lock:
            ids = self._mine["records"] if records is None else list(records)[:NAMED]
            self._mine = {"count": self._mine["count"] + 1, "step": step, "phase": phase, "records": ids}
            self._last = time.monotonic()
            self._leave_word()

    def _leave_word(self) -> None:
        self._store.set(f"{PREFIX}/{self.rank}", json.dumps(self._mine))

    def _watch(self) -> None:
        pause = min(self.seconds / 20, 5.0)
        while not self._done.wait(pause):
            count = self._mine["count"]
            if time.monotonic() - self._last < EARLY * self.seconds or self._reported == count:
                continue
            where = _where(self._main)
            with self._lock:
                if self._mine["count"] != count:  # it moved on meanwhile
                    continue
                self._reported = count
                self._mine = self._mine | {"where": where}
                self._leave_word()
            time.sleep(pause)  # so that the others' stacks are there too
            print(f"rank {self.rank}: {self.describe()}", file=sys.stderr, flush=True)
            faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)

    def everyone(self) -> list[dict[str, Any] | None]:
        """The last word of every rank, None of one that never came."""
        keys = [f"{PREFIX}/{rank}" for rank in range(self.ranks)]
        return [json.loads(self._store.get(key)) if self._store.check([key]) else None for key in keys]

    def describe(self) -> str:
        """One paragraph: for how long nothing has moved, who has not arrived, and where every rank was last."""
        words = self.everyone()
        late = late_ranks(words)
        seconds = time.monotonic() - self._last
        head = f"no progress for {seconds:.0f} s"
        if late and self.ranks > 1:
            head += f"; waiting for rank {', '.join(map(str, late))}"
        return "; ".join([head, *(f"rank {rank}: {_told(word)}" for rank, word in enumerate(words))])

    def blame(self, error: RuntimeError) -> HungRankError | None:
        """What a failed collective means; None when the error is of another kind."""
        said = str(error).lower()
        if self.ranks == 1 or LOADER in said or not any(mark in said for mark in LOST):
            return None
        try:
            told = self.describe()
        except RuntimeError:  # the store went down with the process that kept it
            told = "the heartbeats are gone with the process that kept them"
        return HungRankError(
            f"ranks lost each other (train.timeout_minutes={self.seconds / 60:g}); {told}. Run the same command again "
            "to resume from the last checkpoint"
        )


def late_ranks(words: Sequence[dict[str, Any] | None]) -> list[int]:
    """Ranks that are behind the others; where all came equally far, those that do not wait in a collective."""
    counts = [-1 if word is None else word["count"] for word in words]
    behind = [rank for rank, count in enumerate(counts) if count < max(counts)]
    if behind:
        return behind
    busy = [rank for rank, word in enumerate(words) if not _waits(word)]
    return busy if len(busy) < len(words) else []


def _waits(word: dict[str, Any]) -> bool:
    return any(mark in word.get("where", WAITING[0]) for mark in WAITING)


def _told(word: dict[str, Any] | None) -> str:
    if word is None:
        return "never started to train"
    records = f", records {', '.join(map(short_line, word['records']))}" if word["records"] else ""
    return f"step {word['step']}, {word['phase']}{records}" + (f", in {word['where']}" if "where" in word else "")


def _where(thread: int) -> str:
    """Innermost frames of a thread, the last one last: `file:line function`."""
    frame, found = sys._current_frames().get(thread), []
    while frame is not None and len(found) < 4:
        name = "/".join(frame.f_code.co_filename.split("/")[-3:])
        found.append(f"{name}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(found)


class _Local:
    """A store for a process without ranks."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}

    def set(self, key: str, value: str) -> None:
        self._values[key] = value

    def get(self, key: str) -> str:
        return self._values[key]

    def check(self, keys: Sequence[str]) -> bool:
        return all(key in self._values for key in keys)


def _group_store(seconds: float) -> Any:
    """A connection of its own to the store of the process group, so that no thread waits for another's call."""
    store = torch.distributed.distributed_c10d._get_default_store()
    return store.clone() if hasattr(store, "clone") else store
