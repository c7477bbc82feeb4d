"""Every tiny family reloads offline, reads images, trains, pads, caches and saves; and `facts.py` is true of it.

`HACL_ALL_FAMILIES=1` runs them all; without it those of `CORE` do, which differ the most.
"""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from tests.families import MULTIMODAL, TEXT_ONLY, build, chosen
from tests.families.common import encode, prompt
from tests.families.facts import FACTS
from tests.families.loaded import WORDS, Family

FAMILIES_HERE = chosen()


def test_every_family_has_facts():
    assert set(FACTS) == set(MULTIMODAL)


def test_the_processor_writes_as_many_image_tokens_as_the_facts_say(family):
    for image, expected in enumerate(family.facts.tokens):
        ids = family.inputs(image)["input_ids"][0]
        assert int((ids == family.image_id).sum()) == expected


def test_the_processor_returns_the_tensors_and_marks_of_the_facts(family):
    facts, inputs = family.facts, family.inputs()
    assert set(inputs) == facts.tensors | {"input_ids", "attention_mask"}
    tokens = family.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist())
    assert family.tokenizer.convert_ids_to_tokens(family.image_id) == facts.image_token
    start = tokens.index(facts.image_token)
    end = next(index for index in range(start, len(tokens)) if tokens[index] != facts.image_token)
    assert (tokens[start - 1] if start else "", tokens[end]) == facts.around
    assert facts.mark in prompt(family.processor, WORDS)
    assert facts.mark or family.image_id not in family.tokenizer(prompt(family.processor, WORDS))["input_ids"]


def test_all_parameters_lie_on_the_paths_of_the_facts(family):
    facts, model = family.facts, family.model
    assert model.config.model_type == facts.model_type
    assert isinstance(family.decoder.layers, torch.nn.ModuleList) and len(family.decoder.layers) in (2, 3)
    assert any(True for _ in getattr(family.decoder, facts.norm).parameters())
    assert model.get_submodule(facts.lm_head) is model.get_output_embeddings()
    known = (*facts.vision, *facts.connector, facts.decoder, facts.lm_head)
    for path in known:
        assert any(True for _ in model.get_submodule(path).parameters()), path
    outside = [name for name, _ in model.named_parameters() if not name.startswith(tuple(f"{path}." for path in known))]
    assert tuple(outside) == facts.parameters
    lacks = model.get_input_embeddings().weight.shape[0] - model.get_output_embeddings().weight.shape[0]
    assert lacks == facts.head_lacks
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == facts.tied


def linear_names(*modules) -> set[str]:
    return {
        name.rsplit(".", 1)[-1]
        for module in modules
        for name, part in module.named_modules()
        if isinstance(part, torch.nn.Linear)
    }


def test_the_linear_layers_of_the_blocks_have_the_names_of_the_facts(family):
    facts, inside = family.facts, linear_names(family.decoder.layers)
    outside = linear_names(*[family.model.get_submodule(path) for path in (*facts.vision, *facts.connector)])
    assert inside == facts.linears and inside & outside == facts.shared_linears


def test_hidden_states_are_where_the_facts_say_and_blocks_return_tensors(family):
    kinds = []
    hook = family.decoder.layers[1].register_forward_hook(lambda _, args, output: kinds.append(type(output)))
    with torch.no_grad():
        output = family.model(**family.inputs(), output_hidden_states=True)
    hook.remove()
    holder = output[family.facts.hidden_states] if family.facts.hidden_states else output
    assert len(holder.hidden_states) == len(family.decoder.layers) + 1 and kinds == [torch.Tensor]
    assert (output.get("hidden_states") is None) == bool(family.facts.hidden_states)


def test_the_same_seed_gives_the_same_weights(family, tmp_path):
    again = AutoModelForImageTextToText.from_pretrained(build(family.name, tmp_path)).state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in family.model.state_dict().items())


def test_the_loss_is_finite_and_its_gradient_reaches_every_part(family):
    model, inputs = family.model, family.inputs()
    ids = inputs["input_ids"]
    labels = ids.masked_fill(ids >= model.get_output_embeddings().weight.shape[0], -100)
    labels = labels.masked_fill(ids == family.image_id, -100)
    model.train()
    try:
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        assert torch.isfinite(loss)
        still = [
            name
            for name, weight in model.named_parameters()
            if (weight.grad is None or not weight.grad.any()) and not name.endswith("k_proj.bias")
        ]
        assert [name for name in still if not name.startswith(family.facts.unused or ("\0",))] == []
        for beginning in family.facts.unused:
            assert any(name.startswith(beginning) for name in still), beginning
    finally:
        model.eval()
        model.zero_grad(set_to_none=True)


def batch_of_two(family: Family):
    """(batch of a short text with the first image and a long one with the second, the two rows alone)."""
    words = (WORDS, "what colour is the small square on the left ?")
    rows = [family.inputs(image, words[image]) for image in (0, 1)]
    texts = [prompt(family.processor, each) for each in words]
    return encode(family.processor, [[image] for image in family.images], texts), rows


