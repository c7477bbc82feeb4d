"""Run a function on several gloo ranks of this machine and bring back what each returned.

The process group is made over a file, so no port is guessed for it; MASTER_ADDR and MASTER_PORT are set for libraries
that insist on them.
"""

from __future__ import annotations

import io
import os
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path


def run_ranks(fn: Callable, world_size: int, *args, timeout: float = 120.0) -> list:
    """[fn(rank, *args) for every rank], each in a fresh process with `torch.distributed` ready on gloo.

    fn: importable (module level). Results may hold tensors, numbers, strings and containers of them.
    timeout: seconds for all of it. The first error or a timeout ends all ranks; RuntimeError then carries the rank's
    traceback, TimeoutError the ranks that were still busy.
    """
    import torch

    context = torch.multiprocessing.get_context("spawn")
    deadline = time.monotonic() + timeout
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        ranks, receivers = [], []
        for rank in range(world_size):
            receiver, sender = context.Pipe(duplex=False)
            setting = (rank, world_size, str(Path(folder) / "store"), port, timeout)
            process = context.Process(target=_run_rank, args=(fn, setting, sender, args), daemon=True)
            process.start()
            sender.close()
            ranks.append(process)
            receivers.append(receiver)
        try:
            return _collect(receivers, ranks, deadline)
        finally:
            for process in ranks:
                process.join(timeout=5)
                if process.is_alive():
                    process.kill()
                    process.join()


def _collect(receivers: list, ranks: list, deadline: float) -> list:
    import torch

    results: dict[int, object] = {}
    while len(results) < len(ranks):
        busy = [rank for rank in range(len(ranks)) if rank not in results]
        ready = wait([receivers[rank] for rank in busy], timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            _kill(ranks)
            raise TimeoutError(f"ranks {busy} of {len(ranks)} did not finish in time")
        for rank in [rank for rank in busy if receivers[rank] in ready]:
            try:
                succeeded, payload = receivers[rank].recv()
            except EOFError:
                ranks[rank].join(timeout=5)
                _kill(ranks)
                raise RuntimeError(f"rank {rank} died with exit code {ranks[rank].exitcode}") from None
            if not succeeded:
                _kill(ranks)
                raise RuntimeError(f"rank {rank} failed:\n{payload}")
            results[rank] = torch.load(io.BytesIO(payload), weights_only=True)
    return [results[rank] for rank in range(len(ranks))]


def _kill(ranks: list) -> None:
    for process in ranks:
        process.kill()


def _run_rank(fn: Callable, setting: tuple, sender, args: tuple) -> None:
    rank, world_size, store, port, timeout = setting
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1",
    )  # fmt: skip
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(store, world_size),
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout),
        )
        result = fn(rank, *args)
        dist.barrier()
        dist.destroy_process_group()
        payload = io.BytesIO()
        torch.save(result, payload)
        sender.send((True, payload.getvalue()))
    except Exception:  # whatever it was, the parent reports it
        sender.send((False, traceback.format_exc()))
    finally:
        sender.close()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
