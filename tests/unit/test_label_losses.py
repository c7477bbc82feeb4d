import math

import pytest
import torch

from hacl.losses.lm import likelihood_margin, sequence_log_likelihood, token_losses


def test_token_losses_are_minus_log_softmax_in_fp32():
    logits = torch.randn(5, 11, dtype=torch.bfloat16)
    target = torch.tensor([0, 10, 3, 3, 7])
    losses = token_losses(logits, target)
    expected = torch.stack([logits[n].float().logsumexp(0) - logits[n, target[n]].float() for n in range(5)])
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected)
    assert token_losses(logits.double(), target).dtype == torch.float64
    assert token_losses(logits[:0], target[:0]).shape == (0,)


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
    assert (float(loss_sum), int(wins), int(pairs)) == (0, 0, 0)
    assert likelihood.grad.tolist() == [0, 0, 0]


def test_unequal_shapes_are_refused():
    with pytest.raises(ValueError, match="must have one shape"):
        likelihood_margin(torch.zeros(2), torch.zeros(3))
