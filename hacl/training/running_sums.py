"""What each rank has summed up since the last log line, as a checkpoint keeps it.

Without it the first line after a resume would be the mean of fewer steps. Sums of ranks are kept apart, because adding
them up in another order would change the last bit of a mean.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def path_of(folder: Path | str, rank: int) -> Path:
    """The file of one rank in a checkpoint."""
    return Path(folder) / f"running_sums_{rank}.json"


def write(folder: Path | str, rank: int, sums: dict[str, Any]) -> None:
    """sums: JSON values; floating-point numbers come back to the bit."""
    path_of(folder, rank).write_text(json.dumps(sums), encoding="utf-8")


def read(folder: Path | str, rank: int) -> dict[str, Any]:
    """What `write` wrote; empty for a checkpoint of an earlier version, which kept no sums."""
    path = path_of(folder, rank)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
