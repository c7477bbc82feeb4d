"""Which model is evaluated: a stock folder, a training checkpoint or a LoRA adapter, told apart by what is in it.

Describing it reads no weights into memory, so that a finished evaluation can be scored again without loading anything.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hacl.models.identity import HUB, commit_of, fingerprint, model_folder, parse_hub, pin_advice

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class ModelSource:
    """A model that can be loaded.

    kind: "folder", "checkpoint", "adapter" or "hub"; path: where it is (a hub id for "hub"); base: folder or hub id of
    the base model of a checkpoint or adapter; fingerprint: names the weights; template, prompt: what it was tuned with,
    None where its folder does not say; revision: commit (or branch, tag) where the path or the base is a hub id.
    """

    kind: str
    path: str
    fingerprint: str
    base: str | None = None
    template: str | None = None
    prompt: str | None = None
    revision: str | None = None

    def describe(self) -> dict[str, Any]:
        """For run.json and the report."""
        named = {"kind": self.kind, "path": self.path, "base": self.base, "fingerprint": self.fingerprint}
        return named if self.revision is None else {**named, "revision": self.revision}

    @property
    def folder(self) -> Path:
        """The local folder of the stock model: its own, its base's, or the snapshot of a hub id at `revision`."""
        return model_folder(self.base or self.path, self.revision)

    def processor(self):
        """The processor that belongs to the model."""
        from hacl.config import ModelConfig
        from hacl.training.build import load_processor

        return load_processor(ModelConfig(path=str(self.folder)))

    def load(self, *, dtype: str = "float32", device: str = "cpu", attention: str = "sdpa"):
        """The stock model in eval mode, LoRA merged in fp32, on a device.

        dtype: "float32", "bfloat16" or "float16".
        """
        import torch

        from hacl.models.adapters import auto_class

        target, folder = getattr(torch, dtype), str(self.folder)
        if self.kind == "checkpoint":
            from hacl.training.export import load_finetuned

            model, _ = load_finetuned(self.path, base=folder)
        else:
            model = auto_class(folder).from_pretrained(
                folder,
                dtype=torch.float32 if self.kind == "adapter" else target,
                attn_implementation=attention,
                use_safetensors=True,
            )
        if self.kind == "adapter":
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, self.path).merge_and_unload()
        return model.to(device=device, dtype=target).eval()


def find_model(path: str, *, base: str | None = None) -> ModelSource:
    """What `path` holds.

    path: an exported or other stock folder, a checkpoint of train.py or the run folder around it, a LoRA adapter, or
    ``hub:owner/name@REVISION``. base: folder (or ``hub:``) of the base model of a checkpoint or adapter, if it moved.
    A hub model without a revision is taken as it is now, with a warning that names its commit.

    Raises:
        FileNotFoundError: no such folder, or none of these is in it.
        ValueError: an adapter without a known base or without safetensors weights, a base for a whole model, or a hub
            repository without safetensors weights.
    """
    from hacl.training.manifest import MANIFEST

    if path.startswith(HUB):
        if base is not None:
            raise ValueError(f"--base {base}: {path} is a whole model; --base is for checkpoints and adapters")
        name, revision, snapshot = _fetched(path)
        return ModelSource("hub", name, fingerprint(snapshot), revision=revision)
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"--model {path}: no such folder; give an exported folder, a checkpoint, an adapter, or "
            f"{HUB}owner/name@REVISION"
        )
    if (folder / MANIFEST).is_file() or any(folder.glob("checkpoint-*")):
        return _checkpoint(folder, base)
    if (folder / ADAPTER_CONFIG).is_file():
        return _adapter(folder, base)
    if not (folder / "config.json").is_file():
        found = ", ".join(sorted(item.name for item in folder.iterdir())[:6]) or "nothing"
        raise FileNotFoundError(
            f"--model {path}: neither a stock model (config.json), a checkpoint ({MANIFEST}, checkpoint-N) nor an "
            f"adapter ({ADAPTER_CONFIG}) is in it, but {found}"
        )
    if base is not None:
        raise ValueError(f"--base {base}: {path} is a whole model; --base is for checkpoints and adapters")
    template, prompt = _exported_settings(folder)
    return ModelSource("folder", str(folder), fingerprint(folder), template=template, prompt=prompt)


def _fetched(text: str) -> tuple[str, str | None, Path]:
    """(name, commit, snapshot) of ``hub:owner/name@REVISION``; without a revision a warning names the commit."""
    name, revision = parse_hub(text)
    snapshot = model_folder(name, revision)
    commit = commit_of(snapshot)
    if revision is None:
        warnings.warn(pin_advice(text, commit) + f": {HUB}{name}@{commit or 'COMMIT'}", stacklevel=3)
    return name, commit or revision, snapshot


def _checkpoint(folder: Path, base: str | None) -> ModelSource:
    from hacl.training.export import find_checkpoint
    from hacl.training.manifest import MANIFEST, read_manifest

    found, _ = find_checkpoint(folder)
    content = read_manifest(found)
    digest = hashlib.sha256((found / MANIFEST).read_bytes()).hexdigest()[:16]
    data, named, revision = content["config"]["data"], content["base"]["path"], content["base"]["revision"]
    if base is not None:
        named, revision = parse_hub(base) if base.startswith(HUB) else (base, None)
    return ModelSource("checkpoint", str(found), digest, named, data.get("template"), data.get("prompt"), revision)


def _adapter(folder: Path, base: str | None) -> ModelSource:
    settings = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ValueError(f"{folder}: no {ADAPTER_WEIGHTS}; only adapters saved as safetensors are read")
    named = base or settings.get("base_model_name_or_path")
    if not named:
        raise ValueError(f"{folder / ADAPTER_CONFIG}: base_model_name_or_path is empty; give the base with --base")
    revision, place = None, Path(named)
    if named.startswith(HUB):
        named, revision, place = _fetched(named)
    elif not place.is_dir():
        raise FileNotFoundError(
            f"{folder}: its base {named} is not a folder here; give it with --base FOLDER or --base {HUB}owner/name"
        )
    digest = hashlib.sha256(
        f"{fingerprint(folder)} {fingerprint(place)} {json.dumps(settings, sort_keys=True)}".encode()
    )
    template, prompt = _exported_settings(place)
    return ModelSource("adapter", str(folder), digest.hexdigest()[:16], named, template, prompt, revision)


def _exported_settings(folder: Path) -> tuple[str | None, str | None]:
    """Template and prompt that scripts/export.py wrote beside a model."""
    from hacl.training.export import SIDECAR

    path = folder / SIDECAR / "config.json"
    if not path.is_file():
        return None, None
    data = json.loads(path.read_text(encoding="utf-8")).get("data", {})
    return data.get("template"), data.get("prompt")
