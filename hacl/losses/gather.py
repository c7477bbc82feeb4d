"""Concatenate what every rank holds, and send each rank the sum of what all ranks want of it.

Shapes: B rows of this rank (may differ between ranks), N = sum of B over W ranks.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


class Gather:
    """All-gather along the first dimension, differentiable, for ranks with unequal numbers of rows.

    Forward concatenates the rows in rank order. Backward is a reduce-scatter with a sum: the gradient of a rank's rows
    is what the losses of *all* ranks ask of them. With anchors kept local and every rank's loss scaled by W / N, data
    parallel averaging then gives the gradient of the single-process loss, temperature included.

    Without a process group, or with a group of one, every method is the identity and makes no call.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, *, alone: bool = False):
        """group: the ranks to gather from (None = all). alone: ignore any process group."""
        self.group = group
        self.alone = alone

    @property
    def world_size(self) -> int:
        if self.alone or not (dist.is_available() and dist.is_initialized()):
            return 1
        return dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        return 0 if self.world_size == 1 else dist.get_rank(self.group)

    def agree(self, *numbers: int, device: torch.device) -> list[list[int]]:
        """The same few integers of every rank, in rank order: how ranks settle shapes before a larger exchange."""
        if self.world_size == 1:
            return [list(numbers)]
        mine = torch.tensor(numbers, dtype=torch.int64, device=device)
        everyone = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(everyone, mine, group=self.group)
        return torch.stack(everyone).tolist()

    def sum(self, numbers: Tensor) -> Tensor:
        """Sum over ranks, without gradient."""
        if self.world_size == 1:
            return numbers.detach()
        numbers = numbers.detach().clone()
        dist.all_reduce(numbers, group=self.group)
        return numbers

    def rows(self, rows_B: Tensor, counts_W: list[int] | None = None) -> Tensor:
        """(B, ...) on each rank -> (N, ...) on all, with gradient where `rows_B` is floating point and needs it.

        counts_W: rows of every rank where already known. All other dimensions must agree between ranks, and so must
        whether a gradient is wanted: backward is a collective.
        """
        if self.world_size == 1:
            return rows_B
        if counts_W is None:
            counts_W = [count for (count,) in self.agree(len(rows_B), device=rows_B.device)]
        if rows_B.requires_grad and torch.is_grad_enabled():
            return _GatherRows.apply(rows_B, counts_W, self.rank, self.group)
        return _all_gather(rows_B, counts_W, self.group)

    __call__ = rows


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows_B, counts_W, rank, group):
        ctx.counts_W, ctx.rank, ctx.group = counts_W, rank, group
        return _all_gather(rows_B, counts_W, group)

    @staticmethod
    def backward(ctx, grad_N):
        return _reduce_scatter(grad_N, ctx.counts_W, ctx.rank, ctx.group), None, None, None


def _all_gather(rows_B: Tensor, counts_W: list[int], group) -> Tensor:
    longest, equal = max(counts_W), len(set(counts_W)) == 1
    if longest == 0:
        return rows_B.detach()
    padded = rows_B.detach() if equal else _pad_rows(rows_B.detach(), longest)
    everyone = padded.new_empty(len(counts_W) * longest, *padded.shape[1:])
    dist.all_gather(list(everyone.split(longest)), padded.contiguous(), group=group)
    if equal:
        return everyone
    return torch.cat([block[:count] for block, count in zip(everyone.split(longest), counts_W, strict=True)])


def _reduce_scatter(grad_N: Tensor, counts_W: list[int], rank: int, group) -> Tensor:
    longest, equal = max(counts_W), len(set(counts_W)) == 1
    if longest == 0:
        return grad_N
    padded = grad_N if equal else torch.cat([_pad_rows(block, longest) for block in grad_N.split(counts_W)])
    mine = grad_N.new_empty(longest, *grad_N.shape[1:])
    dist.reduce_scatter_tensor(mine, padded.contiguous(), group=group)
    return mine[: counts_W[rank]]


def _pad_rows(rows_B: Tensor, longest: int) -> Tensor:
    return F.pad(rows_B, [0, 0] * (rows_B.dim() - 1) + [0, longest - len(rows_B)])
