"""Where a run goes on: its checkpoint, the branch that this makes the newest, and what its state says of the best one.

Steps above the checkpoint that a run resumes from belong to a past that it leaves. Their folders are set aside as
`abandoned-checkpoint-<step>`, so that no later start takes them for the newest and pruning does not count them.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from transformers import TrainerState

from hacl.config import Config
from hacl.training import checkpoint_store, manifest, runtime

RESULT = "result.json"
BRANCH = "branch.json"  # {"from": name of the checkpoint that train.resume named when this branch began}
ABANDONED = "abandoned-"
CHOICE = ("train.best_metric", "train.best_is_greater", "data.eval_path")  # what makes one checkpoint the best


def refuse_used_folder(config: Config) -> None:
    """With train.resume=none, refuse a run folder that holds checkpoints: old and new ones would mix under one name."""
    output = Path(config.train.output_dir)
    held = sorted(path.name for path in output.glob("checkpoint-*"))
    if config.train.resume == "none" and held:
        raise manifest.CheckpointError(
            f"{output} already holds {', '.join(held[:3])}{', ...' if len(held) > 3 else ''}, and train.resume=none "
            "starts anew; choose another train.output_dir, remove that folder, or continue with train.resume=auto"
        )


def find_resume(config: Config, base: str, data: str) -> str | None:
    """The checkpoint to resume from, verified against this run, or None to start anew.

    The first rank looks, once it has removed what a killed save left, and tells the others (collective).
    """
    return runtime.on_first_rank(lambda: _find_resume(config, base, data), otherwise=manifest.CheckpointError)


def _find_resume(config: Config, base: str, data: str) -> str | None:
    output = Path(config.train.output_dir)
    for name in checkpoint_store.clear_leftovers(output):
        _say(f"removed {name}, left by a process that was killed while it saved")
    if config.train.resume == "none":
        return None
    folder = manifest.newest_checkpoint(output) if config.train.resume == "auto" else _named(config, output)
    if folder is None:
        return None
    manifest.check_compatible(folder, config, base=base, data=data, ranks=runtime.world_size())
    return str(folder)


def _named(config: Config, output: Path) -> Path:
    """The checkpoint that train.resume names, or the newest one if the run already went on from there."""
    folder = Path(config.train.resume)
    if folder.resolve().parent != output.resolve():
        raise manifest.CheckpointError(
            f"train.resume={folder}: only checkpoints inside train.output_dir ({output}) are resumed; to start "
            "from its weights, export it and set model.path"
        )
    if _read(output / BRANCH).get("from") != folder.name:
        return folder
    newest = manifest.newest_checkpoint(output)
    if newest is None or newest.name == folder.name:
        return folder
    _say(
        f"this run already went on from {folder.name}: continuing with {newest.name}; to go back to {folder.name} once "
        f"more, remove {output / BRANCH}"
    )
    return newest


def begin_branch(config: Config, resume: str | None) -> None:
    """Make the checkpoint that is resumed the newest of the run folder (collective; the first rank acts)."""
    runtime.on_first_rank(lambda: _begin_branch(config, resume), otherwise=manifest.CheckpointError)


def _begin_branch(config: Config, resume: str | None) -> None:
    output = Path(config.train.output_dir)
    step = -1 if resume is None else manifest.load_manifest(resume)["step"]
    for later, folder in reversed(checkpoint_store.checkpoints(output)):
        if later > step:
            aside = checkpoint_store.set_aside(folder, ABANDONED)
            _say(f"{folder.name} is set aside as {aside.name}: this run goes on from {resume or 'its start'}")
    if resume is not None and config.train.resume != "auto":
        temporary = output / f".{BRANCH}.tmp"
        temporary.write_text(json.dumps({"from": Path(config.train.resume).name}), encoding="utf-8")
        os.replace(temporary, output / BRANCH)


def settle_best(state: TrainerState, checkpoint: Path | str, config: Config) -> None:
    """Of the state that a checkpoint holds, keep the best step only if it was chosen as this run chooses, and is there.

    Otherwise the choice begins anew: losses on other records, or another metric, do not compare.
    """
    then = manifest.flatten(Config()) | manifest.flatten(manifest.load_manifest(checkpoint)["config"])
    now = manifest.flatten(config)
    best = checkpoint_store.checkpoint_folder(config.train.output_dir, state.best_global_step or 0)
    if all(then.get(key) == now[key] for key in CHOICE) and state.best_global_step and best.is_dir():
        state.best_model_checkpoint = str(best)
    else:
        state.best_metric = state.best_global_step = state.best_model_checkpoint = None


def earlier_result(output: Path, step: int) -> dict[str, Any] | None:
    """`result.json` of a run that was finished at `step`; None where there is none that can be read, or another's."""
    found = _read(output / RESULT)
    return found if found.get("step") == step and (output / str(found.get("checkpoint"))).is_dir() else None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
