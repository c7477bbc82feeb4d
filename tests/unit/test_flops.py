"""Promises of the cost model: it equals torch's counter, and the least work does not grow with what is redundant."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForImageTextToText, LlavaConfig, LlavaForConditionalGeneration

from hacl.config import LearningRates, LoraSettings, ModelConfig, ObjectiveConfig
from hacl.models.adapters import find_adapter
from hacl.models.random_llava import Size, llava_config
from hacl.training import build as builders
from hacl.training import label_loss
from hacl.training.flops import Execution, blocks_of, counting, recording, step_cost
from hacl.training.label_loss import plain_limit
from hacl.training.objective import HaclModel
from hacl.training.work import Work, count_work
from tests.reference.trie import contexts
from tests.tiny import build_tiny_model
from tests.tiny_families import TEXT, tiny_causal_model, tiny_gpt2_model
from tests.unit.test_packed_step import build, conversation, make_records

FULL = LearningRates(vision=1.0, projector=1.0, llm=1.0, heads=1.0)
TRAINED = {
    "everything": ModelConfig(learning_rate=FULL),
    "language model and projector": ModelConfig(learning_rate=LearningRates(llm=1.0)),
    "projector": ModelConfig(),
    "heads": ModelConfig(learning_rate=LearningRates(projector=0.0)),
    "LoRA and projector": ModelConfig(learning_rate=LearningRates(llm=1.0), lora=LoraSettings(rank=4)),
    "LoRA alone": ModelConfig(learning_rate=LearningRates(llm=1.0, projector=0.0), lora=LoraSettings(rank=4)),
}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A LLaVA in which heads and rotations are small beside the rest, as they are at full size."""
    return build_tiny_model(tmp_path_factory.mktemp("wide") / "llava", "llava", width=64)


def prepare(folder, root, records=None, trained="everything", **settings):
    """(model as it trains, its batch, its cost)."""
    records = records or make_records(root)
    plain, _, batch = build(folder, root, records, dtype=torch.float32, **settings)
    backbone = builders.select_trainable(plain.backbone, TRAINED[trained], masters=False)
    model = HaclModel(backbone, plain.objective).train()
    return model, batch, step_cost(model.adapter, model.heads, {"pixel_values": batch["pixel_values"][:1]})


def counted(call):
    with counting() as counter:
        call()
    return counter.get_total_flops()


def assert_counted(model, batch, cost, **how):
    step = counted(lambda: model(**batch).loss.backward())
    assert cost.executed(count_work(batch), Execution(**how)) == pytest.approx(step, rel=0.003)


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("form, hallucinated", [("in_place", 0), ("in_place", 2), ("strict", 1)])
def test_the_executed_work_equals_the_counter_whatever_trains(wide, tmp_path, trained, form, hallucinated):
    model, batch, cost = prepare(wide, tmp_path, trained=trained, form=form, num_hallucinated=hallucinated)
    assert_counted(model, batch, cost)


@pytest.mark.parametrize("count, template", [(1, "plain"), (3, "chat"), (5, "chat")])
def test_it_does_so_for_batches_of_other_lengths(wide, tmp_path, count, template):
    assert_counted(*prepare(wide, tmp_path, make_records(tmp_path)[:count], template=template))


def test_it_does_so_for_convolutional_towers_and_other_decoders(tiny_fast_vlm, wide, tmp_path):
    # Frozen, because torch counts the backward of a grouped convolution as if it had one group.
    assert_counted(*prepare(tiny_fast_vlm, tmp_path, trained="language model and projector"))
    config = LlavaConfig.from_pretrained(wide)
    vocabulary = config.text_config.vocab_size
    wider = {**TEXT, "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 160, "vocab_size": vocabulary}
    qwen = LlavaConfig(
        **{**config.to_dict(), "text_config": {**wider, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}}
    )
    _, batch, _ = prepare(wide, tmp_path)
    model = HaclModel(LlavaForConditionalGeneration(qwen), ObjectiveConfig(num_hallucinated=1)).train()
    assert_counted(model, batch, step_cost(model.adapter, model.heads, {"pixel_values": batch["pixel_values"][:1]}))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "qwen2"])