@torch.no_grad()
def largest_difference(family: Family, repaired: bool = False) -> float:
    """Between the logits of real tokens of a left-padded batch of two and those of its rows alone.

    repaired: positions skip the padding, and the text of a Q-Former is padded on the side of its own tokenizer.
    """
    batch, rows = batch_of_two(family)
    mask = batch["attention_mask"].bool()
    assert not mask.all()
    if repaired:
        batch["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        if "qformer_input_ids" in batch:
            texts = family.processor.qformer_tokenizer.batch_decode(
                batch["qformer_input_ids"], skip_special_tokens=True
            )
            again = family.processor.qformer_tokenizer(texts, padding=True, return_tensors="pt")
            batch |= {f"qformer_{name}": value for name, value in again.items()}
    logits = family.model(**batch).logits
    assert logits.std() > 0.1
    alone = [family.model(**row).logits[0] for row in rows]
    return max(float((logits[row][mask[row]] - alone[row]).abs().max()) for row in (0, 1))


def test_a_row_of_a_left_padded_batch_is_what_it_is_alone(family):
    assert (largest_difference(family) > 1e-2) == bool(family.facts.batch_differs)
    assert family.facts.batch_differs or largest_difference(family) < 1e-4


def test_the_batches_that_differ_can_be_repaired(family):
    if not family.facts.batch_differs:
        pytest.skip("its stock batches are right")
    assert largest_difference(family, repaired=True) < 1e-4


def test_generation_with_a_cache_is_that_without(family):
    scores, lacks = [], family.facts.head_lacks
    for use_cache in (True, False):
        output = family.model.generate(
            **family.inputs(),
            do_sample=False,
            max_new_tokens=4,
            min_new_tokens=4,
            use_cache=use_cache,
            suppress_tokens=None if lacks else [family.image_id],
            output_logits=True,
            return_dict_in_generate=True,
        )
        scores.append(torch.stack(output.logits))
    assert scores[0].shape[0] == 4
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=1e-4)


def test_saving_and_reloading_changes_nothing(family, tmp_path):
    family.model.save_pretrained(tmp_path)
    family.processor.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    inputs = family.inputs(1)
    text = prompt(AutoProcessor.from_pretrained(tmp_path), WORDS)
    read = encode(AutoProcessor.from_pretrained(tmp_path), [[family.images[1]]], [text])
    assert all(torch.equal(inputs[name], read[name]) for name in inputs)
    with torch.no_grad():
        assert torch.equal(family.model(**inputs).logits, again(**inputs).logits)


def test_image_features_have_the_type_and_shape_of_the_facts(family):
    facts, (batch, _) = family.facts, batch_of_two(family)
    assert hasattr(family.model, "get_image_features") == (facts.owner == "")
    features = family.image_features(batch).pooler_output
    width = family.model.get_input_embeddings().weight.shape[1]
    if facts.features in ("list", "tuple"):
        assert type(features) is {"list": list, "tuple": tuple}[facts.features]
        assert [tuple(each.shape) for each in features] == [(count, width) for count in facts.tokens]
    else:
        count = 4 if facts.features == "tiles" else facts.tokens[0]
        assert tuple(features.shape) == (sum(facts.tokens) // count, count, width)


def test_a_text_without_an_image_is_taken_where_the_facts_say(family):
    batch = family.tokenizer(["a red square on the left"], return_tensors="pt")
    if family.facts.text_alone:
        assert torch.isfinite(family.model(**batch).logits).all()
    else:
        with pytest.raises(TypeError, match="pixel_values"):
            family.model(**batch)


def test_training_is_refused_only_without_the_inputs_of_the_facts(family):
    needed = family.facts.training_needs
    text = family.tokenizer(["a red square on the left"], return_tensors="pt")
    if not family.facts.text_alone:
        pytest.skip("takes no text without an image")
    family.model.train()
    try:
        if needed:
            with pytest.raises(ValueError, match=needed):
                family.model(**text)
            text[needed] = torch.zeros_like(text["input_ids"])
        assert torch.isfinite(family.model(**text).logits).all()
    finally:
        family.model.eval()


def test_the_mask_of_an_answer_is_as_good_as_the_facts_say(family):
    kind, processor = family.facts.answer_mask, family.processor
    user = [{"type": "image", "image": family.images[0]}, {"type": "text", "text": WORDS}]
    answer = [{"type": "text", "text": "a red square"}]
    turns = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    assert (processor.chat_template is None) == (kind == "no template")
    holder = processor if processor.chat_template else family.tokenizer
    batch = holder.apply_chat_template([turns], **options)
    ids, mask = batch["input_ids"][0], batch["assistant_masks"][0]
    chosen = family.tokenizer.convert_ids_to_tokens([token for token, on in zip(ids, mask, strict=True) if on])
    right = ["a", "red", "square", "</s>"]
    if kind in ("right", "no template"):
        assert chosen == right
    elif kind == "early":
        assert chosen == [":", *right]
    else:
        assert kind == "lost" and "a" not in chosen and family.facts.image_token in chosen


@pytest.mark.parametrize("name", TEXT_ONLY)
def test_a_text_only_family_reloads_pads_and_generates_with_its_cache(name, tmp_path):
    folder = build(name, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = ["a red square", "what is the colour of the small circle on the left"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    assert tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True).strip() == texts[0]
    logits = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]
    mask = batch["attention_mask"].bool()
    for row, alone in enumerate(logits):
        torch.testing.assert_close(model(**batch).logits[row][mask[row]], alone, rtol=0, atol=1e-4)
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    answers = [model.generate(**batch, **options, use_cache=use_cache) for use_cache in (True, False)]
    assert torch.equal(*answers)
