"""CHAIR as its definition reads: every rule applied to the whole caption, nothing remembered between captions."""

from __future__ import annotations

from hacl.evaluation.scorers.chair_tokens import sentences, split_sentence
from hacl.evaluation.scorers.chair_words import JOINED, OBJECT_OF


def mentions(caption: str, normal_form) -> list[tuple[str, str]]:
    """(word, head word) of every mention; ``normal_form`` reduces one token."""
    tokens = [token for sentence in sentences(caption.lower()) for token in split_sentence(sentence)]
    words = [normal_form(token) for token in tokens]
    joined = []
    while words:
        pair = " ".join(words[:2])
        if len(words) > 1 and pair in JOINED:
            joined.append(JOINED[pair])
            words = words[2:]
        else:
            joined.append(words[0])
            words = words[1:]
    if "toilet" in joined:
        joined = [word for word in joined if word != "seat"]
    return [(word, OBJECT_OF[word]) for word in joined if word in OBJECT_OF]


def rates(rows: list[tuple[list[str], set[str]]]) -> tuple[float, float, float]:
    """CHAIRs, CHAIRi and Recall of (mentioned objects, true objects) per caption."""
    wrong = [[name for name in named if name not in true] for named, true in rows]
    sentences_wrong = sum(1 for names in wrong if names) / len(rows)
    mentions_wrong = sum(map(len, wrong)) / sum(len(named) for named, _ in rows)
    recall = sum(len(set(named) & true) for named, true in rows) / sum(len(true) for _, true in rows)
    return sentences_wrong, mentions_wrong, recall
