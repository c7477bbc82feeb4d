"""An EOS branch and shared beginnings change where tokens lie, and nothing else: same losses, same gradients."""

import pytest
from transformers import AutoProcessor

from hacl.config import load_config
from hacl.config_io import ConfigError
from hacl.data.collate import PackedCollator
from hacl.data.packing import merge_prefixes
from hacl.data.templates import SequenceEncoder
from hacl.evaluation.states import image_sequence
from tests.unit.test_packed_step import assert_same_step, build, conversation, make_records

SHARED = {"share_prefixes": True, "num_hallucinated": 3}


def encoder_of(folder):
    processor = AutoProcessor.from_pretrained(folder)
    return SequenceEncoder(
        processor, template="plain", prompt="describe the image", max_length=256, max_caption_length=64
    )


def mixed(folder):
    return [
        *make_records(folder),
        conversation("text", (), "what colour is it ?", "red", "is it small ?", "no"),
        conversation("two", ("0.png", "1.png"), "<image> and <image> where ?", "left"),
        conversation("late", ("2.png",), "what is in <image> ?", "a cross", "which colour ?", "blue"),
    ]


def test_a_trie_of_three_levels_keeps_every_sequence_and_who_precedes_whom():
    sequences = ["abcx", "abcyz", "abcyw", "abd", "q", "abcyz"]
    tree = merge_prefixes(sequences)
    assert len(tree) == len("abcx" + "yz" + "w" + "d" + "q")
    assert list(tree.columns[0]) == [0, 1, 2, 3], "the first sequence lies in one piece"
    for sequence, path in zip(sequences, tree.columns, strict=True):
        assert "".join(tree.tokens[i] for i in path) == sequence
        assert [tree.depth[i] for i in path] == list(range(len(sequence)))
    for q in range(len(tree)):
        seen = {k for k in range(len(tree)) if k <= q < tree.end[k]}
        path = next(list(path)[: list(path).index(q) + 1] for path in tree.columns if q in path)
        assert seen == set(path), "a token sees its own path and nothing beside it"


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_the_eos_branch_equals_a_separate_pass_over_prefix_image_and_eos(tiny_model, tmp_path, template):
    model, samples, batch = build(
        tiny_model, tmp_path, mixed(tmp_path)[: 8 if template == "chat" else 5], template=template,
        form="eos_branch", num_hallucinated=2,
    )  # fmt: skip
    rows, columns, ends = batch["image_read"].unbind(-1)
    valid = batch["image_valid"]
    assert bool((ends - columns == 1)[valid].all())
    assert bool((batch["input_ids"][rows, columns] == model.config.text_config.eos_token_id)[valid].all())
    assert_same_step(model, samples, batch)


def test_nothing_later_sees_the_eos_and_its_position_is_the_next_one(tiny_llava, tmp_path):
    model, samples, batch = build(tiny_llava, tmp_path, make_records(tmp_path), form="eos_branch")
    _, _, without = build(tiny_llava, tmp_path, make_records(tmp_path))
    tokens = [int((rows["segment_ids"] > 0).sum()) for rows in (without, batch)]
    assert tokens[1] == tokens[0] + len(samples), "a branch is one token"
    model.eval()
    states, _ = model.encode(batch)
    for sample, (row, column, _) in zip(samples, batch["image_read"].tolist(), strict=True):
        end = sample.generation.image_spans[0][1]
        assert batch["position_ids"][row, column] == end
        changed = dict(batch, input_ids=batch["input_ids"].clone())
        changed["input_ids"][row, column] = 7
        moved, _ = model.encode(changed)
        differs = (moved != states).any(-1)
        assert differs[row, column] and differs.sum() == 1


@pytest.mark.parametrize("form", ["in_place", "eos_branch", "strict"])
@pytest.mark.parametrize(("template", "pool"), [("plain", "last"), ("chat", "last"), ("chat", "mean")])
def test_shared_beginnings_equal_separate_roots(tiny_llava, tmp_path, form, template, pool):
    records = mixed(tmp_path)[: 8 if template == "chat" else 5]
    settings = {"template": template, "form": form, "text_pool": pool}
    model, samples, batch = build(tiny_llava, tmp_path, records, **settings, **SHARED)
    assert_same_step(model, samples, batch)


def test_generation_sequences_share_their_image_under_the_likelihood_margin(tiny_llava, tmp_path):
    settings = {"likelihood_margin_weight": 0.5, "num_hallucinated": 3, "form": "eos_branch"}
    model, samples, batch = build(tiny_llava, tmp_path, make_records(tmp_path), share_prefixes=True, **settings)
    assert (batch["image_source"] >= 0).sum() == len(samples) * 16, "one image per sample, however many captions"
    assert_same_step(model, samples, batch)


def test_several_captions_with_trees_of_three_levels_equal_separate_roots(tiny_llava, tmp_path):
    model, samples, batch = build(tiny_llava, tmp_path, make_records(tmp_path)[:1], form="eos_branch", **SHARED)
    texts = [
        "a red square on the right",
        "a red square on the right side",
        "a red circle on the left",
        "the red square",
    ]
    encoder = encoder_of(tiny_llava)
    samples[0].hallucinated_roots = [encoder.root(text) for text in texts]
    samples[0].hallucinated_keys = [1, 2, 3, 4]
    samples[0].hallucinated_types = [0, 0, 0, 0]
    model.objective.num_hallucinated = 4
    assert_same_step(model, samples, PackedCollator(encoder, model.objective)(samples))


def test_saved_tokens_are_counted_and_reported(tiny_llava, tmp_path):
    records = make_records(tmp_path)
    _, _, apart = build(tiny_llava, tmp_path, records, form="eos_branch", num_hallucinated=3)
    model, _, shared = build(tiny_llava, tmp_path, records, form="eos_branch", **SHARED)
    tokens = [int((batch["segment_ids"] > 0).sum()) for batch in (apart, shared)]
    assert "shared_tokens" not in apart
    assert int(shared["shared_tokens"]) == tokens[0] - tokens[1] > 0
    saved, of = model(**shared).report["shared_token_share"]
    assert (int(saved), int(of)) == (tokens[0] - tokens[1], tokens[0])


def test_diagnostics_read_the_state_that_training_reads(tiny_llava, tmp_path):
    model, samples, _ = build(tiny_llava, tmp_path, make_records(tmp_path), form="eos_branch")
    encoder = encoder_of(tiny_llava)
    sequence, span = image_sequence(encoder, model.objective)
    end = samples[0].generation.image_spans[0][1]
    assert sequence.ids == [*samples[0].generation.ids[:end], *encoder.eos] and span == (end, end + 1)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["objective.form=eos_branch", "objective.image_pool=mean"], "objective.image_pool=last"),
        (["objective.form=eos_branch", "objective.contrastive_weight=0"], "objective.contrastive_weight > 0"),
        (["objective.form=eos_branch", "model.attn_implementation=flash_attention_2"], "flex_attention, segments"),
        (["objective.share_prefixes=true"], "nothing to share"),
        (["objective.share_prefixes=true", "model.learning_rate.llm=1e-5", "objective.num_hallucinated=0"], "nothing"),
    ],
)
def test_a_form_that_would_be_ignored_is_refused(settings, reason):
    with pytest.raises(ConfigError, match=reason):
        load_config(None, settings)


def test_forms_that_have_an_effect_are_accepted():
    load_config(None, ["objective.form=eos_branch"])
    load_config(None, ["objective.share_prefixes=true", "train.cache_text_states=false"])
    load_config(None, ["objective.share_prefixes=true", "objective.likelihood_margin_weight=1"])
