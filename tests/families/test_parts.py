"""For every family: what trains, what LoRA adapts and what the cache of a frozen tower stores.

`HACL_ALL_FAMILIES=1` runs them all; without it those of `CORE` do, which differ the most.
"""

from __future__ import annotations

import copy

import pytest
import torch

from hacl.config import LearningRates, LoraSettings, ModelConfig
from hacl.data.image_formats import BLANK
from hacl.models.adapters import find_adapter
from hacl.models.identity import fingerprint
from hacl.training.build import select_trainable
from hacl.training.caches import last_names
from tests.families import chosen
from tests.families.test_packed import Case, encoder_of

FAMILIES_HERE = chosen()
ALL = LearningRates(vision=1.0, projector=1.0, llm=1.0)


def test_everything_that_trains_gets_a_gradient_and_the_rest_is_what_no_loss_reaches(family, tmp_path):
    case = Case(family, tmp_path)
    select_trainable(case.backbone, ModelConfig(learning_rate=ALL), masters=False)
    case.model.train()
    case.model(**case.batch).loss.backward()
    frozen = [name for name, weight in case.backbone.named_parameters() if not weight.requires_grad]
    unused = family.facts.unused
    assert [name for name in frozen if not name.startswith(unused or ("\0",))] == []
    for beginning in unused:
        assert any(name.startswith(beginning) for name in frozen), beginning
    still = {
        name
        for name, weight in case.backbone.named_parameters()
        if weight.requires_grad and (weight.grad is None or not weight.grad.any())
    }
    assert {name for name in still if not name.endswith("k_proj.bias")} == set()


def test_lora_adapts_the_linear_layers_of_the_decoder_blocks_alone(family):
    model = copy.deepcopy(family.model)
    rates = LearningRates(vision=0.0, projector=0.0, llm=1.0)
    wrapped = select_trainable(model, ModelConfig(learning_rate=rates, lora=LoraSettings(rank=2)), masters=False)
    changed = {name.split(".lora_")[0] for name, _ in wrapped.named_parameters() if ".lora_" in name}
    inside = {
        f"base_model.model.{family.facts.decoder}.layers.{name}"
        for name, part in family.decoder.layers.named_modules()
        if isinstance(part, torch.nn.Linear)
    }
    assert changed == inside
    assert all(".lora_" in name for name, weight in wrapped.named_parameters() if weight.requires_grad)
    assert find_adapter(wrapped).blocks is model.get_submodule(family.facts.decoder).layers


def test_stored_features_of_a_tower_are_those_it_computes(family):
    adapter, encoder = find_adapter(family.model), encoder_of(family)
    if not adapter.is_split:
        pytest.skip("features depend on the image's shape, on the prompt, or on two towers")
    inputs = encoder.images.format.collate([encoder.images.tensors(image) for image in family.images])
    with torch.no_grad():
        live = adapter.image_embeddings(inputs)
        stored = adapter.project(adapter.vision_features(inputs["pixel_values"])).flatten(0, 1)
        stock = adapter.stock_features(inputs).pooler_output
    stock = stock.flatten(0, 1) if isinstance(stock, torch.Tensor) else torch.cat(list(stock))
    torch.testing.assert_close(live, stock, rtol=0, atol=1e-5)
    assert torch.equal(live, stored)
    assert len(live) == 2 * encoder.images.ids(BLANK).count(encoder.image_token_id)


def test_a_cache_of_a_frozen_part_is_named_after_every_weight_of_it(family, tmp_path):
    model, facts = copy.deepcopy(family.model), family.facts
    adapter = find_adapter(model)
    model.save_pretrained(tmp_path / "first")
    parts = {"decoder": [adapter.DECODER], "tower": adapter.VISION}
    changed = {"decoder": f"{facts.decoder}.layers", "tower": facts.vision[0]}
    before = {part: fingerprint(tmp_path / "first", last_names(paths)) for part, paths in parts.items()}
    for part, path in changed.items():
        with torch.no_grad():
            list(model.get_submodule(path).parameters())[-1].add_(1.0)
        model.save_pretrained(tmp_path / part)
        assert fingerprint(tmp_path / part, last_names(parts[part])) != before[part]
