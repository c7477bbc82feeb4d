"""Promises about what the dial does to a model's words: up, down, and nothing for directions that mean nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from hacl.models.adapters import find_adapter
from hacl.steering import FlexACSteerer, steering
from hacl.steering.association import AssociationFeatures
from hacl.steering.flexac_presets import PRESETS
from tests.reference.steering_inputs import WIDTH, load, prompts

HALLUCINATED, GROUNDED, TOKENS = 7, 8, 24
DIAL = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)


def unit(seed):
    v = torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))
    return v / v.norm()


@pytest.fixture(scope="module")
def model(tiny_llava):
    """A model that says a hallucinated word the more its state points along u, and a grounded one along -u."""
    made = load(tiny_llava)
    with torch.no_grad():
        head = find_adapter(made).lm_head.weight
        head.mul_(0.1)
        head[HALLUCINATED], head[GROUNDED] = unit(1), -unit(1)
    return made


def features(model, n=48, *, shuffled=None):
    """States after block 1, u added on the associative side; shuffled: a seed that swaps the sides of random pairs."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(1, n, WIDTH)).astype(np.float32) * 2
    sides = [base + rng.normal(size=base.shape).astype(np.float32) * 0.5 for _ in range(2)]
    sides[1] = sides[1] + 2.0 * unit(1).numpy()
    if shuffled is not None:
        swap = np.random.default_rng(shuffled).random(n) < 0.5
        sides = [np.where(swap[None, :, None], a, b) for a, b in (sides[::-1], sides)]
    return AssociationFeatures(*sides, (1,), tuple(map(str, range(n))))


@torch.no_grad()
def rates(model, steerer):
    """Chance of the hallucinated and of the grounded word after every turn of the dial, over many prompts."""
    found = []
    batches = [prompts(model, images=(False,) * 3, seed=seed).batch() for seed in range(TOKENS // 3)]
    for alpha in DIAL:
        with steering(model, steerer, alpha=alpha):
            chances = torch.cat([model(**batch).logits[:, -1].softmax(-1) for batch in batches])
        found.append(chances[:, [HALLUCINATED, GROUNDED]].mean(0).tolist())
    return np.array(found).T


@pytest.mark.parametrize("name", PRESETS)
def test_the_dial_turns_hallucinated_words_up_and_down(model, name):
    preset = PRESETS[name].with_k(24)
    if name == "released":
        pairs = features(model)
        half = [str(i // 2) for i in range(48)]
        pairs = AssociationFeatures(
            pairs.grounded, pairs.associative, (1,), pairs.ids, half, [i % 2 for i in range(48)]
        )
    else:
        pairs = features(model)
    hallucinated, grounded = rates(model, preset.steerer([preset.build(pairs)], layers=[1]))
    assert (np.diff(hallucinated) > 0).all() and (np.diff(grounded) < 0).all()
    assert hallucinated[DIAL.index(-1.0)] < hallucinated[DIAL.index(0.0)] < hallucinated[DIAL.index(1.0)]


def test_a_random_direction_of_the_same_length_hardly_moves_them(model):
    preset = PRESETS["paper"].with_k(24)
    vector = torch.tensor(preset.build(features(model)).vector(1)).float()
    own = rates(model, FlexACSteerer({1: vector}, gate="paper"))[0]
    spans = [np.ptp(rates(model, FlexACSteerer({1: vector.norm() * unit(seed)}, gate="paper"))[0]) for seed in range(9)]
    assert np.mean(spans) < 0.35 * np.ptp(own)


def test_shuffled_labels_turn_nothing(model):
    preset = PRESETS["paper"].with_k(48)
    own = np.ptp(rates(model, preset.steerer([preset.build(features(model))], layers=[1]))[0])
    slopes, spans = [], []
    for seed in range(12):
        made = preset.build(features(model, shuffled=seed))
        rate = rates(model, preset.steerer([made], layers=[1]))[0]
        slopes.append(spearmanr(DIAL, rate).statistic)
        spans.append(np.ptp(rate))
    reach = 1.96 * np.std(slopes, ddof=1) / np.sqrt(len(slopes))
    assert abs(np.mean(slopes)) < reach and np.mean(spans) < 0.5 * own
