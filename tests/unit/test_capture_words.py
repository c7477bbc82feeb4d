"""Promises about words and selectors: whole words, all their tokens, and the position that a selector says."""

from __future__ import annotations

import pytest

from hacl.representations.selectors import Layout, Selector, parse_selectors
from hacl.representations.words import WORD_CLASSES, DecodedTokens, word_pattern

PIECES = ["A", " bus", " stop", " and", " a", " bus", "iness", "man", ",", " a", " Bus", "  stop", "."]


def tokens(pieces=PIECES, special=()):
    def decode(ids):
        return "".join(pieces[i] for i in ids if i not in special)

    return DecodedTokens(decode, list(range(len(pieces))), frozenset(special))


def found(words, answer):
    return [(match.word, match.first, match.last) for match in answer.find(word_pattern(words))]


def test_a_word_of_several_tokens_is_found_and_one_that_shares_its_first_token_is_not():
    assert found(["bus stop"], tokens()) == [("bus stop", 1, 2), ("Bus  stop", 10, 11)]
    assert found(["bus"], tokens()) == [("bus", 1, 1), ("Bus", 10, 10)]
    assert found(["businessman"], tokens()) == [("businessman", 5, 7)]
    assert found(["business", "man", "us", "top"], tokens()) == []


def test_the_longest_of_several_words_is_taken():
    assert [match[0] for match in found(["bus", "bus stop"], tokens())] == ["bus stop", "Bus  stop"]


def test_a_token_that_covers_more_than_the_word_still_counts():
    answer = tokens(["the cat", "s sat on", " a mat."])
    assert found(["cats"], answer) == [("cats", 0, 1)]
    assert found(["on"], answer) == [("on", 1, 1)]
    assert found(["mat"], answer) == [("mat", 2, 2)]


def test_characters_of_several_tokens_are_attributed_to_all_of_them():
    raw = [b"a ", "é".encode()[:1], "é".encode()[1:], b"t\xc3", b"\xa9", b" fin"]

    def decode(ids):
        return b"".join(raw[i] for i in ids).decode("utf-8", "replace")

    answer = DecodedTokens(decode, list(range(6)))
    assert answer.text == "a été fin"
    assert found(["été"], answer) == [("été", 1, 4)]
    assert found(["fin"], answer) == [("fin", 5, 5)]


def test_special_tokens_inside_are_no_part_of_a_word():
    answer = tokens(["a", "<x>", " dog"], special=(1,))
    assert found(["dog"], answer) == [("dog", 2, 2)]


def test_a_decoder_that_joins_with_blanks_is_understood():
    words = ["<s>", "a", "red", "circle", "."]
    answer = DecodedTokens(lambda ids: " ".join(words[i] for i in ids).replace(" .", "."), [1, 2, 3, 4])
    assert found(["circle"], answer) == [("circle", 2, 2)]
    assert found(["red circle"], answer) == [("red circle", 1, 2)]


def test_empty_words_are_refused():
    for words in ([], [""], ["a", "  "]):
        with pytest.raises(ValueError, match="empty"):
            word_pattern(words)


def test_classes_hold_distinct_lower_case_words():
    for words in WORD_CLASSES.values():
        assert len(set(words)) == len(words) and all(word == word.lower() and word for word in words)


# Two tokens of prompt before an image of three, one after; the answer of len(PIECES) tokens; EOS.
IDS = [100, 101, 7, 7, 7, 102, *range(len(PIECES)), 103]
LAYOUT = Layout(IDS, 6, len(IDS) - 1, [2, 3, 4], len(IDS))


def picks(spec, layout=LAYOUT, occurrences="all", classes=None):
    return Selector.parse(spec, classes).picks(layout, tokens(), occurrences)


def test_predicts_is_the_state_before_the_first_token_and_at_the_one_on_the_last():
    assert [(p.position, p.token_id, p.key) for p in picks("predicts:bus stop")] == [
        (6, 1, "predicts:bus stop#0"), (15, 10, "predicts:bus stop#1"),
    ]  # fmt: skip
    assert [(p.position, p.token_id) for p in picks("at:bus stop")] == [(8, 2), (17, 11)]
    assert [p.position for p in picks("at:bus stop", occurrences="first")] == [8]
    assert [(p.position, p.word) for p in picks("predicts:a")][:2] == [(5, "A"), (9, "a")], (
        "the first is predicted by the prompt"
    )


def test_plain_selectors_are_where_they_say():
    assert [p.position for p in picks("last_prompt")] == [5]
    assert [p.position for p in picks("first_generated")] == [6]
    assert picks("mean_generated")[0].positions == tuple(range(6, 19)), "EOS is no part of the answer"
    assert picks("mean_image")[0].positions == (2, 3, 4)
    assert [p.position for p in picks("index:1") + picks("index:-1") + picks("index:-20")] == [1, 19, 0]
    assert picks("index:20") == picks("index:-21") == []
    assert [p.position for p in picks("all")] == list(range(20))
    assert len({p.key for p in picks("all")}) == 20


def test_a_mean_has_no_position_even_over_one_token():
    layout = Layout([1, 2, 3], 1, 2, [], 3)
    assert picks("mean_generated", layout)[0].position is None


def test_positions_without_a_state_are_left_out():
    layout = Layout(IDS, 6, len(IDS) - 1, [2, 3, 4], 17)
    assert [p.position for p in picks("at:bus stop", layout)] == [8]
    assert picks("mean_generated", layout)[0].positions == tuple(range(6, 17))
    assert picks("first_generated", Layout([1, 2], 2, 2, [], 2)) == []
    assert picks("mean_generated", Layout([1, 2], 2, 2, [], 2)) == []


def test_a_class_is_any_of_its_words_and_may_be_given():
    assert [p.word for p in picks("at:@stops", classes={"stops": ["stop", "halt"]})] == ["stop", "stop"]
    with pytest.raises(ValueError, match="known: .*colours"):
        Selector.parse("at:@stops")


@pytest.mark.parametrize(
    "spec", ["", "at:", "at: ", "index:", "index:x", "index:1.5", "first", "last_prompt:1", "of:dog"]
)
def test_what_is_no_selector_is_refused(spec):
    with pytest.raises(ValueError, match="selector|empty"):
        parse_selectors(spec)


def test_a_selector_is_named_once():
    for select in ([], ["all", "all"]):
        with pytest.raises(ValueError, match="each once"):
            parse_selectors(select)
