"""A batch cut into chunks: the same samples, as many chunks on every rank, and a first pass that leaves no trace."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from hacl.config import load_config
from hacl.data.collate import PackedCollator
from hacl.data.records import write_records
from hacl.data.sources import open_source
from hacl.data.stream_dataset import StreamDataset
from hacl.training.grad_cache import Window
from hacl.training.runtime import training_arguments
from hacl.training.sampler import GlobalBatchSampler
from hacl.training.work import count_work
from tests.unit.test_grad_cache import (
    SETTINGS,
    assert_same,
    bare_trainer,
    case,
    encoder_of,
    gradients_of,
    uncut_step,
    window_step,
)
from tests.unit.test_packed_step import build, conversation, make_records
from tests.unit.test_sources import Names, records, stream


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("batches", [[list(range(12)), list(range(12, 24))], [list(range(10))], [[0, 1, 2]]], ids=str)
def test_chunks_are_the_shares_of_the_uncut_plan_and_equally_many_on_every_rank(batches, chunk, ranks):
    counts = set()
    for rank in range(ranks):
        whole = list(GlobalBatchSampler(lambda epoch: batches, rank=rank, ranks=ranks))
        sampler = GlobalBatchSampler(lambda epoch: batches, rank=rank, ranks=ranks, chunk=chunk)
        cut = list(sampler)
        assert len(cut) == len(sampler) and max(map(len, cut)) <= chunk
        assert sum(cut, []) == sum(whole, [])
        counts.add(len(cut))
    assert len(counts) == 1


def test_a_step_of_one_batch_in_chunks_is_that_of_the_uncut_batch(tiny_llava, tmp_path):
    """From the plan on: 6 samples per rank, 4 at a time, so the second chunk is ragged."""
    records = [*make_records(tmp_path), conversation("text", (), "what ?", "red")]
    model, samples, whole = build(tiny_llava, tmp_path, records, template="chat", **SETTINGS)
    collate = PackedCollator(encoder_of(tiny_llava), model.objective)
    parts = list(GlobalBatchSampler(lambda epoch: [list(range(6))], rank=0, ranks=1, chunk=4))
    assert [len(part) for part in parts] == [4, 2]
    cached = window_step(model, [collate([samples[i] for i in part]) for part in parts], cached=True)
    assert_same(cached, window_step(model, [whole], cached=False))


def test_the_calls_of_a_step_follow_from_batch_chunk_and_accumulation():
    how = ["train.per_device_batch_size=10", "train.gradient_accumulation_steps=2", "train.grad_cache=true"]
    train = load_config(None, [*how, "train.grad_cache_chunk=4"]).train
    assert (train.chunk_size, train.chunks_per_step, train.contrastive_batch_size) == (4, 6, 20)
    arguments = training_arguments(load_config(None, [*how, "train.grad_cache_chunk=4"]), has_eval=False)
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (4, 6)
    train = load_config(None, how).train
    assert (train.chunk_size, train.chunks_per_step, train.contrastive_batch_size) == (10, 2, 20)
    train = load_config(None, how[:2]).train
    assert (train.chunks_per_step, train.contrastive_batch_size) == (2, 10)


@pytest.mark.parametrize("contrastive_weight", [1.0, 0.0])
def test_a_batch_of_no_samples_runs_every_module_and_counts_nowhere(tiny_llava, tmp_path, contrastive_weight):
    settings = {"likelihood_margin_weight": 0.3, "contrastive_weight": contrastive_weight}
    settings |= {"queue_size": 9, "queue_hallucinated": True} if contrastive_weight else {"learn_temperature": False}
    model, batches, _ = case(tiny_llava, tmp_path, **settings)
    empty = PackedCollator(encoder_of(tiny_llava), model.objective)([])
    empty["pixel_values"] = empty["pixel_values"].double()
    other, cached = copy.deepcopy(model), contrastive_weight > 0
    expected = window_step(other, batches, cached=cached)
    found = window_step(model, [batches[0], empty, *batches[1:], empty], cached=cached)
    assert_same(found, expected)
    assert found[2] == pytest.approx(expected[2])
    if cached:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(*queues(model, other), strict=True))
    model.zero_grad()
    model(**empty).loss.backward()
    assert gradients_of(model).keys() == expected[1].keys(), "no rank may miss a gradient that others reduce"
    assert not any(gradient.any() for gradient in gradients_of(model).values())
    work = count_work(empty)
    assert (work.samples, work.tokens, work.labels, work.images, work.image_reads, work.text_reads) == (0,) * 6


def queues(*models):
    return [model.queue.state_dict().values() for model in models]


def test_a_rank_without_data_left_goes_on_with_batches_of_no_samples(tiny_llava, tmp_path, monkeypatch):
    model, batches, _ = case(tiny_llava, tmp_path)
    trainer = bare_trainer(model, cached=True, collate=PackedCollator(encoder_of(tiny_llava), model.objective))
    another = (
        "hacl.training.trainer.Gather.agree",
        lambda _, *mine, device: [[*mine], [0, 0, 3, 5, *[0] * len(mine[4:])]],
    )
    monkeypatch.setattr(*another)
    found, labels = trainer.get_batch_samples(iter(batches[:1]), 3, torch.device("cpu"))
    assert [len(batch["sample_index"]) for batch in found] == [3, 0, 0] and labels > 5


class BatchNormOfChannels(nn.Module):
    """Batch norm in place of a layer norm over channels that come last or first."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, states_BND):
        return self.norm(states_BND.flatten(0, 1)).view_as(states_BND)