def test_layers_of_other_text_models_are_found_by_their_shapes(family):
    model = tiny_gpt2_model()[0] if family == "gpt2" else tiny_causal_model(family)
    model.set_attn_implementation("eager")
    ids = torch.arange(24)[None]

    def step():
        model(input_ids=ids).logits.sum().backward()

    with recording(model) as record:
        total = counted(step)
    part = record.part(model)
    attention = 3 * 3 * 4 * 24 * 24 * 32  # blocks, forward and backward, scores and values, tokens squared, width
    assert part.forward + part.backward + attention == pytest.approx(total, rel=0.01)
    assert len(blocks_of(model)) == 3 and part.again > 0


@pytest.mark.parametrize("trained", ["everything", "LoRA and projector", "projector"])
def test_recomputation_and_grad_cache_add_what_they_run_and_nothing_to_the_least_work(wide, tmp_path, trained):
    model, batch, cost = prepare(wide, tmp_path, trained=trained, num_hallucinated=1)
    least = cost.minimal(count_work(batch))
    model.gradient_checkpointing_enable()
    model.train()
    assert_counted(model, batch, cost, recompute=True)
    model.gradient_checkpointing_disable()

    def cached():
        with torch.no_grad():
            model(**batch, only_features=True)
        model(**batch).loss.backward()

    work = count_work(batch)
    assert cost.executed(work, Execution(grad_cache=True)) == pytest.approx(counted(cached), rel=0.01)
    assert cost.executed(work, Execution(grad_cache=True)) > cost.executed(work) > cost.minimal(work) == least


@pytest.mark.parametrize("trained", ["everything", "projector", "heads"])
@pytest.mark.parametrize("kind, size", [("chunked", "CHUNK_BYTES"), ("auto", "AUTO_BYTES"), ("plain", "CHUNK_BYTES")])
def test_the_head_runs_again_where_its_loss_is_in_chunks(wide, tmp_path, monkeypatch, trained, kind, size):
    model, batch, cost = prepare(wide, tmp_path, trained=trained, num_hallucinated=1, lm_loss=kind)
    work, vocabulary = count_work(batch), len(model.adapter.lm_head.weight)

    def both():
        step = counted(lambda: model(**batch).loss.backward())
        how = Execution(plain_labels=plain_limit(kind, vocabulary, is_sharded=False))
        return step, cost.executed(work, how), cost.executed(work + work, how) / 2

    whole = both()
    monkeypatch.setattr(label_loss, size, 4 * vocabulary * (work.labels - 1))
    monkeypatch.setattr(label_loss, "CHUNK_BYTES", 4 * vocabulary * (work.labels // 2))
    again = 0 if kind == "plain" or trained == "heads" else work.labels * cost.head.forward
    assert [mine - its for mine, its in zip(both(), whole, strict=True)] == pytest.approx([again] * 3)
    assert cost.head.forward > 0 and plain_limit("auto", vocabulary, is_sharded=True) == float("inf")


def test_a_batch_without_images_runs_a_blank_one_that_the_least_work_leaves_out(wide, tmp_path):
    records = [conversation("a", (), "what ?", "red"), conversation("b", (), "where is it ?", "left")]
    model, batch, cost = prepare(wide, tmp_path, records, template="chat")
    assert_counted(model, batch, cost)
    work = count_work(batch)
    assert (work.images, work.images_run, work.image_reads) == (0, 1, 0)
    assert cost.minimal(replace(work, images_run=0)) == cost.minimal(work)
    assert work.text_contexts == work.contexts


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"form": "strict"},
        {"form": "eos_branch"},
        {"likelihood_margin_weight": 1.0},
        {"likelihood_margin_weight": 1.0, "share_prefixes": True},
    ],
    ids=str,
)
def test_contexts_are_those_of_a_dictionary_of_prefixes(wide, tmp_path, settings):
    records = make_records(tmp_path)
    records += [
        conversation("text", (), "what colour is it ?", "red"),
        conversation("late", ("2.png",), "what is in <image> ?", "a cross", "which colour ?", "blue"),
    ]
    *_, batch = build(wide, tmp_path, records, template="chat", num_hallucinated=2, **settings)
    work = count_work(batch)
    assert (work.contexts, work.pairs, work.text_contexts, work.text_pairs) == contexts(batch)
    assert work.contexts < work.tokens < work.slots


