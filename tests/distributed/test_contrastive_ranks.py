"""Ranks together reproduce the loss and the gradients of one process that holds the whole batch, written as loops."""

import functools

import pytest
import torch

from hacl.losses.contrastive import contrastive_loss
from hacl.losses.gather import Gather
from hacl.models.heads import ContrastiveHeads
from tests.distributed.ranks import run_ranks
from tests.reference.contrastive_batch import FEATURES, drop_some, loop_samples, random_batch
from tests.reference.contrastive_loop import contrastive_loop

D = 6
REPEATED = {"images": 5, "texts": 7}
EXTRA = {"t2i_hard_weight": 0.3, "text_margin_weight": 0.7, "text_margin": 0.1}


def every(size, world_size):
    return [size] * world_size


def scenario_batches(name, world_size):
    """One batch of states per rank, the same on every process."""
    sizes, captions, hallucinated, repeats = every(3, world_size), every(2, world_size), every(2, world_size), {}
    if name == "repeated images and texts":
        repeats = REPEATED
    elif name == "ragged":
        sizes, captions, hallucinated = [4, 1, 2][:world_size], [1, 3, 2][:world_size], [2, 1, 3][:world_size]
        repeats = REPEATED
    elif name == "one rank without hallucinated captions":
        hallucinated[-1] = 0
    elif name == "one rank empty":
        sizes[0] = 0
    elif name == "one rank without keys of hallucinated captions":
        repeats = REPEATED
    elif name == "no hallucinated captions":
        hallucinated = every(0, world_size)
    batches = [
        random_batch(rank, B, C, K, P=D, **repeats)
        for rank, (B, C, K) in enumerate(zip(sizes, captions, hallucinated, strict=True))
    ]
    if name == "ragged":
        batches = [drop_some(batch, 10 + rank, share=0.25) for rank, batch in enumerate(batches)]
    elif name == "one rank without anchors":
        batches[-1]["image_mask_B"] = torch.zeros(3, dtype=torch.bool)
        batches[-1]["caption_mask_BC"] = torch.zeros(3, 2, dtype=torch.bool)
    elif name == "one rank with negatives but no anchors":
        batches[0]["image_mask_B"] = torch.zeros(3, dtype=torch.bool)
    elif name == "one rank without keys of hallucinated captions":
        del batches[0]["hallucinated_keys_BK"]
    elif name == "no anchors anywhere":
        for batch in batches:
            batch["image_mask_B"] = torch.zeros(3, dtype=torch.bool)
    return batches


SCENARIOS = (
    "even",
    "repeated images and texts",
    "ragged",
    "one rank without hallucinated captions",
    "one rank empty",
    "one rank without keys of hallucinated captions",
    "no hallucinated captions",
    "one rank without anchors",
    "one rank with negatives but no anchors",
    "no anchors anywhere",
)
OPTIONS = {
    "own": {"hard_scope": "own"},
    "local": {"hard_scope": "local"},
    "global": {"hard_scope": "global"},
    "global, log_sum, further terms": {"hard_scope": "global", "positives": "log_sum", **EXTRA},
    "own, exclude_other_positives, hard_weight": {"exclude_other_positives": True, "hard_weight": 2.0, **EXTRA},
    "global, identities ignored": {"hard_scope": "global", "mask_false_negatives": False},
}
CASES = [(scenario, option) for scenario in SCENARIOS for option in OPTIONS]


def make_heads():
    return ContrastiveHeads(D, "linear", projection_size=4, learn_temperature=True, temperature=0.3).double()


def project(heads, batch):
    projections = heads.project_image, heads.project_text, heads.project_text
    return batch | {name: to(batch[name]) for name, to in zip(FEATURES, projections, strict=True)}


def leaves_of(batch):
    return batch | {name: batch[name].clone().requires_grad_() for name in FEATURES}


def rank_results(rank, world_size):
    """For every case: this rank's loss, report, state gradients and head gradients."""
    results = []
    for scenario, option in CASES:
        heads, leaves = make_heads(), leaves_of(scenario_batches(scenario, world_size)[rank])
        batch = project(heads, leaves)
        labels = {name: value for name, value in batch.items() if name not in FEATURES}
        features = [batch[name] for name in FEATURES]
        loss, report = contrastive_loss(
            *features, heads.log_inverse_temperature(), **labels, **OPTIONS[option], gather=Gather()
        )
        loss.backward()
        states = {name: leaves[name].grad for name in FEATURES}
        results.append((loss.detach(), report, states, {name: p.grad for name, p in heads.named_parameters()}))
    return results


def loop_results(scenario, option, world_size):
    """The same from one process: loss, report, state gradients of each rank's samples, head gradients."""
    heads = make_heads()
    leaves = [leaves_of(batch) for batch in scenario_batches(scenario, world_size)]
    samples = [s for rank, batch in enumerate(leaves) for s in loop_samples(project(heads, batch), rank)]
    loss, report = contrastive_loop(samples, heads.log_inverse_temperature(), **OPTIONS[option])
    loss.backward()
    states = [{name: grad_or_zero(batch[name]) for name in FEATURES} for batch in leaves]
    return loss.detach(), report, states, {name: grad_or_zero(p) for name, p in heads.named_parameters()}


