"""Promises of docs/families.md: each family has one row, and what the row says is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hacl.models.adapters import SplitAdapter
from hacl.models.families import FAMILIES
from tests.families.facts import FACTS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "families.md").read_text(encoding="utf-8")
ROWS = {
    name: [cell.strip() for cell in cells.split("|")]
    for name, cells in re.findall(r"^\| `([\w-]+)` \|(.*)\|$", PAGE, flags=re.MULTILINE)
}
POSITIONS = {"1d": "one axis", "mrope": "three axes", "learned": "learnt table"}


def test_the_page_lists_the_families_that_the_code_has():
    assert set(ROWS) == set(FAMILIES)


@pytest.mark.parametrize("name", FACTS)
def test_a_row_says_what_the_code_does(name):
    facts, adapter = FACTS[name], FAMILIES[FACTS[name].model_type]
    tokens, attention, positions, last, forms, cache, special = ROWS[facts.model_type]
    assert tokens == ("by shape" if facts.by_shape else "fixed")
    assert (attention == "causal") == (not adapter.own_masks) == ("dense masks" not in special)
    assert ("windows" in attention) == bool(facts.layer_types)
    assert POSITIONS[facts.rotary] in positions and ("from 1" in positions) == bool(facts.first_position)
    assert forms == ("all" if len(adapter.forms) == 3 else ", ".join(adapter.forms))
    assert ("no state" in last) == ("in_place" not in adapter.forms)
    assert cache == ("yes" if issubclass(adapter, SplitAdapter) else "no")
