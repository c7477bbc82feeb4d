"""Families whose tokens see later ones or look back over a window: masks, kernels, forms, texts and what is refused."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch

from hacl.config import Config, LearningRates, ObjectiveConfig
from hacl.data.collate import PackedCollator
from hacl.data.image_formats import ImageText
from hacl.data.templates import SequenceEncoder
from hacl.models.adapters import UnsupportedModelError, find_adapter
from hacl.models.attention import masked_attention, resolve, set_attention
from hacl.models.attention_masks import Reach, block_mask, subtree_ends, visible
from hacl.training import kernels
from hacl.training.groups import parameter_groups
from hacl.training.objective import text_states
from tests.families.loaded import WORDS
from tests.families.test_packed import Case, encoder_of
from tests.reference.masks import seen_pairs

MASKED = ("gemma3", "paligemma", "molmo2")
STRICT = {"form": "strict"}


masked = pytest.mark.parametrize("family", MASKED, indirect=True)
paligemma = pytest.mark.parametrize("family", ["paligemma"], indirect=True)


def test_the_families_with_masks_of_their_own_are_those_of_the_facts(family):
    facts = family.facts
    assert (family.name in MASKED) == (facts.image_sees_image or bool(facts.layer_types))
    assert find_adapter(family.model).own_masks == (family.name in MASKED)


@masked
@pytest.mark.parametrize("form", ["strict", "trees"])
def test_the_mask_of_a_batch_is_that_of_every_pair_of_tokens(family, tmp_path, form):
    settings = STRICT if form == "strict" else {**STRICT, "share_prefixes": True, "likelihood_margin_weight": 1.0}
    batch = Case(family, tmp_path, **settings).batch
    segments, islands, positions = (batch[name] for name in ("segment_ids", "islands", "position_ids"))
    tree = batch.get("subtree_end")
    assert (tree is not None) == (form == "trees") and (islands >= 0).any()
    for window in (None, 5):
        reach = Reach(islands, positions, window)
        ends = subtree_ends(segments) if tree is None else tree
        expected = seen_pairs(segments, ends, islands, positions, window)
        assert torch.equal(visible(segments, tree, reach)[:, 0], expected)
        rows, tokens = segments.shape
        places = torch.meshgrid(torch.arange(rows), torch.arange(tokens), torch.arange(tokens), indexing="ij")
        found = block_mask(segments, tree, reach).mask_mod(places[0], 0, *places[1:])
        assert torch.equal(found, expected), "FlexAttention sees the same"
        added = masked_attention("eager", segments, tree, reach, torch.float32)[:, 0]
        assert torch.equal(added == 0, expected) and bool((added[~expected] < -1e30).all())


@masked
@pytest.mark.parametrize("implementation", ["eager", "flex_attention"])
def test_states_do_not_depend_on_the_implementation(family, tmp_path, implementation):
    case = Case(family, tmp_path, **STRICT)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        expected = case.model.float().encode(case.batch)[0]
        set_attention(case.model.adapter.decoder, implementation)
        found = case.model.encode(case.batch)[0]
    real = case.batch["segment_ids"] > 0
    torch.testing.assert_close(found[real], expected[real], rtol=0, atol=1e-4)


@masked
def test_kernels_that_know_causal_sequences_alone_are_not_chosen_and_refused(family):
    for device in ("cpu", "cuda"):
        for trees in (False, True):
            assert resolve("auto", trees=trees, dtype=torch.bfloat16, masks=True, device=device) == "sdpa"
    for asked in ("segments", "flash_attention_2"):
        with pytest.raises(ValueError, match="causal sequences only.*use auto or one of sdpa"):
            resolve(asked, trees=False, dtype=torch.bfloat16, masks=True, device="cuda")
    config = Config(objective=ObjectiveConfig(**STRICT))
    adapter = find_adapter(copy.deepcopy(family.model))
    kernels.prepare(adapter, config)
    assert adapter.decoder.config._attn_implementation == "sdpa"
    config.model.attn_implementation = "segments"
    with pytest.raises(ValueError, match="causal sequences only"):
        kernels.prepare(adapter, config)


@masked
def test_a_batch_with_images_and_no_islands_is_refused(family, tmp_path):
    case = Case(family, tmp_path, **STRICT)
    del case.batch["islands"]
    with pytest.raises(ValueError, match="no 'islands'"):
        case.model.encode(case.batch)


@masked
def test_recomputed_activations_give_the_same_loss_and_gradients(family, tmp_path):
    results = []
    for is_on in (False, True):
        case = Case(family, tmp_path, **STRICT)
        if is_on:
            case.model.gradient_checkpointing_enable()
        loss = case.model(**case.batch).loss
        loss.backward()
        results.append((loss.detach(), {n: p.grad for n, p in case.model.named_parameters() if p.grad is not None}))
    assert torch.equal(results[0][0], results[1][0]) and results[0][1].keys() == results[1][1].keys()
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient, rtol=1e-9, atol=1e-12)


@masked
def test_the_optimizer_holds_every_parameter_once(family, tmp_path):
    model = Case(family, tmp_path, **STRICT).model
    groups = parameter_groups(model, LearningRates(vision=1.0, projector=1.0, llm=1.0, heads=1.0), 0.1)
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    tied = model.adapter.embed_tokens.weight is model.adapter.lm_head.weight
    assert tied == family.facts.tied


@masked
def test_states_of_texts_by_themselves_are_those_of_a_training_step(family, tmp_path):
    case = Case(family, tmp_path, **STRICT)
    with torch.no_grad():
        _, reads = case.model.encode(case.batch)
        packed = case.model.read(reads, case.batch).caption_BCD[case.batch["caption_valid"]]
    roots = [root for sample in case.samples for root in sample.caption_roots]
    alone = text_states(case.model, roots, encoder=case.encoder)
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-5)


@masked
def test_no_label_is_an_id_without_a_logit(family, tmp_path):
    case = Case(family, tmp_path, **STRICT)
    logits, embeddings = len(case.model.adapter.lm_head.weight), len(case.model.adapter.embed_tokens.weight)
    assert embeddings - logits == family.facts.head_lacks
    assert int(case.batch["label_target"].max()) < logits
    source = case.batch["input_ids"][case.batch["image_source"] >= 0]
    assert bool((source == family.image_id).all())


@masked
def test_islands_are_the_images_those_of_one_sequence_or_the_prompt(family, tmp_path):
    case = Case(family, tmp_path, **STRICT)
    sequence = case.samples[-1].generation if family.template == "chat" else case.samples[0].generation
    runs = [list(span) for span in sequence.image_spans]
    places = {number: [t for t, n in enumerate(sequence.islands) if n == number] for number in set(sequence.islands)}
    places.pop(-1)
    if family.facts.prompt_sees_prompt:
        assert list(places.values()) == [list(range(sequence.is_label.index(True)))]
        assert case.samples[0].image_root.islands[-2:] == [0, -1], "the EOS is seen by none"
    elif family.facts.images_share:
        assert len(runs) == 3 and len(places) == 1
        assert set(places[0]) == {t for start, end in runs for t in range(start, end)}
    else:
        assert len(runs) == len(places) == 3
        for (start, end), number in zip(runs, sorted(places), strict=True):
            assert places[number] == list(range(start + 1, end - 1)), "between the tokens that open and close it"
        assert all(max(a) < min(b) for a, b in pairwise(places[n] for n in sorted(places)))


# Gemma 3


def newline_tokenizer(family):
    """The words of the family's tokenizer, and a token for every run of line breaks, as in Gemma's vocabulary."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = {"boi_token": "<start_of_image>", "image_token": "<image_soft_token>", "eoi_token": "<end_of_image>"}
    words = ["<pad>", "<bos>", "<eos>", "<unk>", "<start_of_turn>", "<end_of_turn>", *names.values()]
    words += [chr(10) * count for count in range(1, 6)] + ["user", "model", *WORDS.split(), "a", "red", "square"]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\n+| +"), "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    special = dict(bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **special, extra_special_tokens=names)
    tokenizer.add_tokens(["<start_of_turn>", "<end_of_turn>"], special_tokens=True)
    return tokenizer


