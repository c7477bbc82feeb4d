"""Named arrays of an analysis on disk: `NAME.safetensors` beside a `NAME.json` that says what they are and whose.

The JSON is written last, so a folder that has it is complete; it holds the digest of the arrays.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from hacl.models.identity import versions
from hacl.representations.manifest import write_bytes, write_json


def analysis_versions() -> dict[str, str]:
    """Versions of what decides the numbers of an analysis of captured features."""
    from importlib.metadata import version

    return {**versions(), **{name: version(name) for name in ("numpy", "scipy", "scikit-learn")}}


def write_arrays(folder: Path | str, name: str, arrays: Mapping[str, np.ndarray], content: Mapping[str, Any]) -> Path:
    """Write both files, each complete before it gets its name. Returns the folder.

    Raises:
        ValueError: content that JSON cannot hold (NaN among it).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors, described = folder / f"{name}.safetensors", folder / f"{name}.json"
    described.unlink(missing_ok=True)
    write_bytes(tensors, save({key: np.ascontiguousarray(value) for key, value in arrays.items()}))
    write_json(described, {**content, "versions": analysis_versions(), "sha256": _sha256(tensors)})
    return folder


def read_arrays(folder: Path | str, name: str, format_: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(content, arrays) that `write_arrays` wrote.

    Raises:
        FileNotFoundError: no such artefact in the folder, or only half of one.
        ValueError: another format, or arrays that are damaged or not those described.
    """
    described, tensors = Path(folder) / f"{name}.json", Path(folder) / f"{name}.safetensors"
    for path in (described, tensors):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: missing; make the artefact again")
    try:
        content = json.loads(described.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{described}: not JSON ({error})") from error
    found = content.get("format") if isinstance(content, dict) else type(content).__name__
    if found != format_:
        raise ValueError(f"{described}: format {found!r}, this version reads {format_!r}")
    if _sha256(tensors) != content.get("sha256"):
        raise ValueError(f"{tensors}: not what {described.name} describes; make the artefact again")
    try:
        return content, load_file(tensors)
    except SafetensorError as error:
        raise ValueError(f"{tensors}: not safetensors ({error})") from error


def check_made_for(folder: Path | str, content: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse an artefact made for something else.

    expected: entries of the provenance that must agree, for example {"original": fingerprint, "layer": "12"}.

    Raises:
        ValueError: naming the folder, the entry and both values.
    """
    provenance = content.get("provenance", {})
    for key, value in expected.items():
        if provenance.get(key) != value:
            raise ValueError(
                f"{folder}: made for {key} {provenance.get(key)!r}, asked for {value!r}; make it again for that one"
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