def grad_or_zero(tensor):
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


def rank_facts(rank, world_size):
    return {
        "cases": rank_results(rank, world_size),
        "constant": constant_features_on_rank_0(rank),
        "gather": gather_facts(rank),
    }


@functools.cache
def launched(world_size):
    """What every rank of one launch found."""
    return run_ranks(rank_facts, world_size, world_size)


@pytest.fixture(scope="module", params=[2, 3])
def by_rank(request):
    world_size = request.param
    return [dict(zip(CASES, facts["cases"], strict=True)) for facts in launched(world_size)]


@pytest.mark.slow
@pytest.mark.parametrize(("scenario", "option"), CASES)
def test_the_mean_over_ranks_is_the_single_process_loss_and_gradient(by_rank, scenario, option):
    world_size = len(by_rank)
    losses, reports, states, heads = zip(*(results[scenario, option] for results in by_rank), strict=True)
    loop_loss, loop_report, loop_states, loop_heads = loop_results(scenario, option, world_size)
    same = {"rtol": 1e-6, "atol": 1e-12}
    torch.testing.assert_close(sum(losses) / world_size, loop_loss, **same)
    for name, expected in loop_heads.items():  # every rank has a gradient for every parameter, if only zeros
        mean = sum(grads[name] for grads in heads) / world_size
        torch.testing.assert_close(mean, expected, **same, msg=lambda text, name=name: f"{name}: {text}")
    for rank, expected in enumerate(loop_states):
        for name in FEATURES:
            # Data parallel averaging divides what these gradients become by W.
            torch.testing.assert_close(states[rank][name] / world_size, expected[name], **same)
    for name, (total, count) in loop_report.items():
        assert sum(int(report[name][1]) for report in reports) == count, name
        assert sum(float(report[name][0]) for report in reports) == pytest.approx(total, rel=1e-5, abs=1e-6), name


def constant_features_on_rank_0(rank):
    """Rank 0's features need no gradient, yet it takes part in the backward of the others."""
    batch = random_batch(rank, B=2)
    labels = {name: value for name, value in batch.items() if name not in FEATURES}
    features = [batch[name].requires_grad_(rank > 0) for name in FEATURES]
    scale = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    loss, _ = contrastive_loss(*features, scale, **labels, hard_scope="global", gather=Gather())
    loss.backward()
    return [x.grad for x in features], scale.grad


def gather_facts(rank):
    gather = Gather()
    rows = torch.full((rank + 1, 2), float(rank), requires_grad=True)
    together = gather(rows)
    weights = torch.arange(together.numel(), dtype=torch.float32).view_as(together) * (1 + rank)
    (together * weights).sum().backward()
    ids = gather(torch.full((2,), 2**62 + rank))
    nothing = gather(torch.zeros(0, 2, requires_grad=True))
    nothing.sum().backward()
    with torch.no_grad():
        quiet = gather(rows)
    return {
        "rows": together.detach(),
        "grad": rows.grad,
        "ids": ids,
        "nothing": nothing.detach(),
        "quiet": quiet,
        "agreed": gather.agree(rank, 7, device=rows.device),
        "sum": gather.sum(torch.tensor(rank + 1)),
        "alone": Gather(alone=True)(rows.detach()),
    }


def fail_on_last(rank, world_size):
    if rank == world_size - 1:
        raise ValueError(f"rank {rank} had a bad day")
    torch.distributed.barrier()


@pytest.mark.slow
def test_a_rank_with_constant_features_does_not_hang_the_others():
    first, second = (facts["constant"][0] for facts in launched(2))
    assert all(grad is None for grad in first)
    assert all(grad.abs().sum() > 0 for grad in second)


@pytest.mark.slow
def test_gather_joins_in_rank_order_and_sums_gradients_over_ranks():
    for rank, fact in enumerate(facts["gather"] for facts in launched(2)):
        assert fact["rows"].tolist() == [[0, 0], [1, 1], [1, 1]]
        assert fact["grad"].tolist() == ([[0, 3]] if rank == 0 else [[6, 9], [12, 15]])
        assert fact["ids"].tolist() == [2**62, 2**62, 2**62 + 1, 2**62 + 1]
        assert fact["nothing"].shape == (0, 2)
        assert torch.equal(fact["quiet"], fact["rows"])
        assert fact["agreed"] == [[0, 7], [1, 7]]
        assert fact["sum"] == 3
        assert len(fact["alone"]) == rank + 1


@pytest.mark.slow
def test_the_error_of_a_rank_reaches_the_caller():
    with pytest.raises(RuntimeError, match="rank 1 failed:(.|\n)*rank 1 had a bad day"):
        run_ranks(fail_on_last, 2, 2, timeout=60)


def test_without_a_process_group_gather_is_the_identity():
    rows = torch.randn(3, 2, requires_grad=True)
    gather = Gather()
    assert gather(rows) is rows
    assert (gather.world_size, gather.rank, gather.agree(4, device=rows.device)) == (1, 0, [[4]])
    assert gather.sum(torch.tensor(5)) == 5
