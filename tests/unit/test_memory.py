"""Promises of the predicted memory: it is what a step of the real model holds, byte by byte, within a tolerance."""

import shutil

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from hacl.config import Config, load_config
from hacl.losses import contrastive
from hacl.training import dryrun, label_loss, memory, run
from hacl.training.groups import parameter_groups
from hacl.training.live_memory import LiveBytes
from tests.reference.contrastive_batch import random_batch, with_gradients
from tests.tiny import build_tiny_model, write_tiny_records
from tests.unit.test_contrastive import loss_and_report

TOLERANCE = 0.1


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(model folder, records): activations outweigh the states of this model."""
    folder = tmp_path_factory.mktemp("memory")
    return build_tiny_model(folder / "llava", "llava", width=64), write_tiny_records(folder, 16, text_only=2)


def prepare(place, *how):
    model, records = place
    how = [f"model.path={model}", f"data.path={records}", "train.per_device_batch_size=8", *how]
    config = load_config(None, how)
    return config, run.read_inputs(config)


def predicted(config, inputs):
    """(peak bytes of a step, activations)."""
    prediction = dryrun.predict(config, inputs)
    step = dryrun.first_step(config, inputs)
    return dryrun.peak_bytes(config, prediction, step, stage=None, ranks=1), step.activations


def size(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def measured(config, inputs):
    """Peak bytes of the second step of a run."""
    model = run.build_model(config, inputs).train()
    if config.train.gradient_checkpointing:
        model.gradient_checkpointing_enable()
        model.train()
    groups = parameter_groups(model, config.model.learning_rate, 0.0)
    optimizer = torch.optim.AdamW(groups, lr=1e-3, foreach=False)
    batch = dryrun._one_batch(config, inputs)

    def step():
        optimizer.zero_grad(set_to_none=True)
        for _ in range(config.train.gradient_accumulation_steps):
            with torch.autocast("cpu", torch.bfloat16, enabled=config.train.bf16):
                loss = model(**batch).loss
            loss.backward()
            del loss
        optimizer.step()

    step()
    optimizer.zero_grad(set_to_none=True)
    moments = [t for state in optimizer.state.values() for t in state.values() if t.dim()]
    known = [*model.parameters(), *model.buffers(), *moments, *batch.values()]
    with LiveBytes(known) as live:
        step()
    return size(model.parameters()) + size(moments) + live.peak


@pytest.mark.parametrize("recomputed", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize(
    "how",
    [
        ("model.preset=stage1-llm",),
        ("model.preset=stage1-llm", "train.gradient_accumulation_steps=2"),
        ("model.preset=stage1", "train.cache_text_states=false"),
        ("model.preset=stage1-vision", "train.cache_text_states=false"),
        ("model.preset=stage1-llm", "model.lora.rank=4", "model.lora.dropout=0.1"),
        ("model.preset=stage1-llm", "train.bf16=true"),
        ("model.preset=stage1-llm", "train.bf16=true", "model.dtype=bfloat16"),
    ],
    ids=lambda how: " ".join(how).replace("model.", "").replace("train.", ""),
)
def test_the_predicted_memory_of_a_step_is_that_of_the_step(place, how, recomputed):
    config, inputs = prepare(place, *how, f"train.gradient_checkpointing={str(recomputed).lower()}")
    total, _ = predicted(config, inputs)
    assert total == pytest.approx(measured(config, inputs), rel=TOLERANCE)


@pytest.fixture(scope="module")
def wordy(place, tmp_path_factory):
    """The same model with a vocabulary whose logits count."""
    folder = tmp_path_factory.mktemp("wordy") / "llava"
    shutil.copytree(place[0], folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    model.resize_token_embeddings(8192, mean_resizing=False)
    model.save_pretrained(folder)
    return folder, place[1]


@pytest.mark.parametrize("kind, sizes", [("chunked", {"CHUNK_BYTES": 2**17}), ("auto", {"AUTO_BYTES": 2**17})])
def test_the_predicted_memory_is_that_of_the_language_model_loss_that_runs(wordy, monkeypatch, kind, sizes):
    for name, size in {"CHUNK_BYTES": 2**17, **sizes}.items():
        monkeypatch.setattr(label_loss, name, size)
    found = {}
    for name in ("plain", kind):
        config, inputs = prepare(
            wordy, "model.preset=stage1", "train.cache_text_states=false", f"objective.lm_loss={name}"
        )
        found[name], _ = predicted(config, inputs)
        assert found[name] == pytest.approx(measured(config, inputs), rel=TOLERANCE)
    assert found[kind] < 0.95 * found["plain"]
    config.train.deepspeed, config.objective.lm_loss = 3, "auto"
    assert memory._loss_kind(config) == "plain", "ZeRO-3 gathers the head once"


@pytest.mark.parametrize("scope", ["own", "local", "global"])
@pytest.mark.parametrize("C, K", [(1, 1), (4, 1), (1, 6)])
@pytest.mark.parametrize("logits, size", [(2**12, 4), (2**10, 256)], ids=["matrices", "features"])
def test_the_contrastive_loss_needs_what_is_predicted_at_most(monkeypatch, scope, C, K, logits, size):
    monkeypatch.setattr(contrastive, "LOGITS", logits)
    batch = random_batch(0, B=96, C=C, K=K, P=size, dtype=torch.float32)
    leaves = with_gradients(batch)
    with LiveBytes(list(leaves.values())) as live:
        loss_and_report(leaves, torch.tensor([1.0]), hard_scope=scope)[0].backward()
    config = Config()
    config.objective.num_captions, config.objective.num_hallucinated, config.objective.hard_scope = C, K, scope
    config.train.per_device_batch_size = 96
    bound = memory.contrast_bytes(config, size, ranks=1)
    assert live.peak < bound + 80 * 96 * (1 + C + K) and bound < 2.5 * live.peak


def test_the_contrastive_loss_grows_with_the_window_the_ranks_and_the_queue():
    config = Config()
    config.train.per_device_batch_size, config.train.gradient_accumulation_steps = 32, 8
    apart = memory.contrast_bytes(config, 1024, ranks=1)
    config.train.grad_cache, config.train.grad_cache_chunk = True, 4
    whole = memory.contrast_bytes(config, 1024, ranks=1)
    assert whole > 8 * apart and memory.contrast_bytes(config, 1024, ranks=16) > 4 * whole
    config.objective.queue_size = 8192
    assert memory.contrast_bytes(config, 1024, ranks=1) > 2 * whole and memory.contrast_bytes(config, 0, ranks=1) == 0


def test_it_stands_beside_activations_but_between_the_passes_of_grad_cache():
    config, step = Config(), memory.StepMemory(activations=900, with_gradients=1000)

    def total(contrast, stage=None):
        return memory.total_bytes(config, 1600, 100, step, stage=stage, ranks=1, contrast=contrast)

    assert total(500) == 1600 - 400 + 1500 and total(500, stage=2) == 1600 + 1400
    config.train.grad_cache = True
    assert total(500) == 1600 - 400 + 1000 and total(5000, stage=2) == 1600 + 5000


def test_recomputation_is_predicted_to_keep_less_and_a_larger_batch_more(place):
    kept, recomputed, larger = (
        predicted(*prepare(place, "model.preset=stage1-llm", *how))[1]
        for how in ((), ("train.gradient_checkpointing=true",), ("train.per_device_batch_size=16",))
    )
    assert recomputed < 0.8 * kept < kept < 0.6 * larger


def test_live_bytes_follow_storages_and_not_views():
    with LiveBytes() as live:
        first = torch.zeros(1000)
        view = first[10:].reshape(-1, 10)
        assert live.current == 4000
        second = first + 1
        assert live.current == 8000
        del first
        assert live.current == 8000, "a view keeps it"
        del view
        assert live.current == 4000 and live.peak == 8000
        del second
    assert live.current == 0
    known = torch.zeros(10)
    with LiveBytes([known]) as live:
        known.add_(1)
    assert live.peak == 0
