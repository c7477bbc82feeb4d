"""Map a function over a stream with several processes: results in order, memory bounded, workers that die with us."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
AHEAD = 3  # items in flight per worker: enough to keep it busy, few enough to bound memory

_state: Any = None


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def chunked(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last one shorter."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


def ordered_map(
    setup: Callable[[], Any], work: Callable[[Any, Item], Result], items: Iterable[Item], *, workers: int
) -> Iterator[Result]:
    """`work(state, item)` for each item, in the order of the items; `state = setup()` once per process.

    setup and work are picklable (functions of a module, functools.partial). One worker or item means this process.
    At most `AHEAD` items per worker are in flight. Raises what `work` raises, and RuntimeError when a worker is killed.
    """
    rest = iter(items)
    first = list(islice(rest, 2))
    items = chain(first, rest)
    if workers <= 1 or len(first) < 2:
        state = setup()
        for item in items:
            yield work(state, item)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(setup,))
    waiting: deque = deque()
    try:
        for item in items:
            waiting.append(pool.submit(_run, work, item))
            if len(waiting) >= AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise RuntimeError("a worker process was killed, perhaps for memory; use fewer --workers") from error
    finally:
        for future in waiting:
            future.cancel()
        pool.shutdown(wait=True, cancel_futures=True)


def _start(setup: Callable[[], Any]) -> None:
    global _state
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the run in good order
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _state = setup()


def _end_with_parent() -> None:
    """A parent that is killed cannot say so; its end is seen here."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(work: Callable[[Any, Item], Result], item: Item) -> Result:
    return work(_state, item)