TURNS = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + "
    "('model' if message['role'] == 'assistant' else message['role']) + '\n' }}{% for part in message['content'] %}"
    "{{ '<start_of_image>' if part['type'] == 'image' else part['text'] | trim }}{% endfor %}{{ '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


@pytest.mark.parametrize("family", ["gemma3"], indirect=True)
@pytest.mark.parametrize("count", [1, 2])
def test_line_breaks_around_gemma_images_join_those_of_the_template_as_in_the_stock_processor(family, count):
    images = family.processor.image_processor
    processor = type(family.processor)(images, newline_tokenizer(family), chat_template=TURNS, image_seq_length=4)
    content = [{"type": "image"}] * count + [{"type": "text", "text": WORDS}]
    turns = [{"role": "user", "content": content}]
    turns.append({"role": "assistant", "content": [{"type": "text", "text": "a red square"}]})
    text = processor.apply_chat_template(turns, tokenize=False)
    stock = processor(images=[family.images[:count]], text=[text], add_special_tokens=False)["input_ids"][0]
    encoder = SequenceEncoder(processor, template="chat", prompt=WORDS, max_length=99, max_caption_length=9)
    marks = "<image>" * count
    sequence = encoder.conversation_sequence([("user", marks + WORDS), ("assistant", "a red square")])
    kept = len(sequence.ids)
    assert sequence.ids == stock[:kept] and stock[kept:] == processor.tokenizer.convert_tokens_to_ids([chr(10)])
    tokens = processor.tokenizer.convert_ids_to_tokens(sequence.ids)
    assert tokens[2:5] == ["user", chr(10) * 3, "<start_of_image>"] and len(sequence.image_spans) == count
    assert [tokens[t] for t, is_label in enumerate(sequence.is_label) if is_label] == [
        "a", "red", "square", "<end_of_turn>",
    ]  # fmt: skip
    plain = SequenceEncoder(processor, template="plain", prompt=WORDS, max_length=99, max_caption_length=9)
    text = f"<bos><start_of_image>{WORDS}{chr(10)}"
    stock = processor(images=[family.images[:1]], text=[text], add_special_tokens=False)["input_ids"][0]
    sequence = plain.caption_sequence("a", answer=False)
    assert sequence.ids == stock and sequence.ids[: sequence.image_spans[0][0]] == plain.image_prefix


