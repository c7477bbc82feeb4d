"""Read folders of the original LLaVA code base: whole models, projectors alone, LoRA matrices with what else trained.

Pickled files are opened by `load_foreign` alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from hacl.models.foreign import load_foreign
from hacl.models.original_llava import LM_HEAD, merge_lora

PROJECTOR_FILE, TRAINABLES, ADAPTER_CONFIG = "mm_projector", "non_lora_trainables", "adapter_config.json"
OTHER_LORA = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out")
EMBEDDINGS = "model.embed_tokens.weight"


def read_original(folder: Path | str, base: Path | str | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config.json, tensors by their original names) of an original folder.

    base: folder of the text-only model, for a folder that holds a projector alone or LoRA matrices.

    Raises FileNotFoundError without weights, ValueError where they are not whole.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    if (folder / ADAPTER_CONFIG).is_file():
        tensors = {**_base_tensors(folder, base), **_trainables(folder)}
        settings = read_json(folder / ADAPTER_CONFIG)
        odd = [name for name in OTHER_LORA if settings.get(name)]
        if odd:
            raise ValueError(f"{folder / ADAPTER_CONFIG}: {', '.join(odd)} is not supported; merge it with PEFT first")
        adapter = _named(folder, "adapter_model")
        return config, merge_lora(tensors, adapter, rank=settings["r"], alpha=settings["lora_alpha"])
    whole = read_model(folder)
    if whole:
        return config, whole
    projector = _named(folder, PROJECTOR_FILE)
    if not projector:
        raise FileNotFoundError(f"{folder}: no model*.safetensors, pytorch_model*.bin or {PROJECTOR_FILE}.bin in it")
    return config, {**_base_tensors(folder, base), **_prefixed(projector)}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises FileNotFoundError, and ValueError for anything else."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; an original folder has it beside its weights")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return content


def read_tensors(path: Path, prefixes: tuple[str, ...] = ("",), inside: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """The tensors of a weight file whose names start with one of `prefixes`.

    inside: keys under which a pickled training checkpoint may keep its state dict, beside other plain data.

    Raises FileNotFoundError, and ValueError for a file that is not a state dict.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return _safe_tensors(path, prefixes)
    content = load_foreign(path, "not a state dict of tensors alone")
    if isinstance(content, dict):
        content = next((content[key] for key in inside if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path}: not a state dict of tensors alone")
    return {name: tensor for name, tensor in content.items() if name.startswith(prefixes)}


def _safe_tensors(path: Path, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefixes)}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or incomplete ({error}); copy it again") from error


def _named(folder: Path, stem: str) -> dict[str, Tensor]:
    for suffix in ("safetensors", "bin"):
        if (folder / f"{stem}.{suffix}").is_file():
            return read_tensors(folder / f"{stem}.{suffix}")
    return {}


def read_model(folder: Path, prefixes: tuple[str, ...] = ("",)) -> dict[str, Tensor]:
    """The tensors of a whole model, in one file or in shards, whose names start with one of `prefixes`.

    {} where the folder holds no weights. Raises ValueError where shards are missing.
    """
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = folder / f"{stem}.{suffix}.index.json"
        if index.is_file():
            names = read_json(index).get("weight_map")
            if not isinstance(names, dict):
                raise ValueError(f"{index}: no weight_map")
            tensors = {}
            for shard in sorted(set(names.values())):
                if Path(shard).name != shard:
                    raise ValueError(f"{index}: {shard!r} is no file of this folder")
                tensors.update(read_tensors(folder / shard, prefixes))
            missing = sorted(name for name in set(names) - set(tensors) if name.startswith(prefixes))
            if missing:
                raise ValueError(f"{folder}: {len(missing)} weights of {index.name} are in no shard, as {missing[0]}")
            return tensors
        if (folder / f"{stem}.{suffix}").is_file():
            return read_tensors(folder / f"{stem}.{suffix}", prefixes)
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
    return read_language_model(base)[1]


def read_language_model(folder: Path | str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config.json, tensors) of a text-only checkpoint of the Llama family.

    A table that serves as LM head as well comes under both names, because a stock LLaVA has two.

    Raises FileNotFoundError without weights, ValueError for another kind of model.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    if config.get("model_type") != "llama":
        raise ValueError(
            f"{folder}: a model of type {config.get('model_type')!r}; the decoder must be a Llama (Vicuna)"
        )
    tensors = read_model(folder)
    if not tensors:
        raise FileNotFoundError(f"{folder}: no model*.safetensors or pytorch_model*.bin in it")
    if config.get("tie_word_embeddings") and EMBEDDINGS in tensors:
        tensors.setdefault(LM_HEAD, tensors[EMBEDDINGS])
    return config, tensors
