"""The contrastive loss in blocks of anchors is the loss at once, in memory that does not grow with their product."""

import pytest
import torch

from hacl.losses import contrastive
from hacl.losses.queue import FeatureQueue
from hacl.training.live_memory import LiveBytes
from tests.reference.contrastive_batch import FEATURES, drop_some, random_batch
from tests.unit.test_contrastive import OPTIONS, assert_same, both, labels, loss_and_report, with_gradients

SCOPES = ("own", "local", "global")


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("logits", [1, 40, 100], ids=["one anchor", "ragged", "two blocks"])
def test_blocks_of_any_size_equal_the_loop(monkeypatch, options, logits):
    monkeypatch.setattr(contrastive, "LOGITS", logits)
    for seed, scope in enumerate(SCOPES):
        batch = drop_some(random_batch(seed, B=7, C=2, K=2, images=5, texts=8), seed, share=0.2)
        assert_same(*both(batch, hard_scope=scope, **options))


def test_a_queue_is_met_by_every_block(monkeypatch):
    past, batch = (random_batch(seed, B=6, K=2, images=5, texts=8) for seed in (0, 1))
    queue = FeatureQueue(4)
    queue.push(*(past[name] for name in FEATURES), **labels(past))
    found = []
    for logits in (2**20, 15):
        monkeypatch.setattr(contrastive, "LOGITS", logits)
        leaves = with_gradients(batch)
        loss, report = loss_and_report(leaves, queue=queue.read(), hard_scope="global")
        loss.backward()
        report = {name: (float(total), int(count)) for name, (total, count) in report.items()}
        found.append((loss.detach(), report, [leaves[name].grad for name in FEATURES]))
    found[1] = found[1][0], {name: torch.tensor(pair) for name, pair in found[1][1].items()}, found[1][2]
    assert_same(found[1], found[0])


def test_nothing_is_kept_that_has_a_number_for_every_pair(monkeypatch):
    batch, kept = with_gradients(random_batch(0, B=80, K=1)), {}
    for logits in (2**20, 800):
        monkeypatch.setattr(contrastive, "LOGITS", logits)
        sizes = kept[logits] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x):
            loss_and_report(batch)
    assert 0 < sum(kept[800]) < sum(kept[2**20]) / 5


@pytest.mark.parametrize("options, each", [({}, 26), ({"exclude_other_positives": True}, 38)], ids=["all", "excluded"])
@pytest.mark.parametrize(
    "C, K, scope", [(1, 0, "own"), (6, 1, "own"), (12, 1, "own"), (1, 8, "own"), (1, 8, "local"), (3, 4, "global")]
)
def test_memory_is_that_of_the_widest_matrix_of_a_block(monkeypatch, C, K, scope, options, each):
    monkeypatch.setattr(contrastive, "LOGITS", 2**14)
    batch = with_gradients(random_batch(0, B=256, C=C, K=K, P=2, dtype=torch.float32))
    with LiveBytes(list(batch.values())) as live:
        loss_and_report(batch, torch.tensor([1.0]), hard_scope=scope, **options)[0].backward()
    linear = 80 * 256 * (1 + C + K)  # features and labels of all samples, some of them twice
    assert live.peak <= each * 2**14 + linear, "bytes for an entry of that matrix"
    assert each <= contrastive.ENTRY_BYTES


def test_without_gradients_blocks_give_the_same(monkeypatch):
    batch = random_batch(0, B=9, K=2)
    with torch.no_grad():
        expected = loss_and_report(batch)[0]
        monkeypatch.setattr(contrastive, "LOGITS", 20)
        torch.testing.assert_close(loss_and_report(batch)[0], expected)
