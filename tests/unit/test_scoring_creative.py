"""The creative side: variety, association diversity and the pairwise reward, from their definitions."""

from __future__ import annotations

import json
import math
import random
from collections import Counter

import pytest

from hacl.evaluation.scorers import InputError, score
from hacl.evaluation.scorers.creative_nouns import parse_list
from hacl.evaluation.scorers.creative_reward import reward_of
from hacl.evaluation.scorers.creative_text import distinct, ngrams, repetition, self_bleu, words_of


def rows(*texts, **more):
    return [{"id": number, "response": text, **more} for number, text in enumerate(texts, 1)]


def test_distinct_n_counts_over_all_texts():
    assert distinct([words_of("a b a"), words_of("A b!")], 1) == (2, 5)
    assert distinct([words_of("a b a"), words_of("A b!")], 2) == (2, 3)  # a b, b a, a b
    report = score("creative", rows("a b a", "A b!"))
    assert report.metrics["distinct_1"] == 0.4 and report.metrics["distinct_2"] == pytest.approx(2 / 3)
    assert report.metrics["distinct_3"] == 1.0


def test_repetition_is_the_share_of_repeated_four_grams():
    assert repetition(words_of("a b c d a b c d")) == pytest.approx(1 / 5)
    assert repetition(words_of("la la la la la")) == 0.5
    assert repetition(words_of("too short a")) is None


def plain_bleu(words, others):
    """BLEU-4 with clipped counts, method-1 smoothing and the nearest reference length, straight from the definition."""
    logs = []
    for order in (1, 2, 3, 4):
        counts = Counter(ngrams(words, order))
        most = Counter()
        for other in others:
            for gram, count in Counter(ngrams(other, order)).items():
                most[gram] = max(most[gram], count)
        matches = sum(min(count, most[gram]) for gram, count in counts.items())
        if order == 1 and not matches:
            return 0.0
        logs.append(math.log((matches or 0.1) / max(1, sum(counts.values()))))
    nearest = min((len(other) for other in others), key=lambda length: (abs(length - len(words)), length))
    return math.exp(min(0.0, 1 - nearest / len(words)) + sum(logs) / 4)


def test_self_bleu_equals_bleu_against_all_the_others():
    draw = random.Random(3)
    for _ in range(30):
        texts = [draw.choices("abcde", k=draw.randrange(1, 12)) for _ in range(draw.randrange(2, 6))]
        expected = [plain_bleu(words, texts[:i] + texts[i + 1 :]) for i, words in enumerate(texts)]
        assert self_bleu(texts) == pytest.approx(expected)


def test_self_bleu_is_one_for_copies_and_zero_for_strangers():
    assert self_bleu([words_of("one two three four")] * 3) == pytest.approx([1.0, 1.0, 1.0])
    assert self_bleu([["a", "b", "c", "d"], ["e", "f", "g", "h"]]) == [0.0, 0.0]
    report = score(
        "creative", rows("one two three four", "one two three four", group="p") + [{"id": 9, "response": "x"}]
    )
    assert report.metrics["self_bleu"] == pytest.approx(1.0)  # the lone text of another group has none
    assert any("1 of 2 groups" in line for line in report.warnings)


def test_empty_and_wordless_replies_are_counted_not_scored():
    report = score("creative", rows("", "🙂 !!", "日本語 です"))
    assert report.metrics["empty_rate"] == pytest.approx(2 / 3) and report.counts["empty"] == 2
    assert report.metrics["self_bleu"] is None and report.metrics["repetition_rate"] is None
    assert score("creative", rows("")).metrics["distinct_1"] is None


def test_order_of_rows_does_not_matter_and_ids_must_differ():
    predictions = rows("the red dog runs home", "a cat sits on the red mat", "red dog red dog red dog red dog")
    shuffled = [predictions[2], predictions[0], predictions[1]]
    assert score("creative", shuffled).metrics == pytest.approx(score("creative", predictions).metrics)
    with pytest.raises(InputError, match="came before"):
        score("creative", [predictions[0], predictions[0]])


def test_a_reply_of_a_megabyte_is_a_reply():
    texts = ("very " * 200_000, "*" * 500_000 + "\n1. " + " " * 500_000, "a b c d")
    report = score("creative", rows(*texts), parse_nouns=True, embedder={"words": {"a": [1.0]}})
    assert report.metrics["repetition_rate"] > 0.49 and report.metrics["invalid_list_rate"] == 1.0


TABLE = {
    "name": "axes",
    "words": {"dog": [1, 0, 0], "moon": [0, 2, 0], "tax": [0, 0, 3], "hound": [5, 0, 0]},
    "images": {"img": [1, 0, 0]},
}


def lists(*nouns, **more):
    return [{"id": n, "response": "", "nouns": found, "image_id": "img", **more} for n, found in enumerate(nouns, 1)]


def test_association_diversity_is_a_hundred_times_one_minus_the_mean_cosine():
    orthogonal = score("creative", lists(["dog", "moon", "tax"]), embedder=TABLE, noun_count=3)
    assert orthogonal.metrics["association_diversity_noun_noun"] == pytest.approx(100)
    assert orthogonal.metrics["association_diversity_image_noun"] == pytest.approx(100 * (1 - 1 / 3))
    same = score("creative", lists(["dog", "hound"]), embedder=TABLE, noun_count=2)
    assert same.metrics["association_diversity_noun_noun"] == pytest.approx(0)
    assert any("table:axes" in line for line in same.warnings)


