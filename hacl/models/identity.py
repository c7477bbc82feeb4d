"""Which weights a checkpoint folder holds, and which library versions read them: the names that artefacts carry."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def model_folder(path: str, revision: str | None = None) -> Path:
    """The local folder of a checkpoint: itself, or the snapshot a hub id was downloaded to."""
    if Path(path).is_dir():
        return Path(path)
    from transformers.utils import cached_file

    return Path(cached_file(path, "config.json", revision=revision)).parent


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
