"""Windows of micro-batches on several ranks, by GradCache and DDP or ZeRO, are the step of one process on one batch."""

import contextlib
import json

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel

import train
from hacl.data.collate import PackedCollator
from hacl.losses.gather import Gather
from tests.distributed.ranks import run_ranks
from tests.distributed.test_deepspeed import ROOT, TORCHRUN, batch, final_weights, launch, lines, settings  # noqa: F401
from tests.unit.test_grad_cache import (
    add_lora,
    assert_same,
    bare_trainer,
    begin,
    encoder_of,
    gradients_of,
    uncut_step,
    window_step,
)
from tests.unit.test_packed_step import build, conversation, make_records

pytestmark = pytest.mark.slow
# ranks -> rank, micro-batch, sample; sample 5 is text only. Windows differ in length, and a rank may have none.
CHUNKS = {2: [[[0, 1, 5], [2], [4]], [[3]]], 3: [[[0, 1]], [[2, 3], [5], [4]], []]}
SETTINGS = {
    "num_hallucinated": 2,
    "hard_scope": "global",
    "learn_temperature": True,
    "temperature": 0.3,
    "queue_size": 4,
    "likelihood_margin_weight": 0.3,
}


class Fp64Collator(PackedCollator):
    """Blank images in fp64 as well."""

    def __call__(self, samples):
        made = super().__call__(samples)
        return made | {"pixel_values": made["pixel_values"].double()}


def case(model_folder, folder, chunks):
    """(model, collator, micro-batches of each rank, all of them as one batch)."""
    records = [*make_records(folder), conversation("text", (), "what ?", "red")]
    model, samples, _ = build(model_folder, folder, records, template="chat", **SETTINGS)
    collate = Fp64Collator(encoder_of(model_folder), model.objective)

    def batch_of(*parts):
        return collate([samples[i] for part in parts for i in part])

    whole = batch_of(*(part for parts in chunks for part in parts))
    return model, collate, [[batch_of(part) for part in parts] for parts in chunks], whole


def ddp_step(trainer, ddp, micro_batches):
    """(loss, averaged gradients, micro-batches run) of one step of this rank."""
    trainer.model.zero_grad()
    batches, labels = begin(trainer, micro_batches, at_most=3)
    total = torch.zeros((), dtype=torch.float64)
    for i, micro in enumerate(batches):
        with ddp.no_sync() if i < len(batches) - 1 else contextlib.nullcontext():
            loss = trainer.compute_loss(ddp, micro, num_items_in_batch=labels)
            loss.backward()
        total += loss.detach()
    return total, gradients_of(trainer.model), len(batches)


def rank_windows(rank, model_folder, folder, ranks):
    """Two cached steps, then one with LoRA and dropout beside the same with every graph kept."""
    model, collate, parts, _ = case(model_folder, folder, CHUNKS[ranks])
    model.gather = Gather()
    trainer = bare_trainer(model, cached=True, ranks=ranks, collate=collate)
    ddp = DistributedDataParallel(model, find_unused_parameters=True)
    ddp_step(trainer, ddp, parts[rank])
    stepped = *ddp_step(trainer, ddp, parts[rank]), model.queue.state_dict()

    add_lora(model)
    model.queue, model.objective.likelihood_margin_weight = None, 0.0
    ddp = DistributedDataParallel(model, find_unused_parameters=True)
    torch.manual_seed(rank)
    loss, gradients, count = ddp_step(trainer, ddp, parts[rank])
    after = torch.rand(2)
    torch.manual_seed(rank)
    padded = parts[rank] + [collate([]) for _ in range(count - len(parts[rank]))]
    _, labels = begin(trainer, padded)
    torch.manual_seed(rank)
    expected, kept = uncut_step(model, padded, labels=labels, ranks=ranks)
    for gradient in kept.values():
        dist.all_reduce(gradient)
    kept = {name: gradient / ranks for name, gradient in kept.items()}
    return stepped, (loss, gradients, after), (expected, kept, torch.rand(2))


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_with_windows_of_any_length_have_the_loss_gradients_and_queue_of_one_process(tiny_llava, tmp_path, ranks):
    model, _, parts, whole = case(tiny_llava, tmp_path, CHUNKS[ranks])
    for _ in range(2):
        expected = window_step(model, [whole], cached=False)
    results = run_ranks(rank_windows, ranks, tiny_llava, tmp_path, ranks, timeout=900)
    mean = sum(loss for (loss, *_), *_ in results) / ranks
    for (_, gradients, count, queue), cached, kept in results:
        assert count == max(map(len, parts)) == 3
        gradients = {name: gradients.get(name, torch.zeros_like(grad)) for name, grad in expected[1].items()}
        assert_same((mean, gradients), expected, rtol=1e-9)
        for name, held in model.queue.state_dict().items():
            torch.testing.assert_close(queue[name], held)
        assert_same(cached, kept, rtol=1e-9)
        assert torch.equal(cached[2], kept[2]), "draws go on as after one pass"


def test_zero_1_2_and_3_in_chunks_have_the_trajectory_of_one_process_and_of_ddp(settings, tmp_path):  # noqa: F811
    """Without dropout that of one process with one uncut batch; with LoRA and dropout that of DDP, whose gradients
    are compared above."""
    how = (
        "train.max_steps=3",
        "train.save_steps=3",
        "objective.learn_temperature=true",
        "train.eval_steps=0",
        "data.eval_path=[]",
    )
    plain = (*how, "objective.queue_size=64", "train.gradient_accumulation_steps=1")
    assert (
        train.main([str(settings), f"train.output_dir={tmp_path / 'one'}", "train.per_device_batch_size=8", *plain])
        == 0
    )
    lora = (*how, "model.lora.rank=4", "model.lora.dropout=0.2", "train.gradient_accumulation_steps=1")
    cut = ("train.per_device_batch_size=4", "train.grad_cache=true", "train.grad_cache_chunk=3")
    runs = {f"zero-{stage}": (*plain, *cut, f"train.deepspeed={stage}") for stage in (1, 2, 3)}
    runs |= {f"once-{stage}": (*runs[f"zero-{stage}"], "train.reduce_once=true") for stage in (2, 3)}
    runs |= {"lora": (*lora, *cut)}
    runs |= {f"lora-{stage}": (*lora, *cut, f"train.deepspeed={stage}") for stage in (1, 2, 3)}
    asked = json.dumps([[f"train.output_dir={tmp_path / name}", *more] for name, more in runs.items()])
    launch(TORCHRUN, settings, asked, program=ROOT / "tests/distributed/several_runs.py")
    for name in list(runs):
        expected = tmp_path / ("lora" if name.startswith("lora") else "one")
        for key in ("loss", "lm", "contrastive", "grad_norm", "temperature", "effective_negatives"):
            assert lines(tmp_path / name, key) == pytest.approx(lines(expected, key), rel=1e-4), (name, key)
        after = load_file(tmp_path / name / "checkpoint-3/trained.safetensors")
        for weight, value in load_file(expected / "checkpoint-3/trained.safetensors").items():
            torch.testing.assert_close(after[weight], value, rtol=1e-3, atol=1e-4)
    queues = [load_file(tmp_path / run / "checkpoint-3/queue.safetensors") for run in ("one", "zero-1", "zero-3")]
    assert all(queue["position"].equal(queues[0]["position"]) for queue in queues)
