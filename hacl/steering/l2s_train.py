"""Training of Learn-to-Steer's network on pairs of contexts and steering vectors.

The paper minimises the squared error (preset `paper`). The released code (jayneelparekh/learn-to-steer, November 2025)
adds the absolute error and takes off a ramped cosine (presets `upstream`, for its POPE script, and `upstream-safety`).
Where they differ, the paper is followed: see docs/learn_to_steer.md.

Shapes: N rows, C context width, L layers, D hidden size, O = L * D, K hidden units.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hacl.steering.l2s import SteeringNet

LOSSES, INITS, SCHEDULES = ("mse", "mse_l1_cos"), ("random", "svd", "dict"), ("constant", "cosine")
KEEP = ("best", "last")


@dataclass(frozen=True)
class TrainSettings:
    """How the network is made and trained.

    hidden, act, depth, out_bias, input_norm: of SteeringNet; loss: "mse" (mean over coordinates) or "mse_l1_cos" (plus
    the absolute error, minus cos_weight * cosine); cos_ramp: epochs over which cos_weight grows from 0; balance: give
    each behaviour the same weight in every batch; init of the last layer: "random", "svd" (leading directions of the
    training vectors) or "dict" (their sparse positive dictionary); warmup: share of the epochs with a rising learning
    rate; clip: largest norm of a gradient, 0 for none; patience: epochs without a relative gain of min_delta in the
    validation loss, 0 to train on; keep: weights of the best epoch on validation, or of the last.
    """

    hidden: int = 100
    act: str = "tanh"
    depth: int = 1
    out_bias: bool = False
    input_norm: str = "none"
    loss: str = "mse"
    cos_weight: float = 0.1
    cos_ramp: int = 0
    balance: bool = False
    init: str = "svd"
    lr: float = 1e-4
    schedule: str = "cosine"
    warmup: float = 0.1
    weight_decay: float = 0.0
    clip: float = 0.0
    batch_size: int = 64
    epochs: int = 100
    patience: int = 15
    min_delta: float = 1e-4
    keep: str = "best"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("loss", LOSSES), ("init", INITS), ("schedule", SCHEDULES), ("keep", KEEP)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(known)}")
        if min(self.batch_size, self.epochs) < 1 or not self.lr > 0 or not 0 <= self.warmup <= 1 or self.patience < 0:
            raise ValueError(
                f"batch_size={self.batch_size}, epochs={self.epochs}, lr={self.lr}, warmup={self.warmup}, "
                f"patience={self.patience}: positive numbers, warmup a share of the epochs"
            )


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "upstream": {
        "loss": "mse_l1_cos", "cos_ramp": 100, "balance": True, "lr": 5e-5, "warmup": 0.5, "patience": 0,
    },
    "upstream-safety": {
        "loss": "mse_l1_cos", "init": "dict", "schedule": "constant", "warmup": 0.0, "patience": 0, "keep": "last",
    },
}  # fmt: skip


def preset(name: str, **changes: Any) -> TrainSettings:
    """The settings of a preset with some of them changed. Raises ValueError for an unknown preset or setting."""
    if name not in PRESETS:
        raise ValueError(f"preset {name!r}: expected one of {', '.join(PRESETS)}")
    known = {entry.name for entry in dataclasses.fields(TrainSettings)}
    unknown = sorted(changes.keys() - known)
    if unknown:
        raise ValueError(f"unknown training setting {unknown[0]!r}; known: {', '.join(sorted(known))}")
    return TrainSettings(**{**PRESETS[name], **changes})


@dataclass(frozen=True)
class Trained:
    """net: with the kept weights; epoch: theirs, from 1; history: one row per epoch with train and validation loss."""

    net: SteeringNet
    epoch: int
    history: list[dict[str, float]] = field(default_factory=list)


def train_net(
    contexts_NC: Tensor,
    targets_NLD: Tensor,
    behaviours: Sequence[str],
    split: Mapping[str, np.ndarray],
    settings: TrainSettings,
    *,
    device: str | torch.device = "cpu",
) -> Trained:
    """Fit on split["train"], stop by split["validation"]; test rows are not looked at.

    On a CPU the same input and seed give the same weights.

    Raises:
        ValueError: shapes that do not match, values that are not finite, or a split without rows.
    """
    check_pairs(contexts_NC, targets_NLD, behaviours)
    rows = {name: torch.as_tensor(split[name]) for name in ("train", "validation")}
    if not all(len(index) for index in rows.values()):
        raise ValueError("training needs rows in train and in validation; give more images or other fractions")
    labels = sorted(set(map(str, behaviours)))
    label_N = torch.tensor([labels.index(str(name)) for name in behaviours])
    data = {
        name: tuple(part[index].to(device) for part in (contexts_NC.float(), targets_NLD.float(), label_N))
        for name, index in rows.items()
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        net = make_net(*data["train"][:2], settings).to(device)
    return _fit(net, data["train"], data["validation"], settings)


def check_pairs(contexts_NC: Tensor, targets_NLD: Tensor, behaviours: Sequence[str]) -> None:
    """Raises ValueError unless there is a finite context, a finite vector per layer and a behaviour for each row."""
    if contexts_NC.ndim != 2 or targets_NLD.ndim != 3 or not len(contexts_NC) == len(targets_NLD) == len(behaviours):
        raise ValueError(
            f"contexts {tuple(contexts_NC.shape)}, vectors {tuple(targets_NLD.shape)}, {len(behaviours)} behaviours: "
            "expected (rows, width), (rows, layers, width) and one behaviour per row"
        )
    for name, value in (("contexts", contexts_NC), ("vectors", targets_NLD)):
        finite = torch.isfinite(value).flatten(1).all(1)
        if not finite.all():
            raise ValueError(f"{name}: row {int((~finite).nonzero()[0])} has values that are not finite")


def make_net(contexts_NC: Tensor, targets_NLD: Tensor, settings: TrainSettings) -> SteeringNet:
    """A network before its training, drawn from torch's generator; SVD and dictionary look at the training rows."""
    net = SteeringNet(
        contexts_NC.shape[1], settings.hidden, targets_NLD[0].numel(), act=settings.act, depth=settings.depth,
        out_bias=settings.out_bias, input_norm=settings.input_norm,
    )  # fmt: skip
    net.set_statistics(contexts_NC)
    if settings.depth and settings.init != "random":
        basis_KO = torch.as_tensor(_basis(targets_NLD.flatten(1).cpu().double().numpy(), settings)).float()
        with torch.no_grad():
            net.outer.weight[:, : len(basis_KO)] = basis_KO.T
            if settings.out_bias:
                net.outer.bias.copy_(targets_NLD.flatten(1).float().mean(0))
    return net