def test_padding_packing_and_repeated_sequences_do_not_change_the_least_work(wide, tmp_path):
    records = make_records(tmp_path)
    results = []
    for share_rows in (True, False):
        model, batch, cost = prepare(wide, tmp_path, records, share_rows=share_rows, num_hallucinated=2)
        results.append((cost.minimal(count_work(batch)), cost.executed(count_work(batch))))
    assert results[0][0] == results[1][0] and results[0][1] < results[1][1]
    padded = dict(batch)
    for name, value in (("input_ids", 0), ("segment_ids", 0), ("image_source", -1), ("position_ids", 0)):
        padded[name] = torch.nn.functional.pad(batch[name], (0, 64), value=value)
    assert cost.minimal(count_work(padded)) == results[0][0]
    twice = dict(batch)
    for name in ("input_ids", "segment_ids", "image_source", "position_ids"):
        twice[name] = torch.cat([batch[name], batch[name]])
    assert cost.minimal(count_work(twice)) == results[0][0]


@pytest.mark.parametrize("settings", [{}, {"likelihood_margin_weight": 1.0}], ids=str)
def test_shared_prefixes_save_work_that_the_least_work_did_not_have(wide, tmp_path, settings):
    shared, apart = (
        prepare(wide, tmp_path, num_hallucinated=2, share_prefixes=share, **settings) for share in (True, False)
    )
    works = [count_work(batch) for _, batch, _ in (shared, apart)]
    assert shared[2].minimal(works[0]) == apart[2].minimal(works[1])
    assert works[0].tokens < works[1].tokens and works[0].packed_pairs < works[1].packed_pairs
    assert_counted(*shared)


def test_constant_text_needs_no_backward_and_cached_text_and_features_no_pass(wide, tmp_path):
    model, batch, cost = prepare(wide, tmp_path, trained="projector", num_hallucinated=1)
    work = count_work(batch)
    text = work.text_contexts * cost.decoder.backward + work.text_pairs * cost.attention.attention * 2
    assert cost.constant_text and text > 0
    assert replace(cost, constant_text=False).minimal(work) == pytest.approx(cost.minimal(work) + text)
    cached = {**batch, "image_features": torch.zeros(5, 16, 64)}
    del cached["pixel_values"]
    found = count_work(cached)
    assert cost.minimal(work) - cost.minimal(found) == pytest.approx(cost.vision.total(5))
    assert cost.executed(work) - cost.executed(found) == pytest.approx(cost.vision.total(5))


def test_the_cost_leaves_gradients_as_they_were(wide, tmp_path):
    model, _, _ = prepare(wide, tmp_path)
    assert all(p.grad is None for p in model.parameters())


def triangle(length):
    return length * (length + 1) // 2


def test_llava_at_full_size_costs_what_the_literature_of_its_parts_says():
    """Six operations per token and matrix weight, and the ratios of a packed step that follow from its lengths."""
    with torch.device("meta"):
        backbone = AutoModelForImageTextToText.from_config(llava_config(Size(), 32000), dtype=torch.bfloat16)
        adapter = find_adapter(backbone)
        adapter.vision_tower.requires_grad_(False)
        cost = step_cost(adapter, None, {"pixel_values": torch.empty(1, 3, 336, 336, dtype=torch.bfloat16)})
    weights = sum(p.numel() for p in adapter.blocks.parameters() if p.dim() == 2)
    assert cost.decoder.forward == 2 * weights and cost.decoder.backward == 4 * weights
    assert cost.attention.attention == 4 * 4096 * 32
    expected = {(256, 40, 45, 1): 1.29, (576, 15, 18, 1): 1.06, (576, 40, 45, 1): 1.14, (576, 100, 110, 45): 1.29}
    for (image, caption, hallucinated, prompt), ratio in expected.items():
        length = image + caption + prompt
        plain = Work(contexts=length, pairs=triangle(length), labels=caption)
        roots = {"contexts": caption + hallucinated, "pairs": triangle(caption) + triangle(hallucinated)}
        assert cost.minimal(plain + Work(**roots)) / cost.minimal(plain) == pytest.approx(ratio, rel=0.01)
