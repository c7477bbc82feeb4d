"""Which families the DPO baseline takes: those whose stock forward pass needs token ids and pixels alone."""

from __future__ import annotations

import contextlib

import pytest

from hacl.training.dpo import check_inputs
from tests.families.test_packed import encoder_of


def test_dpo_refuses_a_family_that_needs_more_than_token_ids_and_pixels(family):
    taken = family.facts.tensors == {"pixel_values"} and not family.facts.by_shape
    with contextlib.nullcontext() if taken else pytest.raises(ValueError, match="needs more"):
        check_inputs(family.model, encoder_of(family))
