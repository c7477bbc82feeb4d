"""A window of micro-batches by GradCache is one contrastive batch: its loss and gradients, with dropout, and once."""

import copy
import json
import shutil
from types import SimpleNamespace
from unittest.mock import MagicMock, Mock

import pytest
import torch
from safetensors.torch import load_file

import train
from hacl.config import Config, ConfigError, LearningRates, LoraSettings, ModelConfig, load_config
from hacl.data.collate import PackedCollator
from hacl.training import build as build_run
from hacl.training import contrastive_step, grad_cache
from hacl.training.accumulation import label_tokens
from hacl.training.contrastive_step import SCALE, concatenate
from hacl.training.grad_cache import Window
from hacl.training.metrics import ReportMeter, ratios
from hacl.training.objective import compose
from hacl.training.trainer import HaclTrainer
from tests.tiny import write_tiny_records
from tests.unit.test_packed_step import build, conversation, make_records

SETTINGS = {"num_hallucinated": 2, "hard_scope": "global", "learn_temperature": True, "temperature": 0.3}
CHUNKS = [[0, 1, 5], [2, 3], [4]]


def case(model_folder, folder, **settings):
    """(model, micro-batches of unequal size, the whole as one batch); sample 5 is text only."""
    records = [*make_records(folder), conversation("text", (), "what ?", "red")]
    model, samples, whole = build(model_folder, folder, records, template="chat", **{**SETTINGS, **settings})
    encoder = encoder_of(model_folder)
    collate = PackedCollator(encoder, model.objective)
    return model, [collate([samples[i] for i in chunk]) for chunk in CHUNKS], whole


def encoder_of(model_folder):
    from transformers import AutoProcessor

    from hacl.data.templates import SequenceEncoder

    processor = AutoProcessor.from_pretrained(model_folder)
    return SequenceEncoder(
        processor, template="chat", prompt="describe the image", max_length=256, max_caption_length=64
    )


def add_lora(model):
    """LoRA with dropout on all linears of the decoder, with random matrices so that all of them have gradients."""
    settings = ModelConfig(learning_rate=LearningRates(llm=1e-3), lora=LoraSettings(rank=2, alpha=4, dropout=0.3))
    model.backbone = build_run.select_trainable(model.backbone, settings, masters=False)
    model.double().train()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3, generator=generator)


def bare_trainer(model, *, cached, ranks=1, collate=None):
    """A HaclTrainer with what its loss reads."""
    trainer = HaclTrainer.__new__(HaclTrainer)
    trainer.config = Config(objective=model.objective)
    trainer.args, trainer.model = SimpleNamespace(world_size=ranks), model
    trainer._meter, trainer._throughput = ReportMeter(), MagicMock()
    trainer._caches, trainer.data_collator = cached, collate
    for watcher in ("watchdog", "guard", "begin_step", "check_before_backward"):
        setattr(trainer, watcher, Mock())
    trainer.is_deepspeed_enabled = False
    trainer.stop, trainer.state = Mock(received=None), SimpleNamespace(global_step=0)
    return trainer


def begin(trainer, micro_batches, at_most=9):
    """(micro-batches that this rank runs, label tokens of all ranks), the window open where there is one."""
    batches, labels = trainer.get_batch_samples(iter(micro_batches), at_most, torch.device("cpu"))
    trainer.current_gradient_accumulation_steps = len(batches)
    if trainer._window is not None:
        trainer._meter.add(trainer._window.open(lambda batch: batch))
    return batches, labels


def window_step(model, batches, *, cached):
    """(loss, gradients, logged values) of an optimizer step over these micro-batches."""
    trainer = bare_trainer(model, cached=cached)
    model.zero_grad()
    batches, labels = begin(trainer, batches)
    total = 0.0
    for batch in batches:
        loss = trainer.compute_loss(model, batch, num_items_in_batch=labels)
        loss.backward()
        total += loss.detach()
    return total, gradients_of(model), ratios(trainer._meter.reduce())


