"""The one artefact of all methods: a folder with `vectors.safetensors` and `manifest.json`.

The manifest names the method and its settings, layers, default alpha, norm mode and positions, and where the vectors
come from: fingerprint of the model, token rule, hash of the settings that made them, versions. Loading for another
model is refused. Nothing is pickled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from hacl.models.adapters import unwrap
from hacl.models.identity import fingerprint, model_folder, versions
from hacl.steering.steerer import Steerer

FORMAT = "hacl-steering-1"
TENSORS, MANIFEST = "vectors.safetensors", "manifest.json"


class ArtefactError(ValueError):
    """A steering artefact that is damaged, of another format, or of another model."""


@dataclass(frozen=True)
class Provenance:
    """Where vectors come from.

    model: fingerprint of the checkpoint; model_path: where it lay; token_rule: whose states were taken, for example
    "mean of the answer"; config_hash: of the settings (see `config_hash`); versions: of what decides the numbers.
    """

    model: str
    token_rule: str
    config_hash: str
    model_path: str = ""
    versions: dict[str, str] = field(default_factory=versions)
    notes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, model: nn.Module | Path | str, *, token_rule: str, config: Mapping[str, Any], **notes: Any
    ) -> Provenance:
        """For a checkpoint folder, or a model loaded from one."""
        folder = folder_of(model)
        return cls(fingerprint(folder), token_rule, config_hash(config), model_path=str(folder), notes=notes)


def kinds() -> dict[str, type[Steerer]]:
    """{kind: class} of every method that an artefact can hold."""
    from hacl.steering.compose import ComposeSteerer
    from hacl.steering.concept import ConceptSteerer
    from hacl.steering.flexac import FlexACSteerer
    from hacl.steering.l2s import L2SSteerer
    from hacl.steering.lowrank import LowRankSteerer
    from hacl.steering.static import MeanSteerer, RandomSteerer, TableSteerer

    methods = (
        MeanSteerer,
        RandomSteerer,
        TableSteerer,
        ComposeSteerer,
        ConceptSteerer,
        LowRankSteerer,
        L2SSteerer,
        FlexACSteerer,
    )
    return {method.kind: method for method in methods}


def config_hash(config: Mapping[str, Any]) -> str:
    """Sixteen hex digits of settings that JSON can hold, whatever their order."""
    return hashlib.blake2b(json.dumps(config, sort_keys=True).encode(), digest_size=8).hexdigest()


def folder_of(model: nn.Module | Path | str) -> Path:
    """The folder a model was loaded from. Raises ValueError for one that was made in memory."""
    if not isinstance(model, nn.Module):
        return model_folder(str(model))
    path = getattr(unwrap(model).config, "_name_or_path", "")
    if not path:
        raise ValueError(
            "the model was not loaded from a folder, so its vectors cannot name it; give the checkpoint's path"
        )
    return model_folder(path)


def check_model(expected: str | None, model: nn.Module | Path | str, what: str) -> None:
    """Raises ArtefactError if `expected` is another checkpoint's fingerprint.

    None fits any model; so does a model made in memory, which has no checkpoint to compare. An adapter over the
    checkpoint (LoRA) does not count: vectors of the original may steer the tuned model.
    """
    if expected is None:
        return
    if isinstance(model, nn.Module) and not getattr(unwrap(model).config, "_name_or_path", ""):
        return
    folder = folder_of(model)
    found = fingerprint(folder)
    if found != expected:
        raise ArtefactError(
            f"{what} was made for the model {expected}, {folder} is {found}; make it again for this model"
        )


def save_steerer(steerer: Steerer, folder: Path | str, provenance: Provenance) -> Path:
    """Write the artefact; the manifest last, so that a folder with one is complete. Returns the folder.

    Raises:
        ValueError: a positions policy that is a mask (it belongs to one batch), or settings that JSON cannot hold.
    """
    if not isinstance(steerer.policy, str):
        raise ValueError(f"positions {steerer.policy} belong to one batch; an artefact holds a named policy")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in steerer.state_dict().items()}
    save_file(tensors, folder / TENSORS)
    common = {**steerer.common(), "norms": [[key, length] for key, length in steerer.norms.items()]}
    common["model"] = provenance.model
    content = {
        "format": FORMAT,
        "kind": steerer.kind,
        "layers": list(steerer.layers),
        **common,
        "settings": steerer.settings(),
        "provenance": dataclasses.asdict(provenance),
        "sha256": _sha256(folder / TENSORS),
    }
    temporary = folder / f"{MANIFEST}.tmp"
    temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, folder / MANIFEST)
    return folder


def read_steering_manifest(folder: Path | str) -> dict[str, Any]:
    """The manifest of an artefact. Raises FileNotFoundError or ArtefactError naming the file."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no {MANIFEST}; not a steering artefact, or interrupted while it was saved")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtefactError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ArtefactError(f"{path}: format {found!r}, this version reads {FORMAT!r}")
    missing = {"kind", "settings", "provenance", "sha256", "norm", "clip", "norms", "alpha", "policy"} - content.keys()
    if missing:
        raise ArtefactError(f"{path}: no {', '.join(sorted(missing))}")
    return content


def goes_by_sample(content: Mapping[str, Any]) -> bool:
    """Whether the method of an artefact (its manifest), or a part of it, looks vectors up by sample id."""
    settings = content["settings"]
    own = content["kind"] == "table" or bool(settings.get("per_sample"))
    return own or any(goes_by_sample(part) for part in settings.get("parts", ()))


def load_steerer(folder: Path | str, *, model: nn.Module | Path | str) -> Steerer:
    """The method in an artefact, for `model`: a checkpoint folder, or a model loaded from one.

    Raises:
        FileNotFoundError: no artefact there.
        ArtefactError: it is damaged, of an unknown method, or was made for another model.
    """
    folder = Path(folder)
    content = read_steering_manifest(folder)
    check_model(content["provenance"]["model"], folder_of(model), str(folder))
    if content["kind"] not in kinds():
        raise ArtefactError(f"{folder}: method {content['kind']!r}; known: {', '.join(sorted(kinds()))}")
    path = folder / TENSORS
    if not path.is_file() or _sha256(path) != content["sha256"]:
        raise ArtefactError(f"{path}: missing, or not what the manifest describes; make the artefact again")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ArtefactError(f"{path}: not safetensors ({error})") from error
    common = {name: content[name] for name in ("norm", "clip", "alpha", "policy")}
    common |= {"norms": dict(content["norms"]), "model": content["provenance"]["model"]}
    return kinds()[content["kind"]].from_state(tensors, content["settings"], **common)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
