"""Which weights a checkpoint folder holds, and which library versions read them: the names that artefacts carry."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

HUB = "hub:"
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
COMMIT = re.compile(r"[0-9a-f]{40}")
# What stock classes read of a repository: settings, safetensors, tokenizer, chat templates. No pickle, no code.
READ = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
UNREAD = ("*/*.safetensors", "consolidated*.safetensors")  # weights in another layout


def parse_hub(text: str) -> tuple[str, str | None]:
    """(name, revision) of ``hub:owner/name@REVISION``, revision None where none is given.

    Raises:
        ValueError: no name, or nothing after the @.
    """
    name, at, revision = text.removeprefix(HUB).partition("@")
    if not HUB_NAME.fullmatch(name) or (at and not revision):
        raise ValueError(f"{text}: expected hub:owner/name, or hub:owner/name@REVISION with a commit, tag or branch")
    return name, revision or None


def model_folder(path: Path | str, revision: str | None = None) -> Path:
    """The local folder of a checkpoint: itself, or the snapshot that a hub id is downloaded to.

    path: a folder, a hub id, or ``hub:owner/name@REVISION``; revision: of a hub id. Without a network, what lies in
    the local cache is taken.

    Raises:
        FileNotFoundError: no such folder; no network, and the cache does not hold the model.
        ValueError: a hub repository without safetensors weights.
    """
    if Path(path).is_dir():
        return Path(path)
    text = str(path)
    if text.startswith(HUB):
        text, named = parse_hub(text)
        revision = revision or named
    elif not HUB_NAME.fullmatch(text):
        raise FileNotFoundError(f"{path}: no such folder; give the folder (or hub id) of a checkpoint")
    return _snapshot(text, revision)


def commit_of(folder: Path) -> str | None:
    """The commit that a snapshot of the local hub cache is of; None for any other folder."""
    known = folder.parent.name == "snapshots" and COMMIT.fullmatch(folder.name)
    return folder.name if known else None


def pin_advice(name: str, commit: str | None) -> str:
    """What to tell somebody who named a hub model without a revision."""
    found = f"commit {commit} was taken; pin it" if commit else "the newest commit was taken; pin one"
    return f"{name}: no revision given, so its content may change; {found}"


def _snapshot(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import LocalEntryNotFoundError

    said = name if revision is None else f"{name}@{revision}"
    try:
        found = snapshot_download(name, revision=revision, allow_patterns=list(READ), ignore_patterns=list(UNREAD))
        folder = Path(found)
    except LocalEntryNotFoundError as error:
        # Complete for transformers, which fetches what it reads, may be less than the patterns ask for.
        kept = try_to_load_from_cache(name, "config.json", revision=revision)
        if not isinstance(kept, str):
            raise FileNotFoundError(
                f"{said}: cannot be fetched from the Hub and is not in the local cache; fetch it once with a network, "
                f"or give a folder ({str(error).splitlines()[0]})"
            ) from error
        folder = Path(kept).parent
    if missing := _missing_weights(folder):
        raise FileNotFoundError(f"{said}: {missing[0]} is missing in the local cache; fetch it once with a network")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{said}: no .safetensors weights in this repository (or in the local cache, without a network); other "
            "forms are based on pickle and are not read: convert it to safetensors and give the folder"
        )
    return folder


def _missing_weights(folder: Path) -> list[str]:
    """Weight files that a sharded checkpoint lists and that are not there."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    listed = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return sorted(name for name in listed if not (folder / name).is_file())


def fingerprint(folder: Path | str, parts: Sequence[str] = ()) -> str:
    """Sixteen hex digits that name a checkpoint's weights, from tensor names, shapes, dtypes and sampled values.

    parts: only tensors whose name contains one of these (all if none does). Each tensor contributes up to 64 samples
    of 64 bytes spread over it, so an update of a module is seen without reading the whole file.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder}: no .safetensors file; convert the checkpoint to safetensors first")
    tensors: dict[str, tuple[Path, int, dict]] = {}
    for file in files:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
        tensors.update({name: (file, 8 + length, info) for name, info in header.items() if name != "__metadata__"})
    chosen = [name for name in sorted(tensors) if any(part in name for part in parts)] or sorted(tensors)
    digest = hashlib.blake2b(digest_size=8)
    maps = {file: np.memmap(file, mode="r") for file in files}
    for name in chosen:
        file, start, info = tensors[name]
        begin, end = (start + offset for offset in info["data_offsets"])
        digest.update(f"{name} {info['dtype']} {info['shape']}".encode())
        for position in np.linspace(begin, max(begin, end - 64), num=64, dtype=np.int64):
            digest.update(maps[file][position : min(position + 64, end)].tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of what decides a run's numbers."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("hacl", "torch", "transformers", "deepspeed", "peft", "accelerate"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hardware(device: str) -> dict[str, Any]:
    """What measured figures belong to: processor, device ("cpu" or "cuda"), threads, load average, versions."""
    import torch

    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":")[1].strip() for line in cpu.splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "versions": versions(),
    }
