"""Who sees whom in packed rows, and the form of it that an attention backend takes.

One rule covers independent sequences and trees: query q sees key k of its row exactly if k <= q < end[k], where end[k]
is the column after the last descendant of k (the ancestor test on intervals of a preorder).

Shapes: R packed rows, T tokens per row.
"""

from __future__ import annotations

import torch
from torch import Tensor


def subtree_ends(segment_ids_RT: Tensor) -> Tensor:
    """end (R, T) of independent sequences: the column after each token's sequence. Padding (0) sees only itself."""
    columns_T = torch.arange(segment_ids_RT.shape[1], device=segment_ids_RT.device)
    following_RT = torch.full_like(segment_ids_RT, -1)
    following_RT[:, :-1] = segment_ids_RT[:, 1:]
    # The next column at which a sequence stops, found from the right.
    is_last_RT = segment_ids_RT != following_RT
    stops_RT = torch.where(is_last_RT, columns_T + 1, torch.full_like(segment_ids_RT, segment_ids_RT.shape[1]))
    ends_RT = stops_RT.flip(1).cummin(1).values.flip(1)
    return torch.where(segment_ids_RT > 0, ends_RT, columns_T + 1)


def is_plain(segment_ids_RT: Tensor, subtree_end_RT: Tensor | None = None) -> bool:
    """Whether every row is one left-aligned sequence: plain causal attention is then exact, because padding comes after
    every real token."""
    if bool((segment_ids_RT > 1).any()):
        return False
    return subtree_end_RT is None or bool((subtree_end_RT == subtree_ends(segment_ids_RT)).all())


def dense_mask(segment_ids_RT: Tensor, subtree_end_RT: Tensor | None = None) -> Tensor | None:
    """Boolean (R, 1, T, T) mask, true where query t may look at key s, or None where plain causal attention is exact.

    segment_ids_RT: 0 for padding, 1.. for the sequences or trees of a row; subtree_end_RT: end of every column, None
    where no sequence branches. Padding looks at itself so that no row of the softmax is empty.
    """
    if is_plain(segment_ids_RT, subtree_end_RT):
        return None
    ends_RT = subtree_ends(segment_ids_RT) if subtree_end_RT is None else subtree_end_RT
    columns_T = torch.arange(segment_ids_RT.shape[1], device=segment_ids_RT.device)
    return ((columns_T <= columns_T[:, None]) & (columns_T[:, None] < ends_RT[:, None, :]))[:, None]
