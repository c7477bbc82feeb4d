"""Read folders of the original LLaVA code base: whole models, projectors alone, LoRA matrices with what else trained.

Pickled files are opened by `load_foreign` alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from hacl.models.foreign import load_foreign
from hacl.models.original_llava import merge_lora

PROJECTOR_FILE, TRAINABLES, ADAPTER_CONFIG = "mm_projector", "non_lora_trainables", "adapter_config.json"
OTHER_LORA = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out")


def read_original(folder: Path | str, base: Path | str | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config.json, tensors by their original names) of an original folder.

    base: folder of the text-only model, for a folder that holds a projector alone or LoRA matrices.

    Raises FileNotFoundError without weights, ValueError where they are not whole.
    """
    folder = Path(folder)
    config = _json(folder / "config.json")
    if (folder / ADAPTER_CONFIG).is_file():
        tensors = {**_base_tensors(folder, base), **_trainables(folder)}
        settings = _json(folder / ADAPTER_CONFIG)
        odd = [
            n for n in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out") if settings.get(n)
        ]
        if odd:
            raise ValueError(f"{folder / ADAPTER_CONFIG}: {', '.join(odd)} is not supported; merge it with PEFT first")
        adapter = _named(folder, "adapter_model")
        return config, merge_lora(tensors, adapter, rank=settings["r"], alpha=settings["lora_alpha"])
    whole = _whole(folder)
    if whole:
        return config, whole
    projector = _named(folder, PROJECTOR_FILE)
    if not projector:
        raise FileNotFoundError(f"{folder}: no model*.safetensors, pytorch_model*.bin or {PROJECTOR_FILE}.bin in it")
    return config, {**_base_tensors(folder, base), **_prefixed(projector)}


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; an original folder has it beside its weights")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return content


def _open(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    if path.suffix == ".safetensors":
        return load_file(path)
    content = load_foreign(path, "not a state dict of tensors alone")
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path}: not a state dict of tensors alone")
    return content


def _named(folder: Path, stem: str) -> dict[str, Tensor]:
    for suffix in ("safetensors", "bin"):
        if (folder / f"{stem}.{suffix}").is_file():
            return _open(folder / f"{stem}.{suffix}")
    return {}


def _whole(folder: Path) -> dict[str, Tensor]:
    """All shards of a whole model, {} where there are none."""
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = folder / f"{stem}.{suffix}.index.json"
        if index.is_file():
            names = _json(index).get("weight_map")
            if not isinstance(names, dict):
                raise ValueError(f"{index}: no weight_map")
            tensors = {}
            for shard in sorted(set(names.values())):
                if Path(shard).name != shard:
                    raise ValueError(f"{index}: {shard!r} is no file of this folder")
                tensors.update(_open(folder / shard))
            missing = sorted(set(names) - set(tensors))
            if missing:
                raise ValueError(f"{folder}: {len(missing)} weights of {index.name} are in no shard, as {missing[0]}")
            return tensors
        if (folder / f"{stem}.{suffix}").is_file():
            return _open(folder / f"{stem}.{suffix}")
    return {}


def _prefixed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Projector weights under `model.mm_projector.`, whatever wrappers stood before (`base_model.model.`)."""
    return {f"model.mm_projector.{name.partition('mm_projector.')[2]}": t for name, t in tensors.items()
            if "mm_projector." in name}  # fmt: skip


def _trainables(folder: Path) -> dict[str, Tensor]:
    found = _named(folder, TRAINABLES)
    if not found:
        raise FileNotFoundError(f"{folder}: LoRA matrices without {TRAINABLES}.bin, which holds the projector")
    plain = {name.removeprefix("base_model."): tensor for name, tensor in found.items()}
    nested = any(name.startswith("model.model.") for name in plain)
    return {name.removeprefix("model.") if nested else name: tensor for name, tensor in plain.items()}


def _base_tensors(folder: Path, base: Path | str | None) -> dict[str, Tensor]:
    if base is None:
        raise ValueError(f"{folder} holds no whole model; give the folder of its language model with --base")
    tensors = _whole(Path(base))
    if not tensors:
        raise FileNotFoundError(f"{base}: no model*.safetensors or pytorch_model*.bin in it")
    return tensors
