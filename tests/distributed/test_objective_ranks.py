"""Ranks that hold unequal parts of a batch give the loss and the gradients of one process that holds all of it."""

import pytest
import torch

from hacl.losses.gather import Gather
from tests.distributed.ranks import run_ranks
from tests.unit.test_packed_step import build, conversation, make_records

pytestmark = pytest.mark.slow

SPLITS = {
    "two ragged ranks, one without hallucinated captions": [[0, 1, 2, 4, 5], [3]],
    "three ragged ranks, one without captions": [[0, 1, 2], [3, 4], [5, 6]],
}
FORMS = {"three ragged ranks, one without captions": {"form": "eos_branch", "share_prefixes": True}}


def all_records(folder):
    late = conversation("late", ("2.png",), "what is in <image> ?", "a cross", "which colour ?", "blue")
    return [*make_records(folder), conversation("text", (), "what colour is it ?", "red"), late]


def step(model_folder, images, chosen, settings, gather):
    records = [all_records(images)[i] for i in chosen]
    model, _, batch = build(model_folder, images, records, template="chat", **settings)
    model.gather = gather
    output = model(**batch)
    gather = gather or Gather(alone=True)
    tokens = gather.sum(output.lm_tokens)
    loss = output.lm_sum * gather.world_size / tokens + output.contrastive + 0.5 * output.margin
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), grads


def rank_step(rank, model_folder, images, split, settings):
    torch.set_num_threads(1)
    return step(model_folder, images, split[rank], settings, Gather())


@pytest.mark.parametrize("name", SPLITS)
def test_ranks_reproduce_the_single_process_step(tiny_llava, tmp_path, name):
    split = SPLITS[name]
    settings = {
        "num_hallucinated": 2,
        "hard_scope": "global",
        "learn_temperature": True,
        "likelihood_margin_weight": 0.5,
        **FORMS.get(name, {}),
    }
    together = sorted(index for part in split for index in part)
    expected_loss, expected = step(tiny_llava, tmp_path, together, settings, None)
    results = run_ranks(rank_step, len(split), tiny_llava, tmp_path, split, settings)
    mean_loss = sum(loss for loss, _ in results) / len(split)
    assert mean_loss.item() == pytest.approx(expected_loss.item(), rel=1e-9)
    scale = max(grad.abs().max() for grad in expected.values())
    for key, gradient in expected.items():
        averaged = sum(grads.get(key, torch.zeros_like(gradient)) for _, grads in results) / len(split)
        difference = (averaged - gradient).norm() / max(gradient.norm(), scale * 1e-3)
        assert difference < 1e-6, f"{key}: relative difference {difference:.2e}"
    assert "heads.temperature.log_inverse" in expected and "heads.image_projection.weight" in expected
