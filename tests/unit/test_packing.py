"""Rows hold every sequence once, in order, without overlap; masks follow the segments."""

import pytest
import torch

from hacl.data.packing import pack_rows, pack_tightly
from hacl.models.attention_masks import dense_mask
from hacl.models.reads import read_spans


@pytest.mark.parametrize("seed", range(5))
def test_packed_sequences_never_overlap_and_never_leave_their_row(seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 40, (37,), generator=generator).tolist()
    places, rows = pack_rows(lengths, 50)
    taken = torch.zeros(rows, 50)
    for (row, column), length in zip(places, lengths, strict=True):
        assert column + length <= 50
        taken[row, column : column + length] += 1
    assert taken.max() == 1 and taken.sum() == sum(lengths)
    assert rows <= 1 + 2 * sum(lengths) // 50, "best-fit decreasing leaves no two rows less than half full"


def test_tight_packing_wastes_under_a_tenth_on_a_step_of_images_and_captions():
    generator = torch.Generator().manual_seed(0)
    captions = torch.randint(12, 30, (32,), generator=generator).tolist()
    lengths = [146 + caption for caption in captions] + [caption + 2 for caption in captions for _ in range(2)]
    places, rows, columns = pack_tightly(lengths)
    assert rows * columns < 1.1 * sum(lengths)
    taken = torch.zeros(rows, columns)
    for (row, column), length in zip(places, lengths, strict=True):
        taken[row, column : column + length] += 1
    assert taken.max() == 1 and taken.sum() == sum(lengths)


def test_without_sharing_every_sequence_has_its_own_row():
    assert pack_rows([3, 5, 2], 5, share_rows=False) == ([(0, 0), (1, 0), (2, 0)], 3)


def test_a_sequence_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        pack_rows([3, 9], 8)


def test_the_mask_is_causal_within_a_segment_and_closed_between_segments():
    mask = dense_mask(torch.tensor([[1, 1, 2, 2, 2, 0]]))[0, 0]
    expected = torch.tensor(
        [
            [1, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [0, 0, 1, 0, 0, 0],
            [0, 0, 1, 1, 0, 0],
            [0, 0, 1, 1, 1, 0],
            [0, 0, 0, 0, 0, 1],
        ],
        dtype=torch.bool,
    )
    assert torch.equal(mask, expected)


def test_rows_of_one_left_aligned_sequence_need_no_mask():
    assert dense_mask(torch.tensor([[1, 1, 1], [1, 0, 0]])) is None


def test_reads_take_one_state_exactly_and_average_a_span():
    states = torch.arange(24, dtype=torch.float64).reshape(2, 4, 3)
    reads = torch.tensor([[[0, 1, 2], [1, 0, 4]], [[1, 3, 4], [0, 2, 2]]])
    found = read_spans(states, reads)
    assert torch.equal(found[0, 0], states[0, 1])
    assert torch.equal(found[0, 1], states[1].mean(0))
    assert torch.equal(found[1, 0], states[1, 3])
    assert torch.equal(found[1, 1], states[0, 2]), "an absent item reads something finite"