def _basis(targets_NO: np.ndarray, settings: TrainSettings) -> np.ndarray:
    """At most K rows (., O) that the last layer starts from.

    Directions have the length of the data's spread along them, so that tanh need not grow to reach it. Without an
    output bias the mean is the first of them.
    """
    from hacl.representations.dictionaries import Dictionary, singular_vectors

    if settings.init == "dict":
        return Dictionary.fit(targets_NO, settings.hidden, "sparse_pos", settings.seed, iterations=1000).concepts_KD
    mean = targets_NO.mean(0)
    rank = min(settings.hidden - (not settings.out_bias), len(targets_NO) - 1, targets_NO.shape[1])
    head = [] if settings.out_bias else [mean[None]]
    if rank > 0:
        values, directions = singular_vectors(targets_NO - mean, rank, settings.seed)
        head.append(directions * (values / math.sqrt(len(targets_NO)))[:, None])
    return np.concatenate(head) if head else np.zeros((0, targets_NO.shape[1]))


def loss_of(
    predicted_BLD: Tensor, wanted_BLD: Tensor, settings: TrainSettings, weight_B: Tensor, *, epoch: int | None = None
) -> Tensor:
    """The training loss, a weighted sum over rows; epoch: from 0, None for the criterion without ramp."""
    error = predicted_BLD - wanted_BLD
    loss_B = error.square().mean((1, 2))
    if settings.loss == "mse_l1_cos":
        ramp = 1.0 if epoch is None or not settings.cos_ramp else min(1.0, epoch / settings.cos_ramp)
        cosine_B = torch.nn.functional.cosine_similarity(predicted_BLD, wanted_BLD, dim=-1).mean(1)
        loss_B = loss_B + error.abs().mean((1, 2)) - settings.cos_weight * ramp * cosine_B
    return (weight_B * loss_B).sum()


