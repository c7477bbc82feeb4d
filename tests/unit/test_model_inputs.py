"""Promises of stock inputs: rows are padded on the left, and every token has the type of its place."""

from hacl.data.model_inputs import InputRow, left_padded


def test_rows_are_padded_on_the_left_and_types_follow_their_tokens():
    cut = InputRow([5, 6], types={"kind": [1, 0, 1]})  # a token that was cut off has no type
    longer = InputRow([7, 8, 9, 4], types={"kind": [0, 1]})  # what was written behind goes on with the last
    made = left_padded([cut, longer, InputRow([3])], pad=0)
    assert made["input_ids"].tolist() == [[0, 0, 5, 6], [7, 8, 9, 4], [0, 0, 0, 3]]
    assert made["attention_mask"].tolist() == [[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]]
    assert made["kind"].tolist() == [[0, 0, 1, 0], [0, 1, 1, 1], [0, 0, 0, 0]]
