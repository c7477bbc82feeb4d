"""What a step holds depends on seed, epoch and its size alone: not on ranks, micro-batches, chunks or workers."""

import multiprocessing
import os
import signal

import pytest
from torch.utils.data._utils import signal_handling

from hacl.config import ObjectiveConfig
from hacl.data.dataset import TrainingDataset
from hacl.training.sampler import EpochDataLoader, GlobalBatchSampler, plan_epoch
from tests.tiny import write_tiny_records
from tests.unit.test_grad_cache import encoder_of

COUNT, STEP = 50, 12
# (ranks, samples per rank and micro-batch, micro-batches, chunk) of the same step
CUTS = [(1, 12, 1, None), (2, 6, 1, None), (3, 4, 1, None), (4, 3, 1, None), (12, 1, 1, None), (1, 4, 3, None)]
CUTS += [(2, 3, 2, None), (3, 2, 2, None), (1, 1, 12, None), (1, 12, 1, 5), (2, 6, 1, 4), (3, 2, 2, 1)]
GROUPING = {
    "none": {},
    "length": {"lengths": [i * 7 % 23 for i in range(COUNT)]},
    "modality": {"lengths": [i * 7 % 23 for i in range(COUNT)], "is_text_only": [i % 3 == 0 for i in range(COUNT)]},
}


def steps(ranks, per_rank, accumulation, chunk, grouping, epoch):
    """Sorted samples of each step, over all ranks and micro-batches, and what each rank got."""

    def plan(number):
        settings = {"seed": 5, "epoch": number, "accumulation": accumulation, "grouping": grouping}
        return plan_epoch(COUNT, ranks * per_rank, **settings, **GROUPING[grouping])

    shares = []
    for rank in range(ranks):
        sampler = GlobalBatchSampler(plan, rank=rank, ranks=ranks, chunk=chunk)
        sampler.set_epoch(epoch)
        calls = list(sampler)
        per_step = accumulation * (-(-per_rank // chunk) if chunk else 1)
        shares.append([sum(calls[start : start + per_step], []) for start in range(0, len(calls), per_step)])
    return [
        sorted(sum(parts, ())) for parts in zip(*[[tuple(s) for s in share] for share in shares], strict=True)
    ], shares


@pytest.mark.parametrize("grouping", GROUPING)
@pytest.mark.parametrize("how", CUTS, ids=str)
def test_every_cut_of_a_step_holds_the_same_samples_once_on_one_rank(how, grouping):
    for epoch in (0, 3):
        expected, _ = steps(1, STEP, 1, None, grouping, epoch)
        found, shares = steps(*how, grouping, epoch)
        assert found == expected and len(found) == COUNT // STEP
        assert all(len(step) == STEP == len(set(step)) for step in found)
        assert {len(step) for share in shares for step in share} == {STEP // how[0]}
        together = sorted(sum(expected, []))
        assert len(set(together)) == len(together), "no sample comes twice in an epoch"


def test_an_epoch_of_fewer_samples_than_a_step_is_one_smaller_step():
    assert [len(batch) for batch in plan_epoch(10, 4, seed=0, epoch=0, accumulation=4)] == [4, 4]
    assert [len(batch) for batch in plan_epoch(3, 4, seed=0, epoch=0, accumulation=4)] == [3]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_sample_draws_depends_on_seed_epoch_and_record_and_not_on_worker_or_place(tiny_llava, tmp_path, workers):
    import dataclasses

    from hacl.data.records import read_records

    records = [
        dataclasses.replace(record, captions=tuple(f"a {word} square" for word in ("red", "green", "blue", "small")))
        for record in read_records(write_tiny_records(tmp_path, 16))
    ]

    def drawn(epoch, order, workers=0):
        dataset = TrainingDataset(
            records,
            encoder_of(tiny_llava),
            image_root=tmp_path,
            objective=ObjectiveConfig(num_captions=1, num_hallucinated=0),
            seed=3,
            load_pixels=False,
        )
        sampler = GlobalBatchSampler(lambda _: [order[:8], order[8:]], rank=0, ranks=1, dataset=dataset)
        loader = EpochDataLoader(dataset, batch_sampler=sampler, collate_fn=list, num_workers=workers)
        loader.set_epoch(epoch)
        return {sample.index: sample.caption_roots for batch in loader for sample in batch}

    forwards, backwards = list(range(16)), list(range(15, -1, -1))
    expected = drawn(1, forwards)
    assert len({str(roots) for roots in expected.values()}) > 1
    assert drawn(1, backwards, workers) == expected != drawn(2, forwards)


def test_the_death_of_a_worker_is_heard_where_the_next_batch_is_asked_for_and_nowhere_else(monkeypatch):
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        batches = GlobalBatchSampler(lambda epoch: [[0, 1]] * 9, rank=0, ranks=1)
        iterator = iter(EpochDataLoader([5, 6], batch_sampler=batches, num_workers=1, prefetch_factor=1))
        next(iterator)
        (worker,) = multiprocessing.active_children()
        worker.kill()
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # it is dead, and SIGCHLD has come
        with pytest.raises(RuntimeError, match="DataLoader worker"):
            list(iterator)
    finally:
        signal.signal(signal.SIGCHLD, before)