# PaliGemma


@paligemma
@pytest.mark.parametrize("form", ["in_place", "eos_branch"])
def test_paligemma_is_trained_in_the_strict_form_alone(family, form):
    adapter = find_adapter(copy.deepcopy(family.model))
    config = Config(objective=ObjectiveConfig(form=form))
    with pytest.raises(ValueError, match=f"objective.form={form}: .*set objective.form=strict"):
        kernels.prepare(adapter, config)
    config.objective.contrastive_weight = 0.0
    kernels.prepare(adapter, config)


@paligemma
def test_a_branch_that_lacks_what_its_image_sees_is_refused(family, tmp_path):
    case = Case(family, tmp_path)
    objective = ObjectiveConfig(form="eos_branch", num_hallucinated=1)
    with pytest.raises(ValueError, match="sees later tokens that only some of them have; set"):
        PackedCollator(case.encoder, objective)(case.samples)


@paligemma
def test_paligemma_records_are_written_as_its_processor_writes_prompt_and_answer(family):
    encoder = encoder_of(family)
    stock = family.processor(
        images=[[family.images[0]]], text=[f"<image>{WORDS}"], suffix=["a red square"], return_tensors="pt"
    )
    sequence = encoder.caption_sequence("a red square")
    assert sequence.ids == stock["input_ids"][0].tolist()
    assert [label for label, is_label in zip(sequence.ids, sequence.is_label, strict=True) if is_label] == [
        label for label in stock["labels"][0].tolist() if label != -100
    ]
    assert [int(number < 0) for number in sequence.islands] == stock["token_type_ids"][0].tolist()
    prompt = sequence.is_label.index(True)
    types = ImageText(family.processor).token_types(len(sequence), sequence.image_spans, [], prompt)
    assert types == {"token_type_ids": stock["token_type_ids"][0].tolist()}


@paligemma
def test_paligemma_has_no_chat(family):
    with pytest.raises(ValueError, match="set data.template=plain"):
        SequenceEncoder(family.processor, template="chat", prompt="", max_length=99, max_caption_length=9)


@paligemma
def test_a_paligemma_that_caps_its_logits_is_refused(family):
    model = copy.deepcopy(family.model)
    model.config.text_config.final_logit_softcapping = 30.0
    with pytest.raises(UnsupportedModelError, match=r"caps its logits at 30.0"):
        find_adapter(model)