def gradients_of(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def uncut_step(model, batches, labels=None, ranks=1):
    """The same with every graph kept: all features, one contrastive loss, one backward."""
    model.zero_grad()
    lm_sum, parts = 0.0, []
    for batch in batches:
        states, read_states = model.encode(batch)
        lm_sum = lm_sum + model._generation(states, batch, {})[0]
        parts.append(model.features(model.read(read_states, batch), batch))
    contrastive, _ = model.contrast(concatenate(parts), model.heads.log_inverse_temperature())
    labels = label_tokens(batches) if labels is None else labels
    loss = compose(model.objective, lm_sum * ranks / labels, contrastive, 0.0)
    loss.backward()
    return loss.detach(), gradients_of(model)


def assert_same(found, expected, rtol=1e-9):
    (loss, grads, *_), (expected_loss, expected_grads, *_) = found, expected
    assert loss.item() == pytest.approx(expected_loss.item(), rel=rtol)
    assert grads.keys() == expected_grads.keys()
    scale = max(grad.abs().max() for grad in expected_grads.values())
    for name, gradient in expected_grads.items():
        difference = (grads[name] - gradient).norm() / max(gradient.norm(), scale * 1e-3)
        assert difference < rtol, f"{name}: relative difference {difference:.2e}"


@pytest.mark.parametrize(("form", "is_frozen"), [("in_place", False), ("strict", False), ("in_place", True)])
def test_a_cached_window_is_the_step_of_one_big_batch(tiny_llava, tmp_path, form, is_frozen):
    model, batches, whole = case(
        tiny_llava, tmp_path, form=form, text_margin_weight=0.5, likelihood_margin_weight=0.0 if is_frozen else 0.4
    )
    model.adapter.decoder.requires_grad_(not is_frozen)
    cached = window_step(model, batches, cached=True)
    big = window_step(model, [whole], cached=False)
    assert_same(cached, big)
    assert cached[2] == pytest.approx(big[2], rel=1e-6) and {"contrastive", "i2t", "temperature"} <= set(big[2])
    apart = window_step(model, batches, cached=False)
    assert abs(apart[0] - cached[0]) > 1e-3, "without the cache every micro-batch is a contrastive batch of its own"


def test_every_module_runs_once_without_a_graph_and_once_with_one_per_chunk(tiny_llava, tmp_path):
    """Under ZeRO-3 each of these calls gathers the weights once: 3 c gathers for c chunks."""
    model, batches, _ = case(tiny_llava, tmp_path)
    calls = []

    def note(name, module):
        module.register_forward_hook(lambda *_: calls.append((name, "+" if torch.is_grad_enabled() else "-")))
        module.register_full_backward_hook(lambda *_: calls.append((name, "b")))

    adapter = model.adapter
    note("projector", adapter.projector)
    note("decoder", adapter.decoder.norm)
    note("text", model.heads.text_projection)
    note("head", adapter.lm_head)
    window_step(model, batches, cached=True)
    chunks = len(batches)
    for name in ("projector", "decoder", "text"):
        assert [kind for who, kind in calls if who == name] == ["-"] * chunks + ["+", "b"] * chunks
    assert [kind for who, kind in calls if who == "head"] == ["+", "b"] * chunks, "no LM head in the first pass"


def test_the_first_pass_keeps_no_state_of_the_decoder(tiny_llava, tmp_path):
    model, batches, _ = case(tiny_llava, tmp_path)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape[-1:]) or tensor, lambda x: x):
        Window(model, batches).open(lambda batch: batch)
        of_window = set(kept)
        model(**batches[0])
    hidden = (model.adapter.hidden_size,)
    assert hidden not in of_window and hidden in kept and (model.heads.projection_size,) in of_window


def test_lora_dropout_draws_the_same_in_both_passes_and_goes_on_as_after_one(tiny_llava, tmp_path):
    model, batches, _ = case(tiny_llava, tmp_path)
    add_lora(model)
    torch.manual_seed(7)
    expected = uncut_step(model, batches)
    after = torch.rand(3)
    torch.manual_seed(7)
    assert_same(window_step(model, batches, cached=True), expected)
    assert torch.equal(torch.rand(3), after)


def test_without_the_restored_random_state_the_gradients_are_wrong(tiny_llava, tmp_path, monkeypatch):
    model, batches, _ = case(tiny_llava, tmp_path)
    add_lora(model)
    torch.manual_seed(7)
    expected = uncut_step(model, batches)
    monkeypatch.setattr(grad_cache.RandomState, "restore", lambda self: None)
    torch.manual_seed(7)
    with pytest.raises(AssertionError):
        assert_same(window_step(model, batches, cached=True), expected)


def test_the_gradient_of_the_temperature_enters_once(tiny_llava, tmp_path, monkeypatch):
    model, batches, whole = case(tiny_llava, tmp_path)
    _, expected, _ = window_step(model, [whole], cached=False)
    name = "heads.temperature.log_inverse"
    assert expected[name].abs() > 1e-6
    plain = grad_cache._shares

    def everywhere(gradients, sizes):
        shares = plain(gradients, sizes)
        return [{**share, SCALE: shares[0][SCALE]} for share in shares]

    monkeypatch.setattr(grad_cache, "_shares", everywhere)
    _, found, _ = window_step(model, batches, cached=True)
    torch.testing.assert_close(found[name], len(batches) * expected[name])
    monkeypatch.undo()
    torch.testing.assert_close(window_step(model, batches, cached=True)[1][name], expected[name])


