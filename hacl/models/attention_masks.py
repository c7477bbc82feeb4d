"""Who sees whom in packed rows, and the form of it that an attention backend takes.

One rule covers independent sequences and trees: query q sees key k of its row exactly if k <= q < end[k], where end[k]
is the column after the last descendant of k (the ancestor test on intervals of a preorder). Two things may be added to
it: islands, whose tokens see each other in both directions, and a window, which hides what lies too far back.

Shapes: R packed rows, T tokens per row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Sees = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


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
    return visible(segment_ids_RT, subtree_end_RT)


@dataclass(frozen=True)
class Reach:
    """What tokens of a row see beside what their own path gives, and what of it they do not.

    islands_RT: tokens of one row with equal numbers from 0 on see each other in both directions, -1 for the others;
    positions_RT: of the tokens within their sequences; window: tokens that a token sees of those up to itself, itself
    included, None for all. What an island lets see ahead no window hides, as in stock `transformers` masks.
    """

    islands_RT: Tensor
    positions_RT: Tensor
    window: int | None = None


def _sees(segment_ids_RT: Tensor, subtree_end_RT: Tensor | None, reach: Reach | None) -> Sees:
    """(row, head, query, key) -> whether the query sees the key, for index tensors that broadcast."""
    ends_RT = subtree_ends(segment_ids_RT) if subtree_end_RT is None else subtree_end_RT

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        found = (key <= query) & (query < ends_RT[row, key])
        if reach is None:
            return found
        island = reach.islands_RT[row, key]
        found = found | ((island >= 0) & (reach.islands_RT[row, query] == island))
        if reach.window is None:
            return found
        return found & (reach.positions_RT[row, query] - reach.positions_RT[row, key] < reach.window)

    return sees


def visible(segment_ids_RT: Tensor, subtree_end_RT: Tensor | None = None, reach: Reach | None = None) -> Tensor:
    """Boolean (R, 1, T, T) mask, true where query t may look at key s; see `dense_mask`."""
    rows, tokens = segment_ids_RT.shape
    row_R111 = torch.arange(rows, device=segment_ids_RT.device)[:, None, None, None]
    column_T = torch.arange(tokens, device=segment_ids_RT.device)
    return _sees(segment_ids_RT, subtree_end_RT, reach)(row_R111, row_R111, column_T[:, None], column_T)


def additive_mask(mask_R1TT: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask as numbers to add to the scores, which is what eager attention takes."""
    zeros = torch.zeros(mask_R1TT.shape, dtype=dtype, device=mask_R1TT.device)
    return zeros.masked_fill(~mask_R1TT, torch.finfo(dtype).min)


def block_mask(segment_ids_RT: Tensor, subtree_end_RT: Tensor | None = None, reach: Reach | None = None):
    """The `BlockMask` of FlexAttention, for sequences and trees. Blocks without a visible key are not computed."""
    from torch.nn.attention.flex_attention import create_block_mask

    rows, tokens = segment_ids_RT.shape
    sees, device = _sees(segment_ids_RT, subtree_end_RT, reach), segment_ids_RT.device
    return create_block_mask(sees, rows, None, tokens, tokens, device=device, _compile=device.type == "cuda")


def sequence_bounds(segment_ids_RT: Tensor) -> tuple[Tensor, int]:
    """Where the sequences of all rows begin when rows are laid end to end, with the end of the last (int32), and the
    longest length: what variable-length flash attention takes. A run of padding counts as a sequence."""
    begins_RT = torch.ones_like(segment_ids_RT, dtype=torch.bool)
    begins_RT[:, 1:] = segment_ids_RT[:, 1:] != segment_ids_RT[:, :-1]
    bounds = torch.cat(
        [begins_RT.flatten().nonzero().squeeze(-1), begins_RT.new_tensor([begins_RT.numel()], dtype=torch.long)]
    )
    return bounds.int(), int(bounds.diff().max())


