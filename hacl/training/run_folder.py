"""A run folder belongs to one run at a time, and all ranks of that run see the same folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from hacl.training import runtime, storage

LOCK = ".lock"
SEEN_WITHIN = 10.0  # seconds that a network file system may take to show a new file


class UsedFolderError(ValueError):
    """Another process trains in this run folder."""


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the run folder (collective; the first rank locks `<folder>/.lock`). Raises UsedFolderError on all ranks.

    A POSIX record lock: the kernel releases it however the process ends, and loader workers do not inherit it, which
    may outlive a killed rank by some seconds. A file system without locks is named in a warning. A folder in which
    nothing was written by the end goes again: a run that was refused leaves nothing behind.
    """
    descriptor = runtime.on_first_rank(lambda: _lock(folder), otherwise=UsedFolderError)
    try:
        yield
    finally:
        if runtime.rank() == 0:
            _remove_if_unused(folder)
            os.close(descriptor)  # which releases it


def _remove_if_unused(folder: Path) -> None:
    with contextlib.suppress(OSError):
        if [path.name for path in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
            folder.rmdir()


def _lock(folder: Path) -> int:
    with storage.storage_errors(folder, LOCK):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise UsedFolderError(
            f"{folder}: another process ({holder or 'unknown'}) trains in this run folder; wait for it, end it, or "
            "choose another train.output_dir"
        ) from error
    except OSError as error:
        print(f"warning: {folder} cannot be locked ({error}); start no second run in it", file=sys.stderr, flush=True)
        return descriptor
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return descriptor


def check_shared(folder: Path) -> None:
    """See that what the first rank writes in the run folder is there for every rank (collective).

    Raises StorageError on all ranks, naming those that write to another disk.
    """
    if runtime.world_size() == 1:
        return
    token = runtime.on_first_rank(lambda: _leave(folder), otherwise=storage.StorageError)
    deadline = time.monotonic() + SEEN_WITHIN
    while not (is_seen := (folder / token).is_file()) and time.monotonic() < deadline:
        time.sleep(0.2)
    answers = runtime.all_ranks((is_seen, socket.gethostname()))
    if runtime.rank() == 0:
        (folder / token).unlink(missing_ok=True)
    blind = [f"rank {rank} on {host}" for rank, (seen, host) in enumerate(answers) if not seen]
    if blind:
        raise storage.StorageError(
            f"{folder}: {', '.join(blind)} cannot see what rank 0 on {answers[0][1]} wrote there; all machines must "
            "write to one shared file system, under the same train.output_dir"
        )


def _leave(folder: Path) -> str:
    token = f".seen-{secrets.token_hex(8)}"
    with storage.storage_errors(folder, token):
        (folder / token).touch()
    return token
