"""The packed step is the four-pass step: same losses, same gradients, no leaks, one decoder call."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from hacl.config import ObjectiveConfig
from hacl.data.collate import PackedCollator
from hacl.data.dataset import TrainingDataset
from hacl.data.records import HallucinatedCaption, Record, Turn
from hacl.data.templates import SequenceEncoder
from hacl.training.objective import HaclModel, constant_text, text_states
from tests.reference.four_pass import four_pass_loss

CAPTIONS = [
    ("a red square on the left", ["a blue square on the left", "a red circle", "two red square on the left"]),
    ("the large green circle is near the small yellow cross", ["the large green circle is near the small red cross"]),
    ("blue triangle", ["yellow triangle", "blue triangle and a large red square at the top"]),
    ("a yellow cross in the top", []),
    ("a small green triangle on the right", ["a small green square on the right"] * 3),
]


def make_records(folder):
    records = []
    for index, (caption, edits) in enumerate(CAPTIONS):
        noise = torch.randint(0, 255, (48, 40, 3), generator=torch.Generator().manual_seed(index), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(folder / f"{index}.png")
        hallucinated = tuple(HallucinatedCaption(text=edit, type="attribute", of=0) for edit in edits)
        records.append(
            Record(
                id=str(index),
                images=(f"{index}.png",),
                image_id=str(index),
                captions=(caption,),
                hallucinated=hallucinated,
                conversation=(),
                objects=None,
                extra={},
            )
        )
    return records


def conversation(id, images, *turns):
    turns = tuple(Turn(role="user" if i % 2 == 0 else "assistant", text=text) for i, text in enumerate(turns))
    return Record(
        id=id, images=images, image_id=id, captions=(), hallucinated=(), conversation=turns, objects=None, extra={}
    )


def norm_in_fp64(module, states):
    """Llama's RMSNorm without its cast to fp32, whose rounding would hide differences below 1e-8."""
    return module.weight * states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)


def build(
    model_folder,
    image_root,
    records,
    *,
    template="plain",
    dtype=torch.float64,
    share_rows=True,
    attention="sdpa",
    **settings,
):
    """(HaclModel in fp64, samples, batch) for an objective with `settings`."""
    torch.manual_seed(0)
    objective = ObjectiveConfig(**settings)
    processor = AutoProcessor.from_pretrained(model_folder)
    backbone = AutoModelForImageTextToText.from_pretrained(model_folder, attn_implementation=attention, dtype=dtype)
    for module in backbone.modules():
        if isinstance(module, LlamaRMSNorm):
            module.forward = partial(norm_in_fp64, module)
    encoder = SequenceEncoder(
        processor, template=template, prompt="describe the image", max_length=256, max_caption_length=64
    )
    dataset = TrainingDataset(records, encoder, image_root=image_root, objective=objective, seed=0)
    samples = [dataset[i] for i in range(len(dataset))]
    for sample in samples:
        sample.pixels = [{name: tensor.to(dtype) for name, tensor in image.items()} for image in sample.pixels]
    model = HaclModel(backbone, objective).to(dtype).train()
    batch = PackedCollator(encoder, objective, share_rows=share_rows)(samples)
    return model, samples, batch


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_step(model, samples, batch, rtol=1e-10):
    output = model(**batch)
    packed = gradients(model, output.loss)
    loss, lm, contrastive = four_pass_loss(model, samples)
    separate = gradients(model, loss)
    assert output.loss.item() == pytest.approx(loss.item(), rel=rtol)
    assert (output.lm_sum / output.lm_tokens.clamp_min(1)).item() == pytest.approx(lm.item(), rel=rtol)
    assert output.contrastive.item() == pytest.approx(contrastive.item(), rel=rtol)
    assert set(separate) <= set(packed)
    scale = max(grad.abs().max() for grad in separate.values())
    for name, grad in packed.items():
        expected = separate.get(name, torch.zeros_like(grad))
        difference = (grad - expected).norm() / max(expected.norm(), scale * 1e-3)
        assert difference < rtol, f"{name}: relative difference {difference:.2e}"


@pytest.mark.parametrize("hallucinated", [0, 1, 2, 3])
@pytest.mark.parametrize("form", ["in_place", "strict"])
def test_packed_step_equals_four_passes_in_loss_and_every_gradient(tiny_model, tmp_path, form, hallucinated):
    model, samples, batch = build(
        tiny_model, tmp_path, make_records(tmp_path), form=form, num_hallucinated=hallucinated, learn_temperature=True
    )
    assert_same_step(model, samples, batch)


