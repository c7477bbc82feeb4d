"""Place variable-length sequences in rows without overlap, and describe which token may look at which.

Every sequence is an independent root: positions restart at 0 and attention never crosses from one to another. Masks are
per row (R, 1, T, T), so their cost is linear in the batch; no mask over a whole packed batch is ever built.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pack_rows(lengths: list[int], capacity: int, *, share_rows: bool = True) -> tuple[list[tuple[int, int]], int]:
    """Best-fit decreasing: where each sequence goes.

    lengths: tokens of each sequence; capacity: tokens a row may hold (at least the longest sequence).
    Returns one (row, start column) per sequence in the order given, and the number of rows. With `share_rows=False`
    every sequence has a row of its own.
    """
    if lengths and max(lengths) > capacity:
        raise ValueError(f"a sequence of {max(lengths)} tokens does not fit a row of {capacity}")
    if not share_rows:
        return [(row, 0) for row in range(len(lengths))], len(lengths)
    used: list[int] = []
    places: list[tuple[int, int]] = [(0, 0)] * len(lengths)
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        fitting = [(capacity - used[row], row) for row in range(len(used)) if used[row] + length <= capacity]
        if fitting:
            row = min(fitting)[1]
        else:
            row = len(used)
            used.append(0)
        places[index] = (row, used[row])
        used[row] += length
    return places, len(used)


def pack_tightly(lengths: list[int], *, share_rows: bool = True) -> tuple[list[tuple[int, int]], int, int]:
    """Pack with the row width that leaves the least padding, out of a few.

    Widths tried: that of the longest sequence (short ones fill rows of their own), and the average row when every long
    sequence (over half the longest) has a row and the short ones ride beside them, with and without room for one more.
    Returns places (row, start column), the number of rows and the number of columns in use.
    """
    longest = max(lengths)
    widths = [longest]
    short = [length for length in lengths if 2 * length <= longest]
    if share_rows and short:
        beside = -(-sum(lengths) // (len(lengths) - len(short)))
        widths += [beside, beside + sum(short) // len(short)]
    best = None
    for width in sorted({max(longest, width) for width in widths}):
        places, rows = pack_rows(lengths, width, share_rows=share_rows)
        columns = max(column + length for (_, column), length in zip(places, lengths, strict=True))
        if best is None or rows * columns < best[1] * best[2]:
            best = places, rows, columns
    return best


def segment_mask(segment_ids_RT: Tensor) -> Tensor | None:
    """Boolean (R, 1, T, T) mask, true where query t may look at key s: same segment and s <= t.

    segment_ids_RT: 0 for padding, 1.. for the sequences of a row. Padding looks at itself so that no row of the
    softmax is empty. Returns None when every row is one left-aligned sequence: plain causal attention is then exact,
    because padding comes after every real token.
    """
    if bool((segment_ids_RT <= 1).all()):
        return None
    tokens = segment_ids_RT.shape[1]
    causal_TT = torch.ones(tokens, tokens, dtype=torch.bool, device=segment_ids_RT.device).tril()
    same_RTT = segment_ids_RT[:, :, None] == segment_ids_RT[:, None, :]
    return (same_RTT & causal_TT)[:, None]