def test_too_few_repeated_and_unknown_nouns_are_reported():
    predictions = lists(["dog", "Dog ", "moon", "tax"], ["dog", "zyx"], [])
    report = score("creative", predictions, embedder=TABLE, noun_count=2)
    assert report.metrics["invalid_list_rate"] == pytest.approx(2 / 3)
    assert report.metrics["repeated_noun_rate"] == pytest.approx(1 / 6)
    assert report.counts["unknown_nouns"] == 1
    assert list(report.items)[0]["nouns"] == ["dog", "moon"]  # the first two valid ones
    with pytest.raises(InputError, match="nouns"):
        score("creative", rows("dog, moon"), embedder=TABLE)
    parsed = score("creative", rows("dog, moon"), embedder=TABLE, noun_count=2, parse_nouns=True)
    assert parsed.metrics["association_diversity_noun_noun"] == pytest.approx(100)
    assert parsed.metrics["association_diversity_image_noun"] is None  # no image vector


@pytest.mark.parametrize(
    "text, expected",
    [
        ("1. Dog\n2. a moon\n3) Tax", ["dog", "moon", "tax"]),
        ("1. dog 2. moon 3. tax", ["dog", "moon", "tax"]),
        ("- **dog**\n- merry-go-round\n* tax", ["dog", "merry-go-round", "tax"]),
        ("Here are ten: dog, moon, and tax.", ["dog", "moon", "tax"]),
        ("1. dog\n2. lamp. These words have little in common", ["dog", "lamp"]),
        ("1. dog: an animal\n2. moon - far away", ["dog", "moon"]),
        ('"dog", “moon”', ["dog", "moon"]),
        ("I would rather not make any list today", []),
        ("", []),
    ],
)
def test_lists_of_nouns_are_read_as_models_write_them(text, expected):
    assert parse_list(text) == expected


def test_an_embedder_must_be_whole(tmp_path):
    table = tmp_path / "vectors.json"
    table.write_text(json.dumps(TABLE), encoding="utf-8")
    report = score("creative", lists(["dog", "moon"]), embedder=f"table:{table}", noun_count=2)
    assert str(table) in report.meta["inputs"]
    with pytest.raises(InputError, match="one length"):
        score("creative", lists([]), embedder={"words": {"a": [1], "b": [1, 2]}})
    with pytest.raises(InputError, match="length 0"):
        score("creative", lists(["a", "b"]), embedder={"words": {"a": [0], "b": [1]}}, noun_count=2)
    with pytest.raises(InputError, match="table:FILE"):
        score("creative", lists([]), embedder="word2vec")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        score("creative", lists([]), embedder="open_clip:nowhere")
    with pytest.raises(ValueError, match="no references"):
        score("creative", rows("x"), [{"id": 1}])
    with pytest.raises(ValueError, match="noun_count"):
        score("creative", lists([]), noun_count=1)


def test_a_reward_is_antisymmetric_in_the_order_of_presentation():
    for verdict, reward in [("A>>B", -100), ("[[A>B]]", -50), ("A=B", 0), ("B > A", 50), ("A<<B", 100)]:
        assert reward_of(verdict, "reference_first") == reward
        assert reward_of(verdict, "candidate_first") == -reward
    assert reward_of("tie", "reference_first") is None and reward_of(None, "candidate_first") is None


def verdict(identifier, order, text):
    return {"id": identifier, "order": order, "verdict": text}


def test_the_reward_pools_both_orders_and_shows_the_judges_preference_for_a_place():
    judged = [
        verdict(1, "reference_first", "A>>B"),
        verdict(1, "candidate_first", "A>>B"),  # always the first: no preference for either reply
        verdict(2, "reference_first", "B>A"),
        verdict(2, "candidate_first", "no idea"),
    ]
    report = score("creative", rows("x y", "z"), verdicts=judged)
    assert report.metrics["reward"] == pytest.approx((-100 + 100 + 50) / 3)
    assert report.metrics["reward_reference_first"] == -25 and report.metrics["reward_candidate_first"] == 100
    assert report.metrics["parse_rate"] == 0.75 and report.metrics["order_agreement"] == 0.0
    assert report.metrics["win_rate"] == pytest.approx(2 / 3)
    assert any("1 of 4 verdicts" in line for line in report.warnings)
    ties = [verdict(1, order, "A=B") for order in ("reference_first", "candidate_first")]
    assert score("creative", rows("x"), verdicts=ties).metrics["reward"] == 0


def test_both_orders_are_needed(tmp_path):
    half = tmp_path / "verdicts.jsonl"
    half.write_text(json.dumps(verdict(1, "reference_first", "A=B")) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="both orders"):
        score("creative", rows("x"), verdicts=str(half))
    report = score("creative", rows("x"), verdicts=str(half), allow_missing=True)
    assert report.metrics["reward"] == 0 and report.metrics["order_agreement"] is None
    with pytest.raises(InputError, match="two verdicts"):
        score("creative", rows("x"), verdicts=[verdict(1, "reference_first", "A=B")] * 2)
    with pytest.raises(InputError, match="order 'AB'"):
        score("creative", rows("x"), verdicts=[verdict(1, "AB", "A=B")])
