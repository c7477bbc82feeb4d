"""Put an exported folder on the Hugging Face Hub, on request and as it is: safetensors, JSON, texts, the card."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from hacl.training.export import SIDECAR

PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".joblib", ".npy", ".npz")
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def push_folder(
    folder: Path | str, repository: str, *, public: bool = False, branch: str | None = None, api: Any = None
) -> str:
    """Create the repository if need be, upload in one commit, return that commit's address.

    The token comes from the environment or the login of `huggingface_hub`, never from here. api: an `HfApi`.

    Raises:
        FileNotFoundError: no exported folder. ValueError: an export that was never verified, files that may hold
        pickled objects, or a name that is not owner/name.
    """
    folder = Path(folder)
    check(folder, repository)
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi()
    api.create_repo(repository, private=not public, exist_ok=True)
    if branch is not None:
        api.create_branch(repository, branch=branch, exist_ok=True)
    done = api.upload_folder(
        repo_id=repository, folder_path=str(folder), commit_message="Upload an exported model", revision=branch
    )
    return str(done.commit_url)


def check(folder: Path, repository: str) -> None:
    """See `push_folder`; opens no connection."""
    if not REPOSITORY.fullmatch(repository):
        raise ValueError(f"--to {repository}: expected owner/name")
    if not (folder / "config.json").is_file() or not (folder / "README.md").is_file():
        raise FileNotFoundError(f"{folder}: no exported model with its card; scripts/export.py writes one")
    verified = folder / SIDECAR / "verified.json"
    if not verified.is_file():
        raise ValueError(f"{folder}: this export was not verified; export again without --no-verify")
    json.loads(verified.read_text(encoding="utf-8"))
    odd = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix in PICKLED)
    if odd:
        raise ValueError(f"{folder}: {', '.join(odd[:3])} may hold pickled objects; only safetensors are uploaded")
    links = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink())
    if links:
        raise ValueError(f"{folder}: {', '.join(links[:3])} points elsewhere; an upload would publish what is there")
