"""Language-model losses on label tokens only, and a margin between the likelihoods of true and hallucinated text.

Shapes: N label tokens, D hidden size, V vocabulary, S sequences, Q pairs of a true and a hallucinated sequence.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def token_losses(logits_NV: Tensor, target_N: Tensor) -> Tensor:
    """Cross-entropy (N,) in nats of every label token, in fp32 (fp64 stays) whatever the dtype of the logits."""
    logits_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    return F.cross_entropy(logits_NV, target_N, reduction="none")


def chunked_token_losses(states_ND: Tensor, target_N: Tensor, head: Callable[[Tensor], Tensor], chunk: int) -> Tensor:
    """`token_losses(head(states_ND), target_N)` without N x V logits at any time.

    head: states (n, D) to logits (n, V). The logits of `chunk` tokens exist at once; they are computed again in the
    backward pass, so the head costs one more forward pass.
    """
    if len(states_ND) <= chunk:
        return token_losses(head(states_ND), target_N)
    parts = zip(states_ND.split(chunk), target_N.split(chunk), strict=True)
    losses = [
        checkpoint(_head_losses, head, states, target, use_reentrant=False, preserve_rng_state=False)
        for states, target in parts
    ]
    return torch.cat(losses)


def _head_losses(head: Callable[[Tensor], Tensor], states_ND: Tensor, target_N: Tensor) -> Tensor:
    return token_losses(head(states_ND), target_N)


def sequence_log_likelihood(token_losses_N: Tensor, sequence_N: Tensor, num_sequences: int) -> Tensor:
    """Log-likelihood (S,) in nats: minus the sum of the losses of each sequence's tokens, 0 for one without tokens.

    sequence_N: index of the sequence that a token belongs to.
    """
    return token_losses_N.new_zeros(num_sequences).index_add(0, sequence_N, -token_losses_N)


def likelihood_margin(
    true_Q: Tensor, false_Q: Tensor, *, margin: float = 0.0, beta: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over pairs of -log sigmoid(beta * (true - false - margin)) of log-likelihoods given the image, in nats.

    Q pairs of a true and a hallucinated text. Returns the sum, the number of pairs whose true text is the likelier one,
    and the number of pairs, so that ranks with different numbers of pairs can be put together. No pairs give zero with
    a graph. Raises ValueError where the two do not have one shape.
    """
    if true_Q.shape != false_Q.shape:
        raise ValueError(f"likelihoods must have one shape, not {tuple(true_Q.shape)} and {tuple(false_Q.shape)}")
    gap_Q = true_Q - false_Q
    loss_sum = F.softplus(-beta * (gap_Q - margin)).sum()
    return loss_sum, (gap_Q > 0).sum(), torch.tensor(gap_Q.numel(), device=gap_Q.device)
