"""The language-model loss of label positions by choice: plain, in chunks, or fused with the head by Liger's kernel.

Shapes: N label tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor, nn

from hacl.losses.lm import chunked_token_losses, token_losses

AUTO_BYTES = 2**28  # fp32 logits above which `auto` takes chunks: they exist three times over, with their gradient
CHUNK_BYTES = 2**26  # fp32 logits of one chunk


def label_losses(states_ND: Tensor, target_N: Tensor, head: nn.Module, kind: str) -> Tensor:
    """Cross-entropy (N,) of every label token in fp32.

    head: the LM head; kind: objective.lm_loss but for "liger". "auto" is plain up to `AUTO_BYTES` of logits, and where
    ZeRO-3 shards the head: ranks with different numbers of labels would gather it a different number of times.
    """
    tokens, vocabulary = len(target_N), getattr(head.weight, "ds_shape", head.weight.shape)[0]
    is_sharded = hasattr(head.weight, "ds_id")
    if kind == "plain" or (kind == "auto" and (is_sharded or 4 * tokens * vocabulary <= AUTO_BYTES)):
        return token_losses(head(states_ND), target_N)
    return chunked_token_losses(states_ND, target_N, head, max(1, CHUNK_BYTES // (4 * vocabulary)))


def liger_sum(states_ND: Tensor, target_N: Tensor, head: nn.Module) -> Tensor:
    """Summed cross-entropy, with head and loss in one kernel that never writes all logits (Liger-Kernel)."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss(reduction="sum")(head.weight, states_ND, target_N, head.bias)


def check_loss(kind: str) -> None:
    """Raise ValueError, naming the fix, where objective.lm_loss=liger cannot run."""
    if kind != "liger":
        return
    if not torch.cuda.is_available():
        raise ValueError("objective.lm_loss=liger needs a CUDA GPU; use auto or chunked")
    if importlib.util.find_spec("liger_kernel") is None:
        raise ValueError("objective.lm_loss=liger needs the package liger-kernel: pip install liger-kernel")
