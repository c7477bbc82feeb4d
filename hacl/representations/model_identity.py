"""Which weights a loaded model computes with, its adapter on or off.

The folder's fingerprint (`hacl.models.identity`) says where a model came from; the digest of the loaded weights says
what it is now, whatever was done to it since.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hacl.models.adapters import unwrap
from hacl.models.identity import fingerprint

SAMPLES = 64


@contextlib.contextmanager
def adapter_switched(model: nn.Module, adapter: str) -> Iterator[None]:
    """Inside, the adapter of a PEFT model is "on" (also: there is none) or "off".

    Raises:
        ValueError: "off", but the model carries no adapter.
    """
    if adapter == "on":
        yield
        return
    if not hasattr(model, "disable_adapter"):
        raise ValueError(f"adapter='off', but {type(model).__name__} is no PEFT model; capture it with adapter='on'")
    with model.disable_adapter():
        yield


def describe_model(model: nn.Module, adapter: str, folder_fingerprint: str | None = None) -> dict[str, Any]:
    """path, fingerprint (of the folder it came from, where that is one; else of the loaded weights), weights (digest of
    the loaded base weights), adapter ("on", "off" or None), adapter_hash, class.
    """
    base = unwrap(model)
    own, added = _split(base)
    path = str(getattr(base.config, "_name_or_path", "") or "")
    weights = _digest(own)
    if folder_fingerprint is None and path and any(Path(path).glob("*.safetensors")):
        folder_fingerprint = fingerprint(path)
    used = bool(added) and adapter == "on"
    return {
        "path": path,
        "fingerprint": folder_fingerprint or weights,
        "weights": weights,
        "adapter": adapter if added else None,
        "adapter_hash": _digest(added) if used else None,
        "class": type(base).__name__,
    }


def _split(base: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the base model under its own names, and those that an adapter added."""
    own, added = {}, {}
    for name, tensor in base.state_dict().items():
        target = added if ".lora_" in name or ".modules_to_save." in name else own
        target[name.replace(".base_layer.", ".").replace(".original_module.", ".")] = tensor
    return own, added


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        for values in _sampled(tensors[name]):
            digest.update(values)
    return digest.hexdigest()


def _sampled(tensor: Tensor) -> Iterable[bytes]:
    """Up to `SAMPLES` values spread over a tensor, and its sum where it is small enough to be read whole."""
    flat = tensor.detach().reshape(-1)
    if not flat.numel():
        return
    step = max(1, flat.numel() // SAMPLES)
    yield flat[::step][: SAMPLES + 1].to("cpu", torch.float64).numpy().tobytes()
    if flat.numel() <= 1 << 16:
        yield flat.to("cpu", torch.float64).sum().numpy().tobytes()
