"""Promises about reading concepts as words and images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hacl.representations.grounding import (
    WordRule,
    dictionary_overlap,
    ground_words,
    logits,
    most_activating,
    norm_modes,
    overlap,
)
from hacl.representations.readout import Readout
from hacl.representations.word_lists import english_words, is_listed, read_words, stop_words

TOKENS = [" dog", "Dog", " the", "42", " xq", " cats", "1.5", " ox", "nan", "Ġred", "▁blue", "chien", " running", "3x"]


def readout(kind: str = "none", seed: int = 0) -> Readout:
    """One-hot LM head: vector e_t has its only logit at token t."""
    width = len(TOKENS)
    rng = np.random.default_rng(seed)
    weight = None if kind == "none" else rng.uniform(0.5, 2.0, width).astype(np.float32)
    bias = rng.normal(size=width).astype(np.float32) if kind == "layer" else None
    return Readout(np.eye(width, dtype=np.float32), weight, kind, 1e-5, TOKENS, bias)


def say(*weights: tuple[str, float], rule: WordRule | None = None) -> list[str]:
    vector = np.full(len(TOKENS), -9.0)
    for token, weight in weights:
        vector[TOKENS.index(token)] = weight
    return ground_words(vector, readout(), rule)[0]


def test_a_unit_vector_of_a_one_hot_head_says_that_word():
    rule = WordRule.default(words=1)
    assert ground_words(np.eye(len(TOKENS))[[0, 9, 10]], readout(), rule) == [["dog"], ["red"], ["blue"]]


def test_words_come_by_logit_once_each_whatever_their_case_and_spacing():
    assert say((" dog", 3.0), ("Dog", 2.9), ("Ġred", 2.0), rule=WordRule.default(prefilter=3)) == ["dog", "red"]


def test_stop_words_short_words_and_unlisted_words_are_left_out_and_numbers_kept():
    words = say(*[(token, 1.0) for token in TOKENS])
    assert words == ["dog", "42", "cats", "1.5", "red", "blue", "running"]
    assert "42" not in say(("42", 1.0), rule=WordRule.default(numbers=False))


def test_only_the_largest_logits_are_looked_at_so_a_list_may_be_short_or_empty():
    assert say((" the", 5.0), (" xq", 4.0), (" dog", 3.0), rule=WordRule.default(prefilter=2)) == []
    assert len(say(*[(token, 1.0) for token in TOKENS], rule=WordRule.default(words=2))) == 2


def test_the_language_neutral_rule_takes_words_of_any_language():
    words = say(*[(token, 1.0) for token in TOKENS], rule=WordRule.neutral())
    assert words == ["dog", "the", "42", "xq", "cats", "1.5", "ox", "nan", "red", "blue", "chien", "running"]


def test_a_list_of_the_users_own_replaces_ours(tmp_path):
    (tmp_path / "words.txt").write_text("chien, Chat  # animals\nox\n", encoding="utf-8")
    listed = read_words(tmp_path / "words.txt")
    assert listed == {"chien", "chat", "ox"}
    assert say(*[(token, 1.0) for token in TOKENS], rule=WordRule(english=listed, least=2, numbers=False)) == [
        "ox",
        "chien",
    ]
    with pytest.raises(FileNotFoundError, match="none.txt"):
        read_words(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no word in it"):
        read_words(tmp_path / "empty.txt")


def test_our_lists_are_lower_case_words_that_do_not_contradict_each_other():
    assert all(word.isalpha() and word == word.lower() for word in english_words() | stop_words())
    assert 1000 < len(english_words()) < 3000 and 150 < len(stop_words()) < 400
    assert {"dog", "red", "two", "kitchen", "smile"} <= english_words() and "the" in stop_words()
    for word in ("dogs", "boxes", "berries", "walking", "running", "baked", "biggest", "softly", "knives"[:5] + "s"):
        assert is_listed(word, english_words() | {"knive"}), word
    assert not is_listed("xqing", english_words()) and not is_listed("bling", english_words())


def test_a_vector_of_length_zero_says_nothing():
    assert ground_words(np.zeros((1, len(TOKENS))), readout()) == [[]]


def test_logits_after_an_rms_norm_equal_torch():
    u_KD = np.random.default_rng(1).normal(size=(3, len(TOKENS)))
    end = readout("rms")
    norm = torch.nn.RMSNorm(len(TOKENS), eps=1e-5)
    norm.weight.data = torch.tensor(end.norm_weight)
    expected = norm(torch.tensor(u_KD, dtype=torch.float32)).detach().numpy()
    assert logits(u_KD, end, "apply") == pytest.approx(expected, abs=1e-5)
    assert logits(u_KD, end, "none") == pytest.approx(u_KD, abs=1e-5)
    assert logits(u_KD, end, "fold") == pytest.approx(u_KD * end.norm_weight, abs=1e-5)


def test_logits_after_a_layer_norm_equal_torch_and_fold_is_its_linear_part():
    u_KD = np.random.default_rng(1).normal(size=(3, len(TOKENS)))
    end = readout("layer")
    norm = torch.nn.LayerNorm(len(TOKENS), eps=1e-5)
    norm.weight.data, norm.bias.data = torch.tensor(end.norm_weight), torch.tensor(end.norm_bias)
    expected = norm(torch.tensor(u_KD, dtype=torch.float32)).detach().numpy()
    assert logits(u_KD, end, "apply") == pytest.approx(expected, abs=1e-5)
    folded = logits(u_KD, end, "fold")
    assert folded == pytest.approx((u_KD - u_KD.mean(axis=1, keepdims=True)) * end.norm_weight, abs=1e-5)
    assert logits(2 * u_KD, end, "fold") == pytest.approx(2 * folded, abs=1e-5)


def test_the_norm_is_applied_before_it_and_not_after_it_and_unknown_modes_are_refused():
    assert norm_modes("final_norm") == ("none", "none") and norm_modes("12") == ("apply", "fold")
    with pytest.raises(ValueError, match="known: none, apply, fold"):
        logits(np.ones((1, len(TOKENS))), readout(), "lens")
    with pytest.raises(ValueError, match="reads 14"):
        logits(np.ones((1, 3)), readout())


def test_overlap_is_over_the_list_itself_and_undefined_without_one():
    assert overlap(["dog", "cat", "red", "two"], ["cat", "two", "big"]).percent == 50.0
    assert overlap(["dog", "dog", "cat"], ["dog", "dog"]).to_json() == {"shared": 1, "of": 2, "percent": 50.0}
    assert overlap(["dog"], []).percent == 0.0
    assert overlap([], ["dog"]).percent is None


def test_dictionary_overlap_is_the_mean_over_ordered_pairs_of_different_concepts():
    assert dictionary_overlap([["a", "b"], ["b"], ["c"]]) == pytest.approx((50 + 0 + 100 + 0 + 0 + 0) / 6)
    assert dictionary_overlap([["a"], ["a"], []]) == 100.0
    assert dictionary_overlap([["a"], []]) is None


def test_the_most_activating_samples_come_in_order_and_once_per_image():
    activations_NK = np.array([[0.1, 5.0], [0.9, 4.0], [0.9, 3.0], [0.5, 2.0]])
    assert most_activating(activations_NK, 3) == [[1, 2, 3], [0, 1, 2]]
    assert most_activating(activations_NK, 2, ["x", "y", "y", "z"]) == [[1, 3], [0, 1]]
    assert most_activating(activations_NK, 9, ["x", "x", "x", "x"]) == [[1], [0]]
