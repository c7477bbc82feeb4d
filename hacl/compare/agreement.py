"""How alike two models' texts are: exact match, token F1 and ROUGE-L. No torch here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from hacl.compare.recovery_fraction import per_image
from hacl.evaluation.statistics import Table

WORD = re.compile(r"\w+(?:['’-]\w+)*")


def words(text: str) -> list[str]:
    """Lower-case words of a text; punctuation counts nothing."""
    return WORD.findall(text.lower())


def exact_match(text: str, reference: str) -> float:
    """1 if both have the same words in the same order, else 0."""
    return float(words(text) == words(reference))


def token_f1(text: str, reference: str) -> float:
    """F1 of the two bags of words (the measure of SQuAD, articles kept); two empty texts agree."""
    found, wanted = words(text), words(reference)
    if not found or not wanted:
        return float(found == wanted)
    shared = sum((Counter(found) & Counter(wanted)).values())
    return 2 * shared / (len(found) + len(wanted))


def rouge_l(text: str, reference: str) -> float:
    """F1 of the longest common subsequence of words (Lin, 2004, with beta = 1); two empty texts agree."""
    found, wanted = words(text), words(reference)
    if not found or not wanted:
        return float(found == wanted)
    return 2 * common_subsequence(found, wanted) / (len(found) + len(wanted))


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for column, y in enumerate(b, start=1):
            kept = row[column]
            row[column] = before + 1 if x == y else max(kept, row[column - 1])
            before = kept
    return row[-1]


MEASURES = {"exact_match": exact_match, "token_f1": token_f1, "rouge_l": rouge_l}


def agreement(image_ids: Sequence[str], texts: Sequence[str], reference: Sequence[str]) -> dict[str, Table]:
    """{measure: evidence by image} of texts against a model's texts for the same prompts, in the same order."""
    return {
        name: per_image(image_ids, [measure(x, y) for x, y in zip(texts, reference, strict=True)])
        for name, measure in MEASURES.items()
    }