def put_batch_norm_into(model):
    tower = model.adapter.vision_tower
    name = next(name for name, part in tower.named_modules() if name.endswith("pre_layrnorm"))
    parent = tower.get_submodule(name.rpartition(".")[0])
    norm = BatchNormOfChannels(32).double()
    setattr(parent, name.rpartition(".")[2], norm)
    return norm


@pytest.mark.parametrize("momentum", [0.1, None], ids=["moving", "cumulative"])
def test_batch_norm_of_a_tower_that_trains_counts_every_sample_once(tiny_llava, tmp_path, momentum):
    model, batches, _ = case(tiny_llava, tmp_path)
    norm = put_batch_norm_into(model)
    norm.norm.momentum = momentum
    other = copy.deepcopy(model)
    expected = uncut_step(other, batches)
    assert_same(window_step(model, batches, cached=True), expected)
    for (key, ours), theirs in zip(model.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0, msg=key)
    assert norm.norm.num_batches_tracked == len(batches)
    before = {key: value.clone() for key, value in model.named_buffers()}
    Window(model, batches).open(lambda batch: batch)
    assert all(torch.equal(value, before[key]) for key, value in model.named_buffers())


def test_a_blank_image_moves_no_running_statistics(tiny_llava, tmp_path):
    """A batch without images runs the tower of every rank on a blank one, of which nothing is learnt."""
    model, batches, _ = case(tiny_llava, tmp_path)
    norm = put_batch_norm_into(model).norm
    model.train()
    model(**batches[0]).loss.backward()
    before = {name: value.clone() for name, value in norm.named_buffers()}
    blank = PackedCollator(encoder_of(tiny_llava), model.objective)([])
    blank["pixel_values"] = blank["pixel_values"].double()
    model(**blank).loss.backward()
    assert norm.training and norm.weight.grad is not None
    assert all(torch.equal(value, before[name]) for name, value in norm.named_buffers())
    model(**batches[0])
    assert not any(torch.equal(value, before[name]) for name, value in norm.named_buffers())


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_in_chunks_gives_the_samples_of_the_uncut_stream_over_epochs(tmp_path, workers, known):
    write_records(tmp_path / "a.jsonl", records(27))

    def read(chunk, numbers, rank):
        made = stream(open_source(str(tmp_path / "a.jsonl")), rank, 2, batch_size=5)
        samples = StreamDataset(made, Names(), made.batches_per_epoch() if known else None, chunk=chunk)
        loader = DataLoader(samples, batch_sampler=[[n] for n in numbers], num_workers=workers, collate_fn=list)
        return samples.parts, list(loader)

    for rank in range(2):
        _, whole = read(None, range(5), rank)
        parts, cut = read(2, range(15), rank)
        assert parts == 3 and [len(part) for part in cut] == [2, 2, 1] * 5
        assert [sum(cut[i : i + 3], []) for i in range(0, 15, 3)] == whole
        assert read(2, range(7, 12), rank)[1] == cut[7:12], "going on in the middle of a batch"
