"""Which model, data and settings a checkpoint belongs to, and whether it is complete.

`manifest.json` is written last, so a checkpoint folder without one that verifies was interrupted and is skipped.
Resuming reads optimizer and RNG state only from the run's own folder, after its manifest verifies against the run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hacl.config import Config
from hacl.data.records import Record, record_to_json
from hacl.models.identity import fingerprint as fingerprint
from hacl.models.identity import model_folder as model_folder
from hacl.models.identity import versions
from hacl.training.checkpoint_store import MANIFEST as MANIFEST
from hacl.training.checkpoint_store import checkpoints

FORMAT = "hacl-checkpoint-1"
HASH_LIMIT = 2**30  # files above 1 GiB are checked by size alone
SHAPE = {"step": int, "ranks": int, "base": dict, "data": str, "config": dict, "files": dict}
# Settings a resumed run may change: where and how often things are written, and how long it goes on.
FREE = {
    "model.path",
    "model.revision",
    "data.path",
    "data.eval_path",
    "data.image_root",
    "data.max_bad_fraction",
    "data.max_unlabelled_fraction",
    "train.output_dir",
    "train.epochs",
    "train.max_steps",
    "train.per_device_eval_batch_size",
    "train.save_steps",
    "train.save_total_limit",
    "train.eval_steps",
    "train.best_metric",
    "train.best_is_greater",
    "train.resume",
    "train.preempt_exit_code",
    "train.timeout_minutes",
    "train.on_nonfinite",
    "train.max_nonfinite_skips",
    "train.num_workers",
    "train.cache_vision_features",
    "train.cache_text_states",
    "train.cache_dir",
    "train.text_cache",
}


class CheckpointError(ValueError):
    """A checkpoint that must not be used here; the message says why and what to do."""


def data_fingerprint(records: Iterable[Record]) -> str:
    """Names the training records by all they hold, in order: images, texts, conversations, spans, extra keys."""
    digest = hashlib.blake2b(digest_size=8)
    for record in records:
        digest.update(json.dumps(record_to_json(record), sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"train.seed": 0, ...} of nested dictionaries or dataclasses."""
    values = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def write_manifest(folder: Path, config: Config, *, base: str, data: str, step: int, ranks: int) -> None:
    """List the files of a finished checkpoint. base and data: fingerprints of base checkpoint and records."""
    files = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != MANIFEST:
            size = file.stat().st_size
            entry: dict[str, Any] = {"size": size}
            if size <= HASH_LIMIT:
                entry["sha256"] = _sha256(file)
            files[file.relative_to(folder).as_posix()] = entry
    content = {
        "format": FORMAT,
        "step": step,
        "ranks": ranks,
        "base": {"path": config.model.path, "revision": config.model.revision, "fingerprint": base},
        "data": data,
        "config": dataclasses.asdict(config),
        "versions": versions(),
        "files": files,
    }
    temporary = folder / f"{MANIFEST}.tmp"
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, folder / MANIFEST)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def load_manifest(folder: Path | str) -> dict:
    """The manifest of a checkpoint whose files are not looked at. Raises CheckpointError, whatever is wrong with it."""
    path = Path(folder) / MANIFEST
    try:
        if not path.is_file():
            raise CheckpointError(
                f"{folder}: no {MANIFEST}; the checkpoint is not ours or was interrupted while saving"
            )
        content = json.loads(path.read_text(encoding="utf-8"))
    except CheckpointError:
        raise
    except (ValueError, RecursionError, OSError) as error:
        raise CheckpointError(f"{path}: damaged or unreadable: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{path}: format {found!r}, this version reads {FORMAT!r}")
    wrong = [name for name, kind in SHAPE.items() if not isinstance(content.get(name), kind)]
    if not wrong:
        wrong = [f"files/{name}" for name, entry in content["files"].items() if not _is_entry(entry)]
    if wrong:
        raise CheckpointError(f"{path}: damaged: {wrong[0]} is missing or not what it should be")
    return content


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("size"), int) and isinstance(entry.get("sha256", ""), str)


def read_manifest(folder: Path | str) -> dict:
    """The manifest of a complete checkpoint. Raises CheckpointError naming the file that is missing or changed."""
    folder = Path(folder)
    content = load_manifest(folder)
    for name, entry in content["files"].items():
        try:
            _verify(folder, name, entry)
        except OSError as error:
            raise CheckpointError(f"{folder}: {name} cannot be read: {error}") from error
    return content


def _verify(folder: Path, name: str, entry: dict[str, Any]) -> None:
    file = folder / name
    if not file.is_file() or file.stat().st_size != entry["size"]:
        raise CheckpointError(f"{folder}: {name} is missing or has another size than the manifest says")
    if "sha256" in entry and _sha256(file) != entry["sha256"]:
        raise CheckpointError(f"{folder}: the content of {name} is not what the manifest says")


def check_compatible(folder: Path | str, config: Config, *, base: str, data: str, ranks: int) -> dict:
    """Refuse to resume from a checkpoint of another model, data set, number of ranks or setting."""
    content = read_manifest(folder)
    if content["base"].get("fingerprint") != base:
        raise CheckpointError(
            f"{folder}: checkpoint of another model: it was trained from {content['base'].get('path')} "
            f"({content['base'].get('fingerprint')}), this run starts from {config.model.path} ({base}); "
            "set model.path to that model or train.resume=none with another train.output_dir"
        )
    if content["data"] != data:
        raise CheckpointError(f"{folder}: trained on other records; use the same data.path or another train.output_dir")
    if content["ranks"] != ranks:
        raise CheckpointError(f"{folder}: saved by {content['ranks']} rank(s), this run has {ranks}; use as many")
    # A setting that did not exist when the checkpoint was written had the effect that its default has.
    before, now = flatten(Config()) | flatten(content["config"]), flatten(config)
    changed = [
        f"{key}: {before.get(key)!r} there, {now.get(key)!r} here"
        for key in sorted({*before, *now})
        if key not in FREE and not key.startswith("log.") and before.get(key) != now.get(key)
    ]
    if changed:
        raise CheckpointError(
            f"{folder}: settings differ from the checkpoint's ({'; '.join(changed)}); restore them, or start anew with "
            "another train.output_dir"
        )
    return content


def newest_checkpoint(run: Path | str) -> Path | None:
    """The checkpoint of the highest step in a run folder whose manifest verifies; None if there is none.

    Says on standard error which later ones it passes over, and why.
    """
    for _, folder in reversed(checkpoints(run)):
        try:
            read_manifest(folder)
        except CheckpointError as error:
            print(f"passing over {error}", file=sys.stderr, flush=True)
            continue
        return folder
    return None
