"""Positions of packed rows in several axes, where sequences branch before and behind their images."""

from __future__ import annotations

import torch

from hacl.models.families.qwen import rotary_positions

GRIDS = torch.tensor([[1, 4, 6], [1, 4, 4], [1, 6, 4]])  # patches; tokens are squares of two by two
SIDES = [(2, 3), (2, 2), (3, 2)]
TEXT = -1


def sequence_positions(kinds: list[int]) -> list[tuple[int, int, int]]:
    """Of one sequence of text tokens and whole images, token by token (Wang et al., arXiv 2409.12191, section 2.1)."""
    found, following = [], 0
    for kind in kinds:
        if kind == TEXT:
            found.append((following,) * 3)
            following += 1
            continue
        height, width = SIDES[kind]
        found += [(following, following + y, following + x) for y in range(height) for x in range(width)]
        following += max(height, width)
    return found


def tokens(kinds: list[int]) -> list[tuple[int, int]]:
    """(image, number in it), or (TEXT, 0)."""
    return [(kind, n) for kind in kinds for n in range(1 if kind == TEXT else SIDES[kind][0] * SIDES[kind][1])]


def test_branches_with_images_of_their_own_have_the_positions_of_their_paths():
    stem, branches = [TEXT, 0, TEXT], [[TEXT, 1, TEXT, TEXT], [2, TEXT], [TEXT, TEXT]]
    start, flat, ends, depth = len(tokens(stem)), tokens(stem), [], list(range(len(tokens(stem))))
    for branch in branches:
        depth += range(start, start + len(tokens(branch)))
        flat = flat + tokens(branch)
        ends += [len(flat)] * len(tokens(branch))
    first = torch.tensor([0, 6, 10])
    batch = {
        "segment_ids": torch.ones(1, len(flat), dtype=torch.long),
        "subtree_end": torch.tensor([[len(flat)] * start + ends]),
        "position_ids": torch.tensor([depth]),
        "image_source": torch.tensor([[-1 if image == TEXT else int(first[image]) + n for image, n in flat]]),
        "image_tokens": torch.tensor([0] * 6 + [1] * 4 + [2] * 6),
    }
    found = rotary_positions(batch, GRIDS, merge=2)[:, 0].T.tolist()
    place = start
    for branch in branches:
        expected = sequence_positions(stem + branch)
        count = len(tokens(branch))
        assert [tuple(each) for each in found[:start] + found[place : place + count]] == expected
        place += count
