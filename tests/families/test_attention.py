"""Positions, embeddings, attention and packing of each tiny family are those of `facts.py`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.families import chosen
from tests.families.common import encode, prompt
from tests.families.loaded import WORDS, sees, visible

FAMILIES_HERE = chosen()


def test_positions_are_those_of_the_facts(family):
    facts = family.facts
    decoder, _, block = family.decoder_call(family.inputs())
    positions = decoder.get("position_ids")
    if facts.rotary == "mrope":
        assert positions.shape[0] == 3 and positions.ndim == 3
        assert tuple(family.decoder.config.rope_parameters["mrope_section"]) == facts.sections
        assert not torch.equal(positions[1], positions[2])
    else:
        positions = block["position_ids"]
        assert positions.ndim == 2 and torch.equal(positions.diff(), torch.ones_like(positions.diff()))
    assert int(positions.flatten()[0]) == facts.first_position
    assert hasattr(family.decoder, "rotary_emb") == (facts.rotary != "learned")
    assert hasattr(family.decoder, "embed_positions") == (facts.rotary == "learned")


def test_embeddings_are_scaled_and_joined_with_features_as_the_facts_say(family):
    facts, inputs = family.facts, family.inputs()
    decoder, states, _ = family.decoder_call(inputs)
    table = family.model.get_input_embeddings()
    at_image = inputs["input_ids"][0] == family.image_id
    embeds = decoder["inputs_embeds"][0].detach()
    plain = table.weight[inputs["input_ids"][0]].detach()
    torch.testing.assert_close(embeds[~at_image], plain[~at_image] * facts.embed_scale)
    features = family.image_features(inputs).pooler_output
    features = torch.cat(list(features)) if isinstance(features, list | tuple) else features.flatten(0, 1)
    torch.testing.assert_close(embeds[at_image], features + plain[at_image] * facts.adds_features)
    if facts.rotary != "learned":
        assert torch.equal(states[0], embeds)
    assert len(decoder.get("deepstack_visual_embeds") or ()) == facts.deepstack


def test_image_features_read_the_prompt_only_where_the_facts_say(family):
    first, second = (family.inputs(0, words) for words in (WORDS, "what shape is it ?"))
    one, two = (family.image_features(inputs).pooler_output for inputs in (first, second))
    same = all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert same != family.facts.features_read_text


def test_attention_is_of_the_kind_of_the_facts(family):
    facts, inputs = family.facts, family.inputs()
    at_image = (inputs["input_ids"][0] == family.image_id).nonzero().flatten()
    last = len(inputs["input_ids"][0]) - 1
    assert bool(sees(family, inputs, int(at_image[0]))[at_image[-1]]) == facts.image_sees_image
    before_last = sees(family, inputs, last - 1)
    assert bool(before_last[last]) == facts.prompt_sees_prompt and bool(before_last[: last - 1].all())
    if facts.mask_input:
        rest = {name: value for name, value in inputs.items() if name != facts.mask_input}
        assert {bool(each) for each in sees(family, rest, 0)[1:]} == {facts.without_it == "full"}
    assert bool(facts.mask_input) == facts.image_sees_image
    kinds = tuple(getattr(family.decoder.config, "layer_types", None) or ())
    assert (kinds if len(set(kinds)) > 1 else ()) == facts.layer_types


def test_images_of_one_row_see_each_other_only_where_the_facts_say(family):
    if not family.facts.mark:
        pytest.skip("its processor puts one image before the text")
    text = prompt(family.processor, WORDS, images=2)
    inputs = encode(family.processor, [family.images], [text])
    at_image = (inputs["input_ids"][0] == family.image_id).nonzero().flatten()
    assert bool(sees(family, inputs, int(at_image[0]))[at_image[-1]]) == family.facts.images_share


def logits_of(family, packed: dict[str, Any]):
    """Logits (T, V) of one call of the decoder."""
    states = family.decoder(**packed, use_cache=False).last_hidden_state
    return family.model.get_output_embeddings()(states)[0]


@torch.no_grad()
def test_two_rows_packed_in_one_are_what_they_are_alone(family):
    """Embeddings, positions and a mask suffice, but for two masks by kind of block and DeepStack's features."""
    facts = family.facts
    rows = [family.inputs(0), family.inputs(1, "what colour is the small square on the left ?")]
    calls = [family.decoder_call(row) for row in rows]
    mask = torch.block_diag(*[visible(facts, row) for row in rows]).bool()[None, None]
    positions = [
        decoder["position_ids"] if facts.rotary == "mrope" else block["position_ids"] for decoder, _, block in calls
    ]
    packed: dict[str, Any] = {
        "inputs_embeds": torch.cat([decoder["inputs_embeds"] for decoder, *_ in calls], dim=1),
        "position_ids": torch.cat(positions, dim=-1),
        "attention_mask": mask,
    }
    if facts.layer_types:
        place = torch.arange(mask.shape[-1])
        near = (place[:, None] - place[None]) < family.decoder.config.sliding_window
        packed["attention_mask"] = {"full_attention": mask, "sliding_attention": mask & near}
    if facts.deepstack:
        packed["visual_pos_masks"] = torch.cat([decoder["visual_pos_masks"] for decoder, *_ in calls], dim=1)
        layers = zip(*[decoder["deepstack_visual_embeds"] for decoder, *_ in calls], strict=True)
        packed["deepstack_visual_embeds"] = [torch.cat(layer) for layer in layers]
    alone = torch.cat([family.model(**row).logits[0] for row in rows])
    torch.testing.assert_close(logits_of(family, packed), alone, rtol=0, atol=1e-4)
    joined = torch.ones_like(mask).tril()
    packed["attention_mask"] = dict.fromkeys(packed["attention_mask"], joined) if facts.layer_types else joined
    assert (logits_of(family, packed) - alone).abs().max() > 0.1, "a wrong mask would go unnoticed"


def test_deepstack_features_are_added_after_a_block_and_before_what_follows_it(family):
    """What a block returns, and what `hidden_states` lists, lack the features that the next block reads."""
    if not family.facts.deepstack:
        pytest.skip("adds nothing between its blocks")
    seen = {}
    layers = family.decoder.layers
    hooks = [
        layers[0].register_forward_hook(lambda _, args, output: seen.update(returned=output[0])),
        layers[1].register_forward_pre_hook(lambda _, args: seen.update(read=args[0][0])),
    ]
    inputs = family.inputs()
    with torch.no_grad():
        listed = family.model(**inputs, output_hidden_states=True).hidden_states[1][0]
        features = family.image_features(inputs).deepstack_features[0][0]
    for hook in hooks:
        hook.remove()
    at_image = inputs["input_ids"][0] == family.image_id
    assert torch.equal(listed, seen["returned"])
    assert torch.equal(seen["read"][~at_image], listed[~at_image])
    torch.testing.assert_close(seen["read"][at_image], listed[at_image] + features)
