"""Place variable-length sequences in rows without overlap, and merge sequences that begin alike.

A sequence by itself is a root: positions restart at 0 and attention never crosses from one to another. Sequences with a
common beginning can form a tree instead, in which the beginning is stored once (a trie); `hacl.models.attention_masks`
says who sees whom in it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass
class Tree:
    """Sequences merged at their common beginnings, tokens in preorder: a token comes after all that it may see.

    tokens: one entry per distinct beginning; depth: how many tokens precede it on its own path, its position; end:
    index after its last descendant, so that token q sees token k exactly if k <= q < end[k]; columns: for every
    sequence the index of each of its tokens. The first sequence lies at 0, 1, 2, ...
    """

    tokens: list[Hashable]
    depth: list[int]
    end: list[int]
    columns: list[Sequence[int]]

    def __len__(self) -> int:
        return len(self.tokens)


def merge_prefixes(sequences: Sequence[Sequence[Hashable]]) -> Tree:
    """The trie of one sequence or several. Equal sequences share all their tokens."""
    if len(sequences) == 1:
        length = len(sequences[0])
        return Tree(list(sequences[0]), list(range(length)), [length] * length, [range(length)])
    tokens: list[Hashable] = []
    children: list[dict[Hashable, int]] = []
    roots: dict[Hashable, int] = {}
    paths = []
    for sequence in sequences:
        level, path = roots, []
        for token in sequence:
            node = level.get(token)
            if node is None:
                node = level[token] = len(tokens)
                tokens.append(token)
                children.append({})
            path.append(node)
            level = children[node]
        paths.append(path)
    order, depth, end, place = [], [0] * len(tokens), [0] * len(tokens), [0] * len(tokens)
    waiting = [(node, 0, False) for node in reversed(roots.values())]
    while waiting:
        node, level, is_done = waiting.pop()
        if is_done:
            end[place[node]] = len(order)
            continue
        place[node] = len(order)
        depth[place[node]] = level
        order.append(node)
        waiting.append((node, level, True))
        waiting += [(child, level + 1, False) for child in reversed(children[node].values())]
    return Tree([tokens[node] for node in order], depth, end, [[place[node] for node in path] for path in paths])


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


def pack_tightly(
    lengths: list[int], *, share_rows: bool = True, multiple: int = 1
) -> tuple[list[tuple[int, int]], int, int]:
    """Pack with the row width that leaves the least padding, out of a few.

    Widths tried: that of the longest sequence (short ones fill rows of their own), and the average row when every long
    sequence (over half the longest) has a row and the short ones ride beside them, with and without room for one more.
    Returns places (row, start column), the number of rows and the number of columns in use, rounded up to `multiple`;
    no sequences take one row of the fewest columns, so that a batch of no samples runs the model too.
    """
    if not lengths:
        return [], 1, multiple
    longest = max(lengths)
    widths = [longest]
    short = [length for length in lengths if 2 * length <= longest]
    if share_rows and short:
        beside = -(-sum(lengths) // (len(lengths) - len(short)))
        widths += [beside, beside + sum(short) // len(short)]
    best = None
    for width in sorted({_rounded(max(longest, width), multiple) for width in widths}):
        places, rows = pack_rows(lengths, width, share_rows=share_rows)
        used = max(column + length for (_, column), length in zip(places, lengths, strict=True))
        columns = _rounded(used, multiple)
        if best is None or rows * columns < best[1] * best[2]:
            best = places, rows, columns
    return best


def _rounded(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