@pytest.mark.parametrize(
    "settings",
    [
        {"image_pool": "mean", "text_pool": "mean", "layer": 1},
        {"layer": 2, "head": "mlp"},
        {"head": "none", "hard_scope": "local", "num_hallucinated": 2},
        {"lm_weight": 0.0},
        {"contrastive_weight": 0.0},
        {"likelihood_margin_weight": 0.7, "likelihood_margin": 1.0, "contrastive_weight": 0.0, "num_hallucinated": 2},
        {"likelihood_margin_weight": 0.3, "likelihood_margin_beta": 0.5, "form": "strict"},
    ],
    ids=str,
)
def test_every_reading_and_term_equals_its_separate_form(tiny_llava, tmp_path, settings):
    assert_same_step(*build(tiny_llava, tmp_path, make_records(tmp_path), **settings))


def test_mixed_batches_of_dialogues_text_and_captions_equal_four_passes(tiny_llava, tmp_path):
    records = make_records(tmp_path)
    records += [
        conversation("text", (), "what colour is it ?", "red", "is it small ?", "no"),
        conversation("two", ("0.png", "1.png"), "<image> and <image> where ?", "left"),
        conversation("late", ("2.png",), "what is in <image> ?", "a cross", "which colour ?", "blue"),
    ]
    model, samples, batch = build(tiny_llava, tmp_path, records, template="chat", num_hallucinated=2)
    assert batch["image_valid"].tolist() == [True] * 5 + [False] * 3
    assert_same_step(model, samples, batch)


def test_a_batch_without_images_or_captions_still_runs_every_module(tiny_llava, tmp_path):
    records = [conversation("a", (), "what ?", "red"), conversation("b", (), "where ?", "left")]
    model, _, batch = build(tiny_llava, tmp_path, records, template="chat")
    output = model(**batch)
    found = gradients(model, output.loss)
    missing = [name for name, p in model.named_parameters() if p.requires_grad and name not in found]
    unused = [name for name in missing if "vision_tower" not in name]
    assert torch.isfinite(output.loss) and output.contrastive.item() == 0
    assert not unused, f"no gradient, so ranks would fall out of step: {unused}"


@pytest.mark.parametrize("share_rows", [True, False])
def test_no_sequence_sees_another(tiny_llava, tmp_path, share_rows):
    model, _, batch = build(tiny_llava, tmp_path, make_records(tmp_path), num_hallucinated=2, share_rows=share_rows)
    model.eval()
    states, _ = model.encode(batch)
    segments = batch["segment_ids"]
    for row in range(len(segments)):
        for segment in range(1, int(segments[row].max()) + 1):
            changed = dict(batch, input_ids=batch["input_ids"].clone())
            inside = torch.zeros_like(segments, dtype=torch.bool)
            inside[row] = segments[row] == segment
            changed["input_ids"][inside & (batch["image_source"] < 0)] = 7
            moved, _ = model.encode(changed)
            assert torch.equal(moved[~inside & (segments > 0)], states[~inside & (segments > 0)])


def test_the_decoder_runs_once_per_step_and_the_head_sees_label_positions_only(tiny_llava, tmp_path):
    model, _, batch = build(tiny_llava, tmp_path, make_records(tmp_path), num_hallucinated=2)
    calls, rows = [], []
    model.adapter.decoder.register_forward_hook(lambda *_: calls.append(1))
    model.adapter.lm_head.register_forward_hook(lambda _, args, __: rows.append(args[0].shape[0]))
    model(**batch)
    assert len(calls) == 1
    assert rows == [len(batch["label_target"])]


def test_text_states_of_a_frozen_decoder_are_constant_and_equal_to_the_live_ones(tiny_llava, tmp_path):
    model, samples, batch = build(tiny_llava, tmp_path, make_records(tmp_path), num_hallucinated=2)
    assert not constant_text(model.backbone)
    model.adapter.decoder.requires_grad_(False)
    assert constant_text(model.backbone)
    model.adapter.embed_tokens.requires_grad_(True)
    assert not constant_text(model.backbone)
    model.adapter.embed_tokens.requires_grad_(False)

    class Cache:
        width, dtype = model.adapter.hidden_size, torch.float64

        def lookup(self, roots):
            return text_states(model, roots, encoder=encoder)

    encoder = SequenceEncoder(
        AutoProcessor.from_pretrained(tiny_llava), template="plain", prompt="", max_length=256, max_caption_length=64
    )
    cached = PackedCollator(encoder, model.objective, text_states=Cache())(samples)
    assert "caption_read" not in cached and cached["input_ids"].numel() < batch["input_ids"].numel()
    live = model(**batch)
    expected = gradients(model, live.loss)
    output = model(**cached)
    found = gradients(model, output.loss)
    assert output.loss.item() == pytest.approx(live.loss.item(), rel=1e-10)
    assert expected.keys() == found.keys() and not any("language_model" in name for name in found)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12)


