"""A constant shift folds into every family whose decoder has the biases for it; the others are refused by name."""

from __future__ import annotations

import pytest
import torch

from hacl.steering import MeanSteerer
from hacl.steering.fold import WITH_SLOT, FoldError, _probe, fold
from tests.families import chosen
from tests.families.loaded import Family

FAMILIES_HERE = chosen()


def test_a_family_folds_where_its_decoder_is_a_llama(family: Family, tmp_path):
    family.model.save_pretrained(tmp_path / "model")
    family.processor.save_pretrained(tmp_path / "model")
    text = family.model.config.get_text_config()
    steerer = MeanSteerer({1: torch.linspace(-1, 1, text.hidden_size)})
    if text.model_type in WITH_SLOT:
        assert fold(steerer, tmp_path / "model", tmp_path / "out")["max_logit_change"] > 1e-3
        return
    with pytest.raises(FoldError, match="can be folded"):
        fold(steerer, tmp_path / "model", tmp_path / "out")
    probe = _probe(family.model, tmp_path / "model")
    assert (probe["input_ids"] == family.image_id).any()
