"""Softmax cross-entropy over columns of which any number are positives and any number are left out.

Shapes: A anchors, X columns, M listed entries, L labels.
"""

from __future__ import annotations

import torch
from torch import Tensor

POSITIVES = ("mean_log", "log_sum")


def info_nce(
    logit_AX: Tensor, positive_AX: Tensor, negative_AX: Tensor, positives: str, exclude_other_positives: bool
) -> tuple[Tensor, Tensor]:
    """Loss (A,) of every anchor and whether it is one (has a positive); finite, and 0, where it is not.

    Columns neither positive nor negative are left out. The masked value is finite so that rows without any column
    have a finite value and gradient.
    """
    left_out = torch.finfo(logit_AX.dtype).min / 4
    is_anchor_A, count_A = positive_AX.any(1), positive_AX.sum(1).clamp_min(1)
    if positives == "mean_log" and exclude_other_positives:
        log_negatives_A = logit_AX.masked_fill(~negative_AX, left_out).logsumexp(1)
        positive_logit_AX = logit_AX.masked_fill(~positive_AX, left_out)
        log_all_AX = torch.logaddexp(positive_logit_AX, log_negatives_A[:, None])
        loss_A = torch.where(positive_AX, log_all_AX - logit_AX, 0).sum(1) / count_A
    else:
        log_all_A = logit_AX.masked_fill(~(positive_AX | negative_AX), left_out).logsumexp(1)
        if positives == "log_sum":
            loss_A = log_all_A - logit_AX.masked_fill(~positive_AX, left_out).logsumexp(1)
        else:
            loss_A = log_all_A - logit_AX.masked_fill(~positive_AX, 0).sum(1) / count_A
    return torch.where(is_anchor_A, loss_A, 0), is_anchor_A


def listed_labels(listed_AM: Tensor, label_M: Tensor, num_labels: int) -> Tensor:
    """(A, L): whether anchor a lists, anywhere along M, an entry with label l of the `num_labels` labels (int64)."""
    times_AL = torch.zeros(len(listed_AM), num_labels, device=listed_AM.device)
    return times_AL.index_add_(1, label_M, listed_AM.to(times_AL.dtype)) > 0


def first_is_positive(similarity_AX: Tensor, positive_AX: Tensor, negative_AX: Tensor) -> Tensor:
    """(A,): whether the best positive beats every negative; a tie is no win."""
    if not similarity_AX.shape[1]:
        return positive_AX.any(1)
    lowest = float("-inf")
    best_positive_A = similarity_AX.masked_fill(~positive_AX, lowest).amax(1)
    return best_positive_A > similarity_AX.masked_fill(~negative_AX, lowest).amax(1)
