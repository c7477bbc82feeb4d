"""Write and read what a run trained: backbone weights, LoRA adapter, heads with temperature, under any ZeRO stage.

A checkpoint holds what trains (`trained.safetensors`, `adapter/`, `heads.safetensors`) and the queue, where there is
one (`queue.safetensors`); the rest is the base checkpoint it names. Names in `trained.safetensors` are those of the
stock model in memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

TRAINED, HEADS, ADAPTER, QUEUE = "trained.safetensors", "heads.safetensors", "adapter", "queue.safetensors"
LORA_MARK = "lora_"


def full_tensor(parameter: Tensor) -> Tensor:
    """The whole parameter on the CPU, from DeepSpeed's fp32 master where there is one. Collective under ZeRO-3."""
    if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
        import deepspeed
        from deepspeed.utils import safe_get_full_fp32_param

        if parameter.requires_grad:
            master = safe_get_full_fp32_param(parameter)
            if master is not None:
                return master.detach().cpu().clone()
        if hasattr(parameter, "ds_id"):
            with deepspeed.zero.GatheredParameters([parameter]):
                return parameter.detach().cpu().clone()
    return parameter.detach().cpu().clone()


def stock_name(name: str) -> str:
    """Parameter name without what PEFT puts around it."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def trained_tensors(backbone: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name in the stock model, tensor) of what trains in the backbone, LoRA matrices aside.

    Parameters, and the buffers of the same modules (running statistics of batch norms move with them). A tied weight
    comes once.
    """
    seen: set[int] = set()
    for prefix, module in backbone.named_modules():
        own = [(n, p) for n, p in module.named_parameters(recurse=False) if p.requires_grad and LORA_MARK not in n]
        if not own or LORA_MARK in prefix:
            continue
        own += [(n, b) for n, b in module.named_buffers(recurse=False) if n not in module._non_persistent_buffers_set]
        for name, tensor in own:
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            yield stock_name(f"{prefix}.{name}" if prefix else name), tensor


def checkpoint_bytes(model, *, deepspeed: bool = False) -> int:
    """About what a checkpoint of a HaclModel takes on disk: trained weights, two moments of each in fp32, the queue.

    DeepSpeed also saves the weights it computes with (counted as 16-bit) and its fp32 masters.
    """
    trained = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad)
    held = 0 if getattr(model, "queue", None) is None else sum(t.nbytes for t in model.queue.state_dict().values())
    return (18 if deepspeed else 12) * trained + held


def save_weights(model, folder: Path, *, write: bool) -> None:
    """Write the trained part of a HaclModel. Every rank calls this (collective under ZeRO-3); one has `write` true."""
    from safetensors.torch import save_file

    trained = {name: full_tensor(tensor) for name, tensor in trained_tensors(model.backbone)}
    lora = {n: full_tensor(p) for n, p in model.backbone.named_parameters() if LORA_MARK in n}
    heads = {} if model.heads is None else {n: full_tensor(p) for n, p in model.heads.named_parameters()}
    if not write:
        return
    folder.mkdir(parents=True, exist_ok=True)
    meta = {"format": "pt"}
    if trained:
        _save_atomically(save_file, trained, folder / TRAINED, meta)
    if heads:
        _save_atomically(save_file, heads, folder / HEADS, meta)
    if model.queue is not None:
        _save_atomically(save_file, model.queue.state_dict(), folder / QUEUE, meta)
    if lora:
        model.backbone.save_pretrained(
            folder / ADAPTER, state_dict=lora, safe_serialization=True, save_embedding_layers=False
        )


def _save_atomically(save_file, tensors: dict[str, Tensor], path: Path, meta: dict[str, str]) -> None:
    temporary = path.with_suffix(".tmp")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata=meta)
    os.replace(temporary, path)


def load_weights(model, folder: Path) -> None:
    """Read what `save_weights` wrote into an unsharded HaclModel. Raises ValueError when names or shapes do not fit."""
    load_trained(model.backbone, folder)
    if (folder / ADAPTER).is_dir():
        load_adapter(model.backbone, folder)
    if model.heads is not None:
        load_heads(model.heads, folder)
    load_queue(model, folder)


def load_queue(model, folder: Path) -> None:
    """Restore the queue of a HaclModel that has one, exactly. Raises ValueError where the checkpoint's does not fit."""
    from safetensors.torch import load_file

    if model.queue is None:
        return
    if not (folder / QUEUE).is_file():
        raise ValueError(f"{folder}: holds no {QUEUE}, and objective.queue_size is {model.queue.size}")
    try:
        model.queue.load_state_dict(load_file(folder / QUEUE), next(model.parameters()).device)
    except ValueError as error:
        raise ValueError(f"{folder / QUEUE}: {error}") from error


def load_trained(backbone: nn.Module, folder: Path) -> None:
    """Copy `trained.safetensors` into the (stock or PEFT) backbone, in the backbone's dtype."""
    from safetensors.torch import load_file

    if not (folder / TRAINED).is_file():
        return
    live = [*backbone.named_parameters(remove_duplicate=False), *backbone.named_buffers()]
    targets = {stock_name(name): tensor for name, tensor in live}
    _copy(load_file(folder / TRAINED), targets, folder / TRAINED)


def load_adapter(backbone: nn.Module, folder: Path) -> None:
    """Copy `adapter/` into a PEFT backbone that has the same LoRA settings."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    state = load_file(folder / ADAPTER / "adapter_model.safetensors")
    result = set_peft_model_state_dict(backbone, state)
    if result.unexpected_keys:
        raise ValueError(f"{folder / ADAPTER}: unexpected LoRA weights {sorted(result.unexpected_keys)[:3]}")


def load_heads(heads: nn.Module, folder: Path) -> None:
    """Copy `heads.safetensors` into the heads; every parameter must be there."""
    from safetensors.torch import load_file

    state = load_file(folder / HEADS)
    targets = dict(heads.named_parameters())
    missing = sorted(set(targets) - set(state))
    if missing:
        raise ValueError(f"{folder / HEADS}: lacks {missing}; the heads of the configuration are other ones")
    _copy(state, targets, folder / HEADS)


@torch.no_grad()
def _copy(state: dict[str, Tensor], targets: dict[str, Tensor], where: Path) -> None:
    for name, tensor in state.items():
        if name not in targets or targets[name].shape != tensor.shape:
            raise ValueError(f"{where}: {name} {tuple(tensor.shape)} does not fit the model")
        targets[name].copy_(tensor)
