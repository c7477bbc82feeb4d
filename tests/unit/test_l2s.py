"""Promises of Learn-to-Steer's network: it serves what no constant vector can, and trains alike every time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hacl.steering import ContextSpec, L2SSteerer, SteeringNet
from hacl.steering.l2s_fit import fit_affine, fit_l2s, measure, shuffled
from hacl.steering.l2s_train import PRESETS, TrainSettings, learning_rate, loss_of, preset, row_weights
from hacl.steering.splits import given_split, split_groups
from tests.reference.planted_directions import antipodal, exclusive_or

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
READ = ContextSpec(2)
QUICK = {"hidden": 32, "lr": 2e-3, "warmup": 0.1}


def fit(planted, **changes):
    settings = preset("paper", **QUICK, **changes)
    return fit_l2s(
        planted.contexts, {4: planted.targets}, read=READ, groups=planted.groups, behaviours=planted.behaviours,
        fractions=(5 / 9, 1 / 9, 1 / 3), settings=settings,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("width", "classes", "context_noise", "target_noise"),
    [(64, 2, 0.3, 0.0), (64, 4, 0.3, 0.0), (64, 6, 0.5, 0.1), (256, 8, 0.5, 0.1)],
)
def test_the_network_serves_opposed_directions_that_no_constant_vector_can(width, classes, context_noise, target_noise):
    planted = antipodal(1440, width, classes, context_noise, target_noise, seed=1)
    made = fit(planted)
    found, rows = made.report["test"], made.split["test"]
    mean = planted.targets[made.split["train"]].mean(0).expand(len(rows), -1)
    steered = made.steerer.vectors({READ: planted.contexts[rows]}, None)[4]
    assert planted.success(mean, rows) <= 0.5 and found["mean"]["r2"] <= 0.01
    assert found["l2s"]["r2"] >= 0.9 * planted.ceiling and planted.success(steered, rows) >= 0.99
    assert found["shuffled"]["r2"] < 0
    assert set(found["l2s"]["by_behaviour"]) == set(planted.behaviours)


def test_a_constant_vector_succeeds_on_at_most_half_whatever_it_is():
    planted = antipodal(480, 64, 4, 0.3, 0.0, seed=2)
    for candidate in (planted.targets[0], planted.targets[:200].mean(0), 10 * planted.targets[3]):
        predicted = candidate.expand_as(planted.targets)
        assert planted.success(predicted) <= 0.5
        assert measure(predicted[:, None], planted.targets[:, None], planted.behaviours)["success"] <= 0.5


def test_a_product_of_two_features_needs_the_network_and_not_a_ridge():
    found = fit(exclusive_or(1440, 64, seed=3), init="random").report["test"]
    assert found["affine"]["r2"] <= 0.05
    assert found["l2s"]["r2"] >= 0.95


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_trains_and_lowers_its_criterion(name):
    planted = antipodal(180, 16, 2, 0.3, 0.0, seed=4)
    settings = preset(name, hidden=8, epochs=30, lr=5e-3)
    found = fit_l2s(planted.contexts, {0: planted.targets}, read=READ, groups=planted.groups,
                    behaviours=planted.behaviours, settings=settings)  # fmt: skip
    history = [row["validation"] for row in found.report["history"]]
    assert min(history) < history[0]
    assert len(history) == 30 or name == "paper"


@pytest.mark.parametrize("init", ["random", "svd", "dict"])
def test_the_same_seed_gives_the_same_weights_and_another_does_not(init):
    planted = antipodal(120, 16, 2, 0.3, 0.1, seed=5)

    def weights(seed, drawn):
        torch.manual_seed(drawn)  # what the program drew before must not matter
        return fit(planted, init=init, epochs=3, seed=seed).steerer.state_dict()

    first, again, other = weights(0, 17), weights(0, 18), weights(1, 17)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["inner.0.weight"], other["inner.0.weight"])


def test_training_leaves_the_generator_of_the_program_alone():
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    fit(antipodal(120, 16, 2, 0.3, 0.1, seed=5), epochs=2)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_weights_of_the_best_epoch_are_kept_and_training_stops_when_nothing_is_gained():
    draw = torch.Generator().manual_seed(0)
    contexts, targets = torch.randn(200, 16, generator=draw), torch.randn(200, 16, generator=draw)  # nothing to learn
    groups = [str(row) for row in range(200)]
    found = fit_l2s(contexts, {0: targets}, read=READ, groups=groups, behaviours=["x"] * 200,
                    settings=preset("paper", hidden=16, lr=1e-2, patience=4))  # fmt: skip
    history = found.report["history"]
    best = min(history, key=lambda row: row["validation"])
    assert len(history) < 100 and found.report["kept_epoch"] == best["epoch"] < len(history)
    rows = found.split["validation"]
    with torch.no_grad():
        error = (found.trained.net(contexts[rows]) - targets[rows]).square().mean()
    assert float(error) == pytest.approx(best["validation"], rel=1e-5)


def test_a_start_from_the_directions_of_the_data_spans_them_and_the_mean():
    from hacl.steering.l2s_train import make_net

    draw = torch.Generator().manual_seed(0)
    basis = torch.randn(3, 20, generator=draw)
    targets = torch.randn(50, 3, generator=draw) @ basis + 4 * torch.randn(20, generator=draw)
    net = make_net(torch.randn(50, 7, generator=draw), targets[:, None], TrainSettings(hidden=10))
    columns = net.outer.weight[:, :10].detach()
    residual = targets.T - columns @ torch.linalg.lstsq(columns, targets.T).solution
    assert float(residual.norm() / targets.norm()) < 1e-4
    torch.testing.assert_close(columns[:, 0], targets.mean(0), rtol=1e-4, atol=1e-5)


def test_the_ridge_is_the_normal_equation():
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 5, generator=draw).double(), torch.randn(40, 3, generator=draw).double()
    net, _ = fit_affine(x, y, x, y, ridges=[0.5])
    centred, moved = x - x.mean(0), y - y.mean(0)
    penalty = 0.5 * torch.linalg.svdvals(centred).square().mean() * torch.eye(5)
    weight = torch.linalg.solve(centred.T @ centred + penalty, centred.T @ moved)
    torch.testing.assert_close(net(x).double(), centred @ weight + y.mean(0), rtol=1e-4, atol=1e-5)


def test_losses_are_what_they_say():
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 1, 4, generator=draw), torch.randn(2, 1, 4, generator=draw)
    weight = torch.tensor([0.25, 0.75])
    settings = preset("upstream")
    wanted = {None: 0.1, 0: 0.0, 50: 0.05, 500: 0.1}
    for epoch, factor in wanted.items():
        by_hand = sum(
            w * (((p - q) ** 2).mean() + (p - q).abs().mean() - factor * (p * q).sum() / (p.norm() * q.norm()))
            for w, p, q in zip(weight, a[:, 0], b[:, 0], strict=True)
        )
        torch.testing.assert_close(loss_of(a, b, settings, weight, epoch=epoch), by_hand)
    assert loss_of(a, b, preset("paper"), torch.full((2,), 0.5)).item() == pytest.approx((a - b).square().mean().item())


def test_balanced_weights_share_a_batch_among_the_behaviours_that_are_there():
    weight = row_weights(torch.tensor([0, 0, 0, 2]), balance=True)  # behaviour 1 is absent
    torch.testing.assert_close(weight, torch.tensor([1 / 6, 1 / 6, 1 / 6, 1 / 2]))
    assert row_weights(torch.tensor([0, 1, 1, 1]), balance=False).tolist() == [0.25] * 4


def test_the_learning_rate_rises_then_falls():
    settings = TrainSettings(warmup=0.5)
    values = [learning_rate(step, 100, settings) for step in range(100)]
    assert np.argmax(values) == 50 and values[50] == 1 and values[0] < 0.03 and values[-1] < 0.01
    assert learning_rate(99, 100, TrainSettings(warmup=0, schedule="constant")) == 1


def test_standardised_inputs_make_scale_and_offset_irrelevant():
    planted = antipodal(120, 16, 2, 0.3, 0.1, seed=5)
    plain = fit(planted, input_norm="standardise", epochs=3)
    moved = type(planted)(planted.contexts * 50 + 7, planted.targets, planted.directions, planted.classes, 1.0)
    other = fit(moved, input_norm="standardise", epochs=3)
    torch.testing.assert_close(
        plain.trained.net(planted.contexts), other.trained.net(moved.contexts), rtol=1e-3, atol=1e-4
    )


def test_groups_never_cross_and_every_behaviour_is_on_every_side():
    groups = [f"image-{row // 3}" for row in range(300)]
    behaviours = ["rare" if (row // 3) % 10 == 0 else ("yes", "no")[row % 2] for row in range(300)]
    split = split_groups(groups, behaviours, fractions=(0.6, 0.2, 0.2), seed=1)
    assert sorted(np.concatenate(list(split.values())).tolist()) == list(range(300))
    sides = [{groups[n] for n in rows} for rows in split.values()]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    assert all({behaviours[n] for n in rows} == {"rare", "yes", "no"} for rows in split.values())
    assert [len(rows) for rows in split.values()] == [180, 60, 60]
    order = np.random.default_rng(0).permutation(300)
    again = split_groups([groups[n] for n in order], [behaviours[n] for n in order], fractions=(0.6, 0.2, 0.2), seed=1)
    assert {groups[order[n]] for n in again["test"]} == sides[2]
    assert {groups[n] for n in split_groups(groups, behaviours, fractions=(0.6, 0.2, 0.2), seed=2)["test"]} != sides[2]


def test_a_split_that_the_rows_name_is_kept_and_one_that_leaks_is_refused():
    split = given_split(["train", "test", "validation", "train"], ["a", "b", "c", "a"])
    assert split["train"].tolist() == [0, 3]
    assert given_split([None, None], ["a", "b"]) is None
    with pytest.raises(ValueError, match="'a' is in train and in test"):
        given_split(["train", "test"], ["a", "a"])
    with pytest.raises(ValueError, match="row 1"):
        given_split(["train", None], ["a", "b"])
    with pytest.raises(ValueError, match="too few"):
        split_groups(["a", "a"], ["x", "x"])


def test_a_shuffled_row_gets_the_context_of_another_group():
    groups = ["a"] * 3 + ["b"] * 2 + ["c"] * 4
    partner = shuffled(groups, 0)
    assert sorted(partner) == list(range(9))
    assert all(groups[n] != groups[m] for n, m in enumerate(partner))


def test_what_cannot_be_trained_on_is_refused_by_row():
    contexts = torch.zeros(30, 4)
    contexts[7, 2] = float("nan")
    groups = [str(n) for n in range(30)]
    with pytest.raises(ValueError, match="contexts: row 7"):
        fit_l2s(contexts, {0: torch.ones(30, 4)}, read=READ, groups=groups, behaviours=["x"] * 30)
    with pytest.raises(ValueError, match="unknown training setting 'rate'"):
        preset("paper", rate=1)
    with pytest.raises(ValueError, match="cannot serve the layers"):
        L2SSteerer(SteeringNet(4, 2, 9), read=READ, layers=[0, 1])
