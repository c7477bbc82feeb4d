import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hacl.config import load_config
from hacl.config_io import ConfigError
from hacl.losses.lm import chunked_token_losses, likelihood_margin, sequence_log_likelihood, token_losses
from hacl.training import label_loss
from tests.unit.test_packed_step import build, gradients, make_records


def test_token_losses_are_minus_log_softmax_in_fp32():
    logits = torch.randn(5, 11, dtype=torch.bfloat16)
    target = torch.tensor([0, 10, 3, 3, 7])
    losses = token_losses(logits, target)
    expected = torch.stack([logits[n].float().logsumexp(0) - logits[n, target[n]].float() for n in range(5)])
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected)
    assert token_losses(logits.double(), target).dtype == torch.float64
    assert token_losses(logits[:0], target[:0]).shape == (0,)


def label_case(tokens, width=6, vocabulary=37, dtype=torch.float64):
    torch.manual_seed(0)
    head = nn.Linear(width, vocabulary, dtype=dtype)
    states = torch.randn(tokens, width, dtype=dtype, requires_grad=True)
    return head, states, torch.randint(0, vocabulary, (tokens,)), torch.randn(tokens, dtype=dtype)


@pytest.mark.parametrize("tokens", [0, 1, 4, 5, 8, 13])
def test_chunked_losses_and_gradients_are_those_of_the_plain_head_at_any_size(tokens):
    head, states, target, weight = label_case(tokens)
    results = []
    for losses in (token_losses(head(states), target), chunked_token_losses(states, target, head, 4)):
        grads = torch.autograd.grad((losses * weight).sum(), [states, head.weight, head.bias])
        results.append([losses.detach(), *grads])
    for plain, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, plain, rtol=1e-9, atol=1e-12)


class LargestTensor(TorchDispatchMode):
    """Remembers the most numbers that any operation gave back in one tensor."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return result


def test_chunks_never_hold_the_logits_of_all_labels_and_keep_none_for_the_backward_pass():
    tokens, vocabulary, chunk = 64, 1000, 8
    head, states, target, _ = label_case(tokens, vocabulary=vocabulary, dtype=torch.float32)
    kept, largest = {}, {}
    for name in ("plain", "chunked"):
        saved = []
        with (
            torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t),  # noqa: B023
            LargestTensor() as mode,
        ):
            losses = (
                token_losses(head(states), target)
                if name == "plain"
                else chunked_token_losses(states, target, head, chunk)
            )
            kept[name] = sum(saved)
            losses.sum().backward()
        largest[name] = mode.numbers
    assert largest["plain"] == tokens * vocabulary <= kept["plain"]
    assert largest["chunked"] == chunk * vocabulary and kept["chunked"] < chunk * vocabulary


def test_auto_takes_chunks_above_a_size_and_never_where_the_head_is_sharded(monkeypatch):
    head, states, target, _ = label_case(9)
    calls = []
    chunked = label_loss.chunked_token_losses
    monkeypatch.setattr(label_loss, "chunked_token_losses", lambda *a: calls.append(a[-1]) or chunked(*a))
    label_loss.label_losses(states, target, head, "auto")
    assert not calls
    monkeypatch.setattr(label_loss, "AUTO_BYTES", 9 * 37 * 4 - 1)
    monkeypatch.setattr(label_loss, "CHUNK_BYTES", 2 * 37 * 4)
    label_loss.label_losses(states, target, head, "auto")
    label_loss.label_losses(states, target, head, "plain")
    assert calls == [2], "two tokens' logits fill a chunk"
    head.weight.ds_id = 0
    label_loss.label_losses(states, target, head, "auto")
    assert calls == [2]


def test_a_step_with_chunked_labels_is_the_plain_step(tiny_llava, tmp_path, monkeypatch):
    monkeypatch.setattr(label_loss, "CHUNK_BYTES", 3 * 4 * 60)
    settings = {"num_hallucinated": 2, "likelihood_margin_weight": 0.5}
    results = []
    for kind in ("plain", "chunked"):
        model, _, batch = build(tiny_llava, tmp_path, make_records(tmp_path), lm_loss=kind, **settings)
        loss = model(**batch).loss
        results.append((loss.item(), gradients(model, loss)))
    (plain, expected), (chunked, found) = results
    assert chunked == pytest.approx(plain, rel=1e-12)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["objective.lm_loss=chunked", "objective.lm_weight=0"], "objective.lm_weight > 0"),
        (["objective.lm_loss=liger", "objective.likelihood_margin_weight=1"], "objective.lm_loss=chunked"),
        (["objective.lm_loss=chunked", "train.deepspeed=3"], "ZeRO-3"),
    ],
)
def test_a_loss_that_cannot_be_computed_is_refused(settings, reason):
    with pytest.raises(ConfigError, match=reason):
        load_config(None, settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_liger_without_a_gpu_is_refused_with_the_fix():
    label_loss.check_loss("auto")
    with pytest.raises(ValueError, match="needs a CUDA GPU; use auto or chunked"):
        label_loss.check_loss("liger")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_ligers_loss_is_the_plain_sum_on_a_gpu():
    pytest.importorskip("liger_kernel")
    head, states, target, _ = label_case(13, width=64, vocabulary=300, dtype=torch.float32)
    head, states, target = head.cuda(), states.detach().cuda().requires_grad_(), target.cuda()
    results = []
    for loss in (token_losses(head(states), target).sum(), label_loss.liger_sum(states, target, head)):
        results.append([loss.detach(), *torch.autograd.grad(loss, [states, head.weight])])
    for plain, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-3, atol=1e-3)


def test_sequences_are_summed_apart_and_one_without_tokens_has_zero():
    losses = torch.tensor([1.0, 2.0, 4.0, 8.0], requires_grad=True)
    likelihood = sequence_log_likelihood(losses, torch.tensor([2, 0, 2, 0]), 4)
    assert likelihood.tolist() == [-10, 0, -5, 0]
    likelihood[2].backward()
    assert losses.grad.tolist() == [-1, 0, -1, 0]


def test_the_margin_is_the_sum_of_minus_log_sigmoid_of_the_gap():
    true, false = torch.tensor([-4.0, -9.0]).double(), torch.tensor([-6.0, -8.0]).double()
    loss_sum, wins, pairs = likelihood_margin(true, false, margin=0.5, beta=2.0)
    expected = sum(math.log(1 + math.exp(-2.0 * (gap - 0.5))) for gap in (2.0, -1.0))
    assert float(loss_sum) == pytest.approx(expected)
    assert int(wins) == 1
    assert int(pairs) == 2


def test_no_pairs_give_zero_with_a_graph():
    likelihood = torch.randn(3, requires_grad=True)
    none = likelihood[:0]
    loss_sum, wins, pairs = likelihood_margin(none, none)
    loss_sum.backward()
    assert (float(loss_sum.detach()), int(wins), int(pairs)) == (0, 0, 0)
    assert likelihood.grad.tolist() == [0, 0, 0]


def test_unequal_shapes_are_refused():
    with pytest.raises(ValueError, match="must have one shape"):
        likelihood_margin(torch.zeros(2), torch.zeros(3))