def row_weights(label_B: Tensor, balance: bool) -> Tensor:
    """(B) that sum to 1: equal, or equal for each behaviour that is present."""
    if not balance:
        return torch.full(label_B.shape, 1 / len(label_B), device=label_B.device)
    counts = torch.bincount(label_B)
    return 1 / (counts[label_B] * (counts > 0).sum())


def learning_rate(step: int, steps: int, settings: TrainSettings) -> float:
    """Share of the learning rate at an optimiser step, from 0: linear warm-up, then constant or half a cosine."""
    warm = settings.warmup * steps
    if step < warm:
        return (step + 1) / (warm + 1)
    if settings.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1.0, steps - warm)))


def _fit(net: SteeringNet, train: tuple[Tensor, ...], held: tuple[Tensor, ...], settings: TrainSettings) -> Trained:
    contexts, targets, labels = train
    draw = torch.Generator().manual_seed(settings.seed)
    optimiser = torch.optim.AdamW(net.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    per_epoch = math.ceil(len(contexts) / settings.batch_size)
    steps, history, best = per_epoch * settings.epochs, [], (math.inf, 0, copy.deepcopy(net.state_dict()))
    reference, waited = math.inf, 0
    for epoch in range(settings.epochs):
        total, order = 0.0, torch.randperm(len(contexts), generator=draw).to(contexts.device)
        for number, batch in enumerate(order.split(settings.batch_size)):
            for group in optimiser.param_groups:
                group["lr"] = settings.lr * learning_rate(epoch * per_epoch + number, steps, settings)
            weight = row_weights(labels[batch], settings.balance)
            loss = loss_of(_predict(net, contexts[batch], targets), targets[batch], settings, weight, epoch=epoch)
            optimiser.zero_grad()
            loss.backward()
            if settings.clip:
                torch.nn.utils.clip_grad_norm_(net.parameters(), settings.clip)
            optimiser.step()
            total += float(loss.detach()) * len(batch)
        value = validation_loss(net, held, settings)
        history.append({"epoch": epoch + 1, "train": total / len(contexts), "validation": value})
        if not math.isfinite(value):
            raise ValueError(f"epoch {epoch + 1}: the validation loss is {value}; lower lr={settings.lr} or set clip")
        if value < best[0]:
            best = (value, epoch + 1, copy.deepcopy(net.state_dict()))
        if value < reference - settings.min_delta * abs(reference) or math.isinf(reference):
            reference, waited = value, 0
        else:
            waited += 1
        if settings.patience and waited >= settings.patience:
            break
    if settings.keep == "best":
        net.load_state_dict(best[2])
    return Trained(net.cpu().eval(), best[1] if settings.keep == "best" else len(history), history)


def validation_loss(net: SteeringNet, held: tuple[Tensor, ...], settings: TrainSettings) -> float:
    """The training criterion, with its ramp at the end, over all held-out rows at once."""
    contexts, targets, labels = held
    with torch.no_grad():
        weight = row_weights(labels, settings.balance)
        return float(loss_of(_predict(net, contexts, targets), targets, settings, weight))


def _predict(net: SteeringNet, contexts_BC: Tensor, like_NLD: Tensor) -> Tensor:
    return net(contexts_BC).unflatten(-1, like_NLD.shape[1:])
