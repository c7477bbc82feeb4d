"""AMBER's printed figures from counts: the official arithmetic, and plain ratios.

The official script starts every denominator at 0.001, rounds to one decimal, and computes F1 from the already rounded
precision and recall with 0.0001 (existence: 0.001) in its denominator; 0/0 therefore prints as 0.0, and the share of
captions without hallucination never reaches 100 on few captions. Source: junyangwang0410/AMBER@534babf6,
``inference.py`` and ``data/metrics.txt``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

OFFSET = 0.001
EPSILON = 0.0001
EXISTENCE_EPSILON = 0.001


@dataclass
class CaptionCounts:
    """Sums over captions behind CHAIR, Cover, Hal and Cog."""

    captions: int = 0
    clean: int = 0
    nouns: int = 0
    hallucinated: int = 0
    truth: int = 0
    covered: int = 0
    hallu: int = 0
    invented: int = 0

    def figures(self, official: bool) -> dict[str, float | None]:
        """CHAIR, Cover, Hal and Cog in per cent; None for 0/0 unless ``official``."""
        cog = _percent(self.invented, [self.hallu], official)
        chair = _percent(self.hallucinated, [self.nouns], official)
        cover = _percent(self.covered, [self.truth], official)
        if official:
            hal: float | None = round(100 - self.clean / (OFFSET + self.captions) * 100, 1)
        else:
            hal = _percent(self.captions - self.clean, [self.captions], official)
        return {"CHAIR": chair, "Cover": cover, "Hal": hal, "Cog": cog}


@dataclass
class AnswerCounts:
    """Counts of one kind of question. "No" is the positive class.

    Attributes:
        questions, right: all, and those answered correctly.
        gold_no, said_no: questions whose answer is no, and replies read as no.
        right_no: both.
    """

    questions: int = 0
    right: int = 0
    gold_no: int = 0
    said_no: int = 0
    right_no: int = 0


def total(kinds: Sequence[AnswerCounts]) -> AnswerCounts:
    """Counts over all kinds together."""
    return AnswerCounts(*(sum(column) for column in zip(*(astuple(kind) for kind in kinds), strict=True)))


def answer_figures(kinds: Sequence[AnswerCounts], official: bool, epsilon: float = EPSILON) -> dict[str, float | None]:
    """Accuracy, Precision, Recall and F1 in per cent over one or more kinds of questions.

    Args:
        kinds: the official denominators of several kinds hold one offset each.
        epsilon: what the official F1 adds to precision + recall (as fractions).
    """
    right_no = sum(kind.right_no for kind in kinds)
    said_no, gold_no = [kind.said_no for kind in kinds], [kind.gold_no for kind in kinds]
    accuracy = _percent(sum(kind.right for kind in kinds), [kind.questions for kind in kinds], official)
    precision, recall = _percent(right_no, said_no, official), _percent(right_no, gold_no, official)
    if official:
        p, r = precision / 100, recall / 100
        f1: float | None = round(2 * p * r / (p + r + epsilon) * 100, 1)
    else:
        f1 = _percent(2 * right_no, [sum(said_no) + sum(gold_no)], official)
    return {"Accuracy": accuracy, "Precision": precision, "Recall": recall, "F1": f1}


def amber_score(chair: float | None, f1: float | None) -> float | None:
    """(100 - CHAIR + F1) / 2 (arXiv 2311.07397, section 4; not in the script), None unless both tasks were scored."""
    return None if chair is None or f1 is None else round((100 - chair + f1) / 2, 10)


def _percent(numerator: int, denominators: Sequence[int], official: bool) -> float | None:
    if official:
        return round(numerator / sum(OFFSET + part for part in denominators) * 100, 1)
    bottom = sum(denominators)
    return 100 * numerator / bottom if bottom else None
