"""The mini COCO collection, where it is there: found through HACL_DATA, never part of the project."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def coco_mini() -> Path:
    """Folder with annotations.jsonl and images/; skips where it is missing."""
    folder = Path(os.environ.get("HACL_DATA", "")) / "coco-mini"
    if not os.environ.get("HACL_DATA") or not (folder / "annotations.jsonl").is_file():
        pytest.skip("no photographs: set HACL_DATA to the folder that holds coco-mini/")
    return folder
