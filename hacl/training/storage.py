"""Errors of a file system that is full, read-only or gone, told so that one can act on them."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

# What torch's zip writer says where a write failed; it raises RuntimeError and keeps errno to itself.
TORCH_WRITER = ("PytorchStreamWriter", "unexpected pos", "iostream error")


class StorageError(OSError):
    """Something could not be written; the message names the folder, the reason, and bytes needed and free."""


def gib(size: float) -> str:
    """Bytes for a reader: `1.25 GiB`, or `12.0 MiB` below one."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def free_bytes(folder: Path) -> int | None:
    """Bytes that a user may still write below `folder` (or its nearest parent); None where that is not known."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None
    return usage.free if usage.total else None


def is_storage_failure(error: BaseException) -> bool:
    """Whether an error is one of writing: OSError, safetensors' I/O errors, or those of torch's file writer."""
    if isinstance(error, OSError):
        return True
    if type(error).__name__ == "SafetensorError":
        return "I/O error" in str(error) or "os error" in str(error)
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in TORCH_WRITER)


def explain(error: BaseException, folder: Path, what: str, *, needed: int | None = None) -> StorageError:
    """The error to show for a failed write of `what` below `folder`. needed: bytes that it takes, where known."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
    free = free_bytes(folder)
    sizes = [f"{gib(needed)} needed"] if needed is not None else []
    sizes += [f"{gib(free)} free"] if free is not None else []
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or (free is not None and free < (needed or 2**20)):
        fix = "free space there or name another train.output_dir"
    elif number in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR):
        fix = "make it writable or name another train.output_dir"
    else:
        fix = "see that the file system works and has space"
    found = f" ({', '.join(sizes)})" if sizes else ""
    return StorageError(f"cannot write {what} to {folder}: {reason}{found}; {fix}")


@contextlib.contextmanager
def storage_errors(folder: Path | str, what: str, *, needed: int | None = None) -> Iterator[None]:
    """Turn failed writes inside into StorageError; every other error passes as it is."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        if not is_storage_failure(error):
            raise
        raise explain(error, Path(folder), what, needed=needed) from error


def check_writable(folder: Path | str, rank: int = 0) -> None:
    """Make the run folder and write a file in it, before anything slow starts. Raises StorageError."""
    folder = Path(folder)
    probe = folder / f".writable-{rank}"
    with storage_errors(folder, "the run folder"):
        folder.mkdir(parents=True, exist_ok=True)
        with probe.open("wb") as stream:
            stream.write(b"\0" * 4096)
            os.fsync(stream.fileno())
        probe.unlink()


def check_space(folder: Path | str, needed: int) -> None:
    """Refuse to start where not even one checkpoint of `needed` bytes fits. Raises StorageError."""
    free = free_bytes(Path(folder))
    if free is not None and free < needed:
        raise explain(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), Path(folder), "a checkpoint", needed=needed)
