"""Promises of the predicted memory: it is what a step of the real model holds, byte by byte, within a tolerance."""

import pytest
import torch

from hacl.config import load_config
from hacl.training import dryrun, memory, outline, run
from hacl.training.groups import parameter_groups
from hacl.training.live_memory import LiveBytes
from tests.tiny import build_tiny_model, write_tiny_records

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
    batch = next(dryrun.micro_batches(config, inputs, outline.outline(config)))
    step = memory.step_memory(config, batch, outline.image_shape(inputs.processor))
    states = prediction.memory[None, 1] * memory.GIB
    return memory.total_bytes(config, states, prediction.trained, step, stage=None, ranks=1), step.activations


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
