"""MMHal-Bench scores from a judge's reviews: mean rating, hallucination rate, and both per question type.

Sun et al., 2023, arXiv 2309.14525. The arithmetic of the parser "official" follows Eval/summarize_gpt_mmhal.py of
llava-rlhf/LLaVA-RLHF@830a083f; no text of that repository (GPL-3.0) is used, its judge prompt least of all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hacl.evaluation.scorers.base import ImageSums, InputError, Option, Scorer, Totals, divide, listed
from hacl.evaluation.scorers.reading import require

QUESTIONS = 96
# The type of a question is its position modulo 8.
TYPES = ("attribute", "adversarial", "comparison", "counting", "relation", "environment", "holistic", "other")
STRICT = re.compile(r"\brating\b[\s*_`:=]*\**\s*(\d+(?:\.\d+)?)", re.IGNORECASE)


def parse_official(review: str) -> int | None:
    """The digit d of 0..6 for which "rating: d" occurs in the lower-cased review; None if none or several do.

    One blank exactly: "Rating:5" and "**Rating:** 5" are not found, and "Rating: 60" is 6.
    """
    text = review.lower()
    found = [digit for digit in range(7) if f"rating: {digit}" in text]
    return found[0] if len(found) == 1 else None


def parse_strict(review: str) -> int | None:
    """The whole number 0..6 after the word "rating", through Markdown and any blanks; None if ratings differ."""
    found = {float(number) for number in STRICT.findall(review)}
    return int(found.pop()) if len(found) == 1 and found <= {0, 1, 2, 3, 4, 5, 6} else None


PARSERS = {"official": parse_official, "strict": parse_strict}


class MMHalScorer(Scorer):
    """Predictions ``index`` (0 to 95, the position of the question) and ``review`` (the judge's text).

    "official" counts a review without one rating as 0, that is, as a hallucination; "strict" leaves it out of the
    means. Both report ``parse_failure_rate``. Upstream stops unless there are 96 reviews; so does this, unless missing
    ones are allowed. Indices 1 to 96 are understood too.
    """

    benchmark = "mmhal"
    needs_references = False
    options = (Option("judge_parser", "how a rating is found in a review", "official", tuple(PARSERS)),)

    def __init__(self, references: Any = None, **options: Any) -> None:
        super().__init__(None, **options)  # the predictions hold everything; references are not read
        self._parse = PARSERS[self.settings["judge_parser"]]
        self._ratings: dict[int, int | None] = {}

    def add(self, row: Mapping[str, Any], where: object) -> dict[str, Any]:
        """Item: ``index``, ``image_id``, ``score`` (None where strict finds none) and ``parsed``."""
        given = require(row, "index", where, (int, str))
        if isinstance(given, str) and not given.strip().isdecimal():
            raise InputError(f"{where}: index {given!r} is no number; it is the position of the question, 0 to 95")
        index = int(given)
        if not 0 <= index <= QUESTIONS:
            raise InputError(f"{where}: index {index}; MMHal-Bench has {QUESTIONS} questions, 0 to {QUESTIONS - 1}")
        if index in self._ratings:
            raise InputError(f"{where}: index {index} is reviewed twice; keep one review")
        rating = self._ratings[index] = self._parse(require(row, "review", where))
        score = 0 if rating is None and self.settings["judge_parser"] == "official" else rating
        return {"index": index, "image_id": str(index), "score": score, "parsed": rating is not None}

    def finish(self, *, allow_missing: bool = False) -> Totals:
        totals = Totals()
        warnings = totals.warnings
        first = 1 if QUESTIONS in self._ratings else 0
        if first and 0 in self._ratings:
            raise InputError(f"indices 0 and {QUESTIONS} are both there; count the {QUESTIONS} questions from 0")
        if first:
            warnings.append("indices run from 1 to 96 and were shifted by one")
        missing = [index for index in range(first, QUESTIONS + first) if index not in self._ratings]
        if missing:
            message = f"{len(missing)} of {QUESTIONS} questions have no review: index {listed(missing)}"
            if not allow_missing:
                raise InputError(f"{message}; review them, or allow missing ones to score the rest")
            warnings.append(f"{message}; they are left out")
        failed = sorted(index for index, rating in self._ratings.items() if rating is None)
        official = self.settings["judge_parser"] == "official"
        if failed:
            end = "count as rating 0" if official else "are left out of the means"
            warnings.append(f"{len(failed)} reviews have no rating or several and {end}: index {listed(failed)}")
        ratings = {
            index: 0 if rating is None else rating
            for index, rating in sorted(self._ratings.items())
            if official or rating is not None
        }
        totals.metrics = _means(ratings.values(), "", warnings)
        totals.metrics["parse_failure_rate"] = len(failed) / len(self._ratings)
        for position, name in enumerate(TYPES):
            own = [rating for index, rating in ratings.items() if (index - first) % len(TYPES) == position]
            totals.groups[name] = _means(own, f" of {name}", warnings)
        totals.groups["per_question_type"] = {name: totals.groups[name]["average_score"] for name in TYPES}
        totals.counts = {"reviews": len(self._ratings), "rated": len(ratings), "parse_failures": len(failed)}
        totals.sums = ImageSums(("average_score", "hallucination_rate"))
        for index, rating in ratings.items():
            totals.sums.add(str(index), "average_score", rating, 1)
            totals.sums.add(str(index), "hallucination_rate", rating < 3, 1)
        return totals


def _means(ratings, of: str, warnings: list[str]) -> dict[str, float | None]:
    values = list(ratings)
    return {
        "average_score": divide(sum(values), len(values), f"average_score{of}", warnings),
        "hallucination_rate": divide(sum(v < 3 for v in values), len(values), f"hallucination_rate{of}", warnings),
    }
