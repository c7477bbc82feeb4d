"""Who sees whom in packed rows, one pair of tokens at a time."""

import torch


def seen_pairs(segments, ends, islands, positions, window):
    """Boolean (R, T, T): a token sees those of its path, all of its island, and none that the window hides."""
    rows, tokens = segments.shape
    ends, islands, positions = (table.tolist() for table in (ends, islands, positions))
    found = torch.zeros(rows, tokens, tokens, dtype=torch.bool)
    for row in range(rows):
        for query in range(tokens):
            for key in range(tokens):
                is_above = key <= query < ends[row][key]
                is_beside = islands[row][key] >= 0 and islands[row][key] == islands[row][query]
                is_near = window is None or positions[row][query] - positions[row][key] < window
                found[row, query, key] = (is_above or is_beside) and is_near
    return found
