"""Every tiny family reloads offline, reads images, trains, pads, caches and saves; and `facts.py` is true of it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from tests.families import MULTIMODAL, TEXT_ONLY, build
from tests.families.common import encode, prompt
from tests.families.facts import FACTS, SHAPES, Facts
from tests.tiny_families import draw_images

WORDS = "describe the image ."


@dataclass
class Family:
    """A family as the auto classes load it, and one image of each of `SHAPES`."""

    name: str
    facts: Facts
    model: Any
    processor: Any
    images: list[Image.Image]

    def inputs(self, image: int = 0, words: str = WORDS):
        return encode(self.processor, [[self.images[image]]], [prompt(self.processor, words)])

    @property
    def tokenizer(self):
        return self.processor.tokenizer

    @property
    def decoder(self):
        return self.model.get_submodule(self.facts.decoder)

    @property
    def image_id(self) -> int:
        return getattr(self.model.config, self.facts.image_token_attribute)

    @torch.no_grad()
    def decoder_call(self, inputs) -> tuple[dict[str, Any], Tensor, dict[str, Any]]:
        """What the decoder is called with, and what its first block reads: keywords, hidden states, keywords."""
        seen: dict[str, Any] = {}
        hooks = [
            self.decoder.register_forward_pre_hook(lambda _, args, kw: seen.update(decoder=kw), with_kwargs=True),
            self.decoder.layers[0].register_forward_pre_hook(
                lambda _, args, kw: seen.update(block=kw, states=args[0] if args else kw["hidden_states"]),
                with_kwargs=True,
            ),
        ]
        try:
            self.model(**inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return seen["decoder"], seen["states"], seen["block"]

    def image_features(self, inputs):
        method = self.model.get_submodule(self.facts.owner).get_image_features
        known = inspect.signature(method).parameters
        with torch.no_grad():
            return method(**{name: value for name, value in inputs.items() if name in known})


@pytest.fixture(scope="module", params=MULTIMODAL)
def family(request, tmp_path_factory) -> Family:
    folder = build(request.param, tmp_path_factory.mktemp(request.param))
    paths = draw_images(tmp_path_factory.mktemp("images"), list(SHAPES))
    return Family(
        request.param,
        FACTS[request.param],
        AutoModelForImageTextToText.from_pretrained(folder).eval(),
        AutoProcessor.from_pretrained(folder),
        [Image.open(path).convert("RGB") for path in paths],
    )


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


def sees(family: Family, inputs, reader: int) -> Tensor:
    """For each position, whether the logits at `reader` depend on what the decoder is given there."""
    held: list[Tensor] = []

    def hold(_, args, kwargs):
        kwargs["inputs_embeds"] = kwargs["inputs_embeds"].detach().requires_grad_()
        held.append(kwargs["inputs_embeds"])
        return args, kwargs

    hook = family.decoder.register_forward_pre_hook(hold, with_kwargs=True)
    try:
        logits = family.model(**inputs).logits
    finally:
        hook.remove()
    (gradient,) = torch.autograd.grad(logits[0, reader].square().sum(), held)
    return gradient[0].abs().sum(-1) > 0


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


def visible(facts: Facts, inputs) -> Tensor:
    """(T, T): which position (column) each position (row) of a prompt with one image sees."""
    size = inputs["input_ids"].shape[1]
    mask = torch.ones(size, size, dtype=torch.bool)
    if facts.prompt_sees_prompt:
        return mask
    mask = mask.tril()
    if facts.image_sees_image:
        kinds = inputs[facts.mask_input][0] == 1
        mask |= kinds[:, None] & kinds[None]
    return mask


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
    with torch.no_grad():
        together = family.decoder(**packed, use_cache=False).last_hidden_state
        logits = family.model.get_output_embeddings()(together)[0]
        alone = torch.cat([family.model(**row).logits[0] for row in rows])
    torch.testing.assert_close(logits, alone, rtol=0, atol=1e-4)


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