@dataclass(frozen=True)
class Bucket:
    """Paths of similar length that one attention call takes: places among the R*T tokens, padded by a path's first.

    queries: (n, Q); keys: (n, S); mask: boolean (n, 1, Q, S), or None where the keys are the queries and attention is
    plainly causal.
    """

    queries: Tensor
    keys: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class Segments:
    """Attention without a mask over rows. slots (R*T,): where each token's output lies once those of all buckets,
    padding included, are laid end to end; padding of the rows takes the one after the last."""

    buckets: tuple[Bucket, ...]
    slots: Tensor

    @property
    def scores(self) -> int:
        """Query-key pairs that are computed, padding included."""
        return sum(bucket.queries.numel() * bucket.keys.shape[1] for bucket in self.buckets)


@dataclass(frozen=True)
class _Path:
    """A run of tokens, each a child of the one before it, and the tokens that precede the run on its path."""

    start: int
    length: int
    before: Tensor


def bucket_segments(segment_ids_RT: Tensor, subtree_end_RT: Tensor | None = None, *, slack: float = 0.25) -> Segments:
    """Sort sequences, and the branches of trees, into buckets of similar length.

    slack: how much shorter than the longest of its bucket a sequence may be. A branch sees what precedes it through a
    mask of its own length; branches share a bucket when their lengths have one power of two.
    """
    paths = _paths(segment_ids_RT.cpu(), None if subtree_end_RT is None else subtree_end_RT.cpu())
    groups: list[list[_Path]] = []
    for path in sorted((path for path in paths if not len(path.before)), key=lambda path: -path.length):
        if not groups or path.length < groups[-1][0].length * (1 - slack):
            groups.append([])
        groups[-1].append(path)
    branches: dict[tuple[int, int], list[_Path]] = {}
    for path in paths:
        if len(path.before):
            size = path.length.bit_length(), (len(path.before) + path.length).bit_length()
            branches.setdefault(size, []).append(path)
    slots = torch.full((segment_ids_RT.numel(),), -1)
    buckets, used = [], 0
    for group in [*groups, *branches.values()]:
        bucket = _bucket(group)
        width = bucket.queries.shape[1]
        for n, path in enumerate(group):
            slots[path.start : path.start + path.length] = used + n * width + torch.arange(path.length)
        used += bucket.queries.numel()
        buckets.append(bucket)
    slots[slots < 0] = used
    device = segment_ids_RT.device
    moved = (
        Bucket(b.queries.to(device), b.keys.to(device), None if b.mask is None else b.mask.to(device)) for b in buckets
    )
    return Segments(tuple(moved), slots.to(device))


def _paths(segment_ids_RT: Tensor, subtree_end_RT: Tensor | None) -> list[_Path]:
    """Sequences, and trees cut into paths that follow first children, with places in the R*T tokens."""
    rows, tokens = segment_ids_RT.shape
    ends_RT = subtree_ends(segment_ids_RT) if subtree_end_RT is None else subtree_end_RT
    begins_RT = torch.ones_like(segment_ids_RT, dtype=torch.bool)
    columns_T = torch.arange(tokens)
    begins_RT[:, 1:] = (segment_ids_RT[:, 1:] != segment_ids_RT[:, :-1]) | (ends_RT[:, :-1] <= columns_T[1:])
    paths = []
    for row in range(rows):
        starts = [*begins_RT[row].nonzero().squeeze(-1).tolist(), tokens]
        for start, stop in zip(starts, starts[1:], strict=False):
            if segment_ids_RT[row, start] > 0:
                before = (ends_RT[row, :start] > start).nonzero().squeeze(-1)
                paths.append(_Path(row * tokens + start, stop - start, row * tokens + before))
    return paths


def _bucket(group: list[_Path]) -> Bucket:
    queries = torch.stack([_padded(torch.arange(p.start, p.start + p.length), _longest(group)) for p in group])
    if not len(group[0].before):
        return Bucket(queries, queries, None)
    width = max(len(p.before) + p.length for p in group)
    keys = torch.stack(
        [_padded(torch.cat([p.before, torch.arange(p.start, p.start + p.length)]), width) for p in group]
    )
    before_n = torch.tensor([len(p.before) for p in group])
    last_nQ = before_n[:, None] + torch.arange(queries.shape[1])
    return Bucket(queries, keys, (torch.arange(width) <= last_nQ[..., None])[:, None])


def _longest(group: list[_Path]) -> int:
    return max(path.length for path in group)


def _padded(places: Tensor, width: int) -> Tensor:
    return torch.cat([places, places[:1].expand(width - len(places))])