def test_frozen_parts_stay_in_eval_mode_and_recomputation_changes_nothing(tiny_fast_vlm, tmp_path):
    model, _, batch = build(tiny_fast_vlm, tmp_path, make_records(tmp_path), num_hallucinated=1)
    model.adapter.vision_tower.requires_grad_(False)
    model.adapter.decoder.requires_grad_(False)
    model.adapter.lm_head.requires_grad_(False)
    model.train()
    assert not any(part.training for part in model.adapter.vision_tower.modules())
    assert not model.adapter.decoder.training and model.adapter.projector.training
    plain = gradients(model, model(**batch).loss)
    model.gradient_checkpointing_enable()
    model.train()
    assert model.adapter.decoder.training
    blocks = []
    model.adapter.blocks[0].input_layernorm.register_forward_pre_hook(lambda *_: blocks.append(1))
    recomputed = gradients(model, model(**batch).loss)
    assert len(blocks) == 2, "the first block must run again in the backward pass"
    for name in plain:
        torch.testing.assert_close(recomputed[name], plain[name], rtol=1e-10, atol=1e-14)


def test_an_image_token_count_that_does_not_fit_is_an_error_that_names_the_settings(tiny_llava, tmp_path):
    model, _, batch = build(tiny_llava, tmp_path, make_records(tmp_path))
    model.adapter.model.config.vision_feature_select_strategy = "full"
    with pytest.raises(ValueError, match="wrong image-token count.*patch_size"):
        model(**batch)


def test_no_image_reaches_another_image_or_a_text(tiny_llava, tmp_path):
    model, _, batch = build(tiny_llava, tmp_path, make_records(tmp_path), num_hallucinated=2)
    model.eval()
    states, _ = model.encode(batch)
    moved_batch = dict(batch, pixel_values=batch["pixel_values"].clone())
    moved_batch["pixel_values"][1] = torch.randn_like(moved_batch["pixel_values"][1])
    moved, _ = model.encode(moved_batch)
    row, start, _ = batch["image_read"][1].tolist()
    reads = batch["segment_ids"]
    touched = torch.zeros_like(reads, dtype=torch.bool)
    touched[row] = reads[row] == reads[row, start]
    assert torch.equal(moved[~touched & (reads > 0)], states[~touched & (reads > 0)])
    assert not torch.equal(moved[touched], states[touched])


def test_an_image_after_the_question_is_moved_to_the_front_and_read(tiny_llava, tmp_path):
    record = make_records(tmp_path)[0]
    turns = (Turn("user", "what colour is it ? <image>"), Turn("assistant", "red"))
    record = replace(record, conversation=turns)
    model, samples, batch = build(tiny_llava, tmp_path, [record], template="chat")
    assert batch["image_valid"].tolist() == [True]
    assert_same_step(model, samples, batch)


def test_a_captioned_record_with_turns_gives_margin_pairs_under_the_plain_template(tiny_llava, tmp_path):
    turns = (Turn("user", "<image>"), Turn("assistant", CAPTIONS[0][0]))
    record = replace(make_records(tmp_path)[0], conversation=turns)
    settings = {"likelihood_margin_weight": 1.0, "contrastive_weight": 0.0}
    _, _, batch = build(tiny_llava, tmp_path, [record], **settings)
    assert batch["sequence_kind"].tolist() == [0, 1]


def test_drawing_of_captions_depends_on_seed_epoch_and_record_only(tiny_llava, tmp_path):
    records = make_records(tmp_path)
    encoder = SequenceEncoder(
        AutoProcessor.from_pretrained(tiny_llava), template="plain", prompt="", max_length=256, max_caption_length=64
    )
    settings = dict(image_root=tmp_path, objective=ObjectiveConfig(num_hallucinated=1), load_pixels=False)

    def draws(order, seed, epoch):
        dataset = TrainingDataset([records[i] for i in order], encoder, seed=seed, **settings)
        dataset.set_epoch(epoch)
        return {dataset[i].record_id: dataset[i].hallucinated_roots for i in range(len(order))}

    first = draws([0, 1, 2, 3, 4], 0, 0)
    assert first == draws([4, 2, 0, 1, 3], 0, 0)
    assert any(draws([0, 1, 2, 3, 4], 0, epoch) != first for epoch in range(1, 6))


def test_eager_and_sdpa_attention_agree_on_packed_rows(tiny_llava, tmp_path):
    records = make_records(tmp_path)
    losses = [build(tiny_llava, tmp_path, records, attention=kind, num_hallucinated=2) for kind in ("sdpa", "eager")]
    sdpa, eager = (model(**batch).loss.item() for model, _, batch in losses)
    assert sdpa == pytest.approx(eager, rel=1e-6), "eager attention takes its softmax in fp32"
