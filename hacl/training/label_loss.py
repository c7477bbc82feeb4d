"""The language-model loss of label positions by choice: plain, in chunks, or fused with the head by Liger's kernel.

Shapes: N label tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import importlib.util
import math

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
    vocabulary = getattr(head.weight, "ds_shape", head.weight.shape)[0]
    if len(target_N) <= plain_limit(kind, vocabulary, is_sharded=hasattr(head.weight, "ds_id")):
        return token_losses(head(states_ND), target_N)
    return chunked_token_losses(states_ND, target_N, head, _chunk(vocabulary))


def plain_limit(kind: str, vocabulary: int, *, is_sharded: bool) -> float:
    """Label tokens of a micro-batch up to which the head runs once. Beyond them it runs in chunks, and in the backward
    pass again. "liger" takes the gradients in its forward pass and repeats nothing."""
    if kind in ("plain", "liger") or (kind == "auto" and is_sharded):
        return math.inf
    return AUTO_BYTES // (4 * vocabulary) if kind == "auto" else _chunk(vocabulary)


def _chunk(vocabulary: int) -> int:
    return max(1, CHUNK_BYTES // (4 * vocabulary))


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
