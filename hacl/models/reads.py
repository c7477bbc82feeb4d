"""Read representations out of packed states: one position, the mean of a span, or the mean of scattered places.

Shapes: R packed rows, T tokens per row, D hidden size, L places; a read is (row, start, end) with end exclusive.
"""

from __future__ import annotations

import torch
from torch import Tensor


def read_spans(states_RTD: Tensor, reads: Tensor) -> Tensor:
    """Mean of `states_RTD[row, start:end]` for every read.

    reads: int64 (..., 3). Returns (..., D) in the dtype of the states; a span of one token is that token's state,
    bit for bit. An empty span (end == start), used for absent items, reads the state at `start`.
    """
    flat = reads.reshape(-1, 3)
    rows, start = flat[:, 0], flat[:, 1]
    length = (flat[:, 2] - start).clamp_min(1)
    longest = int(length.max()) if len(flat) else 1
    if longest == 1:
        pooled = states_RTD[rows, start]
    else:
        offset = torch.arange(longest, device=reads.device)
        inside = offset < length[:, None]
        columns = torch.where(inside, start[:, None] + offset, start[:, None])
        weights = inside.to(states_RTD.dtype) / length[:, None].to(states_RTD.dtype)
        pooled = (states_RTD[rows[:, None], columns] * weights[..., None]).sum(1)
    return pooled.reshape(*reads.shape[:-1], states_RTD.shape[-1])


def read_places(states_RTD: Tensor, reads: Tensor, places: Tensor) -> Tensor:
    """Mean over columns that need not be neighbours, as those of a text in a tree are not.

    reads: int64 (..., 3), of which the row is used; places: int64 (..., L), columns, or -1 for none. Returns (..., D)
    in the dtype of the states; absent items, without a place, read zeros.
    """
    inside = (places >= 0)[..., None].to(states_RTD.dtype)
    found = states_RTD[reads[..., :1], places.clamp_min(0)] * inside
    return found.sum(-2) / inside.sum(-2).clamp_min(1)
