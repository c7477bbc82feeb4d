"""Checkpoint folders that are complete or not there: written aside, flushed, renamed into place, pruned by renaming.

A save goes through `.tmp-checkpoint-<step>`. Files and folders are flushed to the disk, the manifest is written last,
and one rename makes `checkpoint-<step>`. A folder of that name that is already there stays as `.old-checkpoint-<step>`
until the new one is in place; what is pruned becomes `.gone-checkpoint-<step>` before its files go. So a kill at any
point leaves either the new checkpoint or all that was there before, and names that start with a dot are leftovers.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from hacl.training.storage import StorageError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
TEMPORARY, REPLACED, PRUNED = ".tmp-", ".old-", ".gone-"


def checkpoint_folder(run: Path | str, step: int) -> Path:
    """Where the finished checkpoint of a step lies."""
    return Path(run) / f"checkpoint-{step}"


def temporary_folder(run: Path | str, step: int) -> Path:
    """Where the checkpoint of a step is written."""
    return Path(run) / f"{TEMPORARY}checkpoint-{step}"


def checkpoints(run: Path | str) -> list[tuple[int, Path]]:
    """(step, folder) of what is named as a checkpoint, complete or not, by rising step."""
    found = []
    for folder in Path(run).glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        if match and folder.is_dir():
            found.append((int(match[1]), folder))
    return sorted(found)


def flush(folder: Path) -> None:
    """Write every file below a folder, and the folders themselves, through to the disk."""
    for path in sorted(folder.rglob("*")):
        _flush_one(path)
    _flush_one(folder)


def _flush_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # some file systems flush no folders
            raise
    finally:
        os.close(descriptor)


def check_ranks(folder: Path, ranks: int) -> None:
    """Raise StorageError where the random state of a rank is not in the folder: that rank writes to another disk."""
    names = ["rng_state.pth"] if ranks == 1 else [f"rng_state_{rank}.pth" for rank in range(ranks)]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise StorageError(
            f"{folder}: {', '.join(missing)} did not arrive; all machines must write to one shared file system"
        )


def publish(folder: Path, final: Path) -> None:
    """Rename a flushed folder, manifest included, to its final name; what has that name already goes afterwards."""
    _flush_one(folder)
    aside = final.with_name(REPLACED + final.name)
    if final.exists():
        remove(aside)
        os.replace(final, aside)
    os.replace(folder, final)
    _flush_one(final.parent)
    remove(aside)


def remove(folder: Path) -> bool:
    """Delete a folder with all it holds; says so and returns False where that fails, because nothing depends on it."""
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        logger.warning("could not remove %s (%s); remove it by hand", folder, error)
        return False
    return True


def clear_leftovers(run: Path | str) -> list[str]:
    """Tidy up after a process that was killed while it saved; one process calls this, before any resumes.

    Unfinished saves and half-removed checkpoints go. A checkpoint that had been set aside for a new one of the same
    step comes back if the new one never came. Returns the names of what was found.
    """
    found = []
    for folder in sorted(_leftovers(Path(run))):
        found.append(folder.name)
        final = folder.with_name(folder.name.removeprefix(REPLACED))
        if folder.name.startswith(REPLACED) and not final.exists():
            os.replace(folder, final)
        else:
            remove(folder)
    return found


def set_aside(folder: Path, mark: str) -> Path:
    """Rename a checkpoint so that it counts as none: `mark` before its name, with a number where that is taken."""
    aside, number = folder.with_name(mark + folder.name), 0
    while aside.exists():
        number += 1
        aside = folder.with_name(f"{mark}{folder.name}.{number}")
    os.replace(folder, aside)
    return aside


def _leftovers(run: Path) -> Iterator[Path]:
    for mark in (TEMPORARY, REPLACED, PRUNED):
        yield from run.glob(f"{mark}checkpoint-*")


def prune(run: Path | str, keep: int | None, *, newest: Path, best: str | Path | None = None) -> None:
    """Remove the oldest complete checkpoints beyond `keep` (None = all stay); never `newest` and never the best one.

    Folders without a manifest do not count and are not touched. A failed removal is reported and tried no further.
    """
    if keep is None:
        return
    complete = [folder for _, folder in checkpoints(run) if (folder / MANIFEST).is_file()]
    held = {newest.name} | ({Path(best).name} if best is not None else set())
    excess = max(len(complete) - keep, 0)
    for folder in [folder for folder in complete if folder.name not in held][:excess]:
        gone = folder.with_name(PRUNED + folder.name)
        try:
            os.replace(folder, gone)
        except OSError as error:
            logger.warning("could not remove %s (%s); remove it by hand", folder, error)
            continue
        remove(gone)
