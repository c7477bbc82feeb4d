"""Promises of docs/adding_a_family.md: without its code the family is refused, with it the packed step is right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from hacl.data.image_formats import FORMATS
from hacl.models.adapters import UnsupportedModelError, find_adapter
from hacl.models.families import FAMILIES
from tests.families import build
from tests.families.facts import FACTS, SHAPES
from tests.families.loaded import Family
from tests.families.test_packed import (
    test_every_packed_sequence_has_the_states_and_gradients_of_the_stock_model as packed,
)
from tests.tiny_families import draw_images

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "adding_a_family.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
NAME = "internvl"


@pytest.fixture
def built(tmp_path):
    from PIL import Image

    folder = build(NAME, tmp_path / "model")
    images = [Image.open(path).convert("RGB") for path in draw_images(tmp_path, list(SHAPES))]
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    return Family(NAME, FACTS[NAME], model, AutoProcessor.from_pretrained(folder), images)


def test_the_guides_code_makes_its_family_usable(built, tmp_path, monkeypatch):
    monkeypatch.delitem(FAMILIES, NAME)
    monkeypatch.delitem(FORMATS, "InternVLProcessor")
    with pytest.raises(UnsupportedModelError, match="internvl"):
        find_adapter(built.model)
    assert len(BLOCKS) == 2
    for block in BLOCKS:
        exec(compile(block, str(GUIDE), "exec"), {"__name__": "guide"})
    try:
        assert type(find_adapter(built.model)).__module__ == "guide"
        packed(built, tmp_path, {})
    finally:  # what the blocks registered; monkeypatch puts back what was there
        FAMILIES.pop(NAME), FORMATS.pop("InternVLProcessor")