def test_the_queue_takes_in_a_window_once(tiny_llava, tmp_path):
    model, batches, whole = case(tiny_llava, tmp_path, queue_size=7, queue_hallucinated=True)
    other = copy.deepcopy(model)
    for _ in range(2):
        assert_same(window_step(model, batches, cached=True), window_step(other, [whole], cached=False), rtol=1e-6)
    assert model.queue.filled == other.queue.filled == 7
    ours, theirs = model.queue.state_dict(), other.queue.state_dict()
    assert torch.equal(ours["integers"], theirs["integers"]) and torch.equal(ours["position"], theirs["position"])


def test_a_window_without_captions_has_gradients_for_all_that_trains(tiny_llava, tmp_path):
    records = [conversation("a", (), "what ?", "red"), conversation("b", (), "where ?", "left")]
    model, _, batch = build(tiny_llava, tmp_path, records, template="chat", **SETTINGS)
    _, grads, logged = window_step(model, [batch, batch], cached=True)
    missing = [n for n, p in model.named_parameters() if p.requires_grad and n not in grads and "vision_tower" not in n]
    assert not missing and logged["contrastive"] == 0


@pytest.fixture
def command(tiny_llava, tmp_path):
    settings = {
        "model": {"path": str(tiny_llava), "preset": "stage1-llm"},
        "data": {"path": [str(write_tiny_records(tmp_path / "records", 12, text_only=4))]},
        "objective": {"learn_temperature": True},
        "train": {"output_dir": str(tmp_path / "run"), "max_steps": 3, "save_steps": 3, "scheduler": "constant"},
        "log": {"steps": 1},
    }
    settings["train"]["warmup"] = 0
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(settings), encoding="utf-8")

    def run(*overrides, resumed_after=None):
        """(logged losses and terms by step, heads after the last step)."""
        if resumed_after is None:
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
        else:
            shutil.rmtree(tmp_path / "run/checkpoint-3")
            assert (tmp_path / f"run/checkpoint-{resumed_after}").is_dir()
        assert train.main([str(path), *overrides]) == 0
        rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
        keys = ("loss", "lm", "contrastive", "grad_norm", "effective_negatives", "temperature")
        log = {key: [row[key] for row in rows if key in row] for key in keys}
        return log, load_file(tmp_path / "run/checkpoint-3/heads.safetensors")

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "rtol"),
    [
        ([], 1e-4),
        (["objective.queue_size=5"], 1e-4),
        (["train.bf16=true", "train.gradient_checkpointing=true"], 2e-2),
    ],
    ids=["fp32", "queue", "bf16, recomputed"],
)
def test_the_trajectory_does_not_depend_on_how_the_window_is_cut(command, more, rtol):
    log, heads = command("train.per_device_batch_size=8", *more)
    for size, count, chunk in ((4, 2, "null"), (8, 1, 3)):
        cut = (f"train.per_device_batch_size={size}", f"train.gradient_accumulation_steps={count}")
        cut += (f"train.grad_cache_chunk={chunk}",)
        found, learnt = command(*cut, "train.grad_cache=true", *more)
        for key in log:
            assert found[key] == pytest.approx(log[key], rel=rtol), key
        for name, expected in heads.items():
            torch.testing.assert_close(learnt[name], expected, rtol=10 * rtol, atol=max(1e-4, rtol / 20))


@pytest.mark.slow
def test_a_resumed_run_with_lora_dropout_has_the_same_losses(command):
    how = ["train.per_device_batch_size=8", "train.grad_cache=true", "train.grad_cache_chunk=3"]
    how += ["model.lora.rank=4", "model.lora.dropout=0.2", "train.save_steps=2"]
    log, heads = command(*how)
    again, learnt = command(*how, resumed_after=2)
    assert again == log and all(torch.equal(learnt[name], heads[name]) for name in heads)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.grad_cache=true"], "train.grad_cache makes"),
        (["train.grad_cache=true", "train.grad_cache_chunk=2", "objective.contrastive_weight=0"], "grad_cache makes"),
        (["train.grad_cache_chunk=2"], "train.grad_cache_chunk cuts"),
        (["train.grad_cache=true", "train.gradient_accumulation_steps=2", "train.grad_cache_chunk=8"], "smaller than"),
        (["train.grad_cache=true", "train.gradient_accumulation_steps=2", "train.grad_cache_chunk=0"], "at least 1"),
    ],
)
def test_a_cache_that_could_only_be_ignored_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, settings)


def test_bf16_features_are_multiplied_in_fp32():
    features = {name: torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True) for name in contrastive_step.FEATURES}
    scale = torch.ones(1, requires_grad=True)
    gradients = {name: torch.full((2, 3), 1e-3) for name in features} | {SCALE: torch.ones(1)}
    loss = contrastive_step.inner_product(features, scale, gradients | {contrastive_step.LOSS: torch.tensor(2.0)})
    loss.backward()
    assert loss.dtype == torch.float32 and loss == 2.0 and scale.grad == 1.0
