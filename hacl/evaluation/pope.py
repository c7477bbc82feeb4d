"""POPE: yes/no questions about objects that are there and objects that are not (Li et al., 2023, arXiv 2305.10355).

Absent objects are drawn at random, from the most frequent objects, or from the objects that co-occur most with those
present. Half of the questions have the answer yes, so a yes-ratio away from 0.5 is a bias. Yes is the positive class.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass

from hacl.evaluation.reports import ScoreReport
from hacl.evaluation.scorers.pope import PopeScorer

SPLITS = ("random", "popular", "adversarial")
QUESTION = "Is there {article} {object} in the image?"
Truth = Mapping[str, Collection[str]]


@dataclass(frozen=True)
class Question:
    """One question. ``question_id`` names the (image, object) pair, so one answer serves every split that asks it."""

    question_id: str
    image_id: str
    object: str
    text: str
    label: str

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def build_questions(
    truth: Truth,
    split: str,
    *,
    seed: int = 0,
    per_image: int = 6,
    counts_from: Truth | None = None,
    template: str = QUESTION,
    partner_of: str = "image",
    never_absent: Truth | None = None,
) -> list[Question]:
    """Balanced questions for every image, half yes and half no.

    Args:
        truth: image id to its objects.
        split: "random", "popular" (most frequent absent objects) or "adversarial" (absent objects that occur most often
            together with the present ones). Yes questions are the same in all three.
        per_image: at most this many per image; fewer where an image has less than half of it in objects present or
            absent, and always as many yes as no.
        counts_from: the annotations on which frequency and co-occurrence are counted (the training set, whose prior a
            model has learnt); default ``truth`` itself.
        template: with ``{object}`` and optionally ``{article}``.
        partner_of: what the co-occurrence of an adversarial object is counted with: "image", the sum over all objects
            present, or "object", each asked object in turn, as the published script does (AoiDragon/POPE@7cf0a02d).
        never_absent: image id to objects that are not asked about with the answer no, though ``truth`` lacks them.

    Raises:
        ValueError: unknown split or ``partner_of``, or an odd ``per_image``.
    """
    if split not in SPLITS:
        raise ValueError(f"POPE split {split!r}; use one of {', '.join(SPLITS)}")
    if per_image < 2 or per_image % 2:
        raise ValueError(f"per_image={per_image}: use an even number, half of the questions have the answer yes")
    if partner_of not in ("image", "object"):
        raise ValueError(f"partner_of={partner_of!r}; use image or object")
    counted = truth if counts_from is None else counts_from
    frequency = Counter(name for objects in counted.values() for name in set(objects))
    together: Counter[tuple[str, str]] = Counter()
    for objects in counted.values():
        together.update((a, b) for a in set(objects) for b in set(objects) if a != b)
    everything = sorted(set(frequency) | {name for objects in truth.values() for name in objects})
    questions = []
    for image_id, objects in truth.items():
        present = sorted(set(objects))
        not_absent = set(objects).union((never_absent or {}).get(image_id, ()))
        absent = [name for name in everything if name not in not_absent]
        # Its own generator per image and label: adding an image or changing the split disturbs no other question.
        draw = random.Random(f"{seed}/{image_id}/yes")
        draw.shuffle(present)
        draw = random.Random(f"{seed}/{image_id}/no")
        draw.shuffle(absent)
        if split == "popular":
            absent.sort(key=lambda name: -frequency[name])
        elif split == "adversarial" and partner_of == "image":
            absent.sort(key=lambda name: -sum(together[name, other] for other in objects))
        half = min(per_image // 2, len(present), len(absent))
        if split == "adversarial" and partner_of == "object":
            absent = _partners(present[:half], absent, together)
        for name, label in [(n, "yes") for n in present[:half]] + [(n, "no") for n in absent[:half]]:
            article = "an" if name[0] in "aeiou" else "a"
            text = template.format(object=name, article=article)
            questions.append(Question(f"{image_id}/{name}", image_id, name, text, label))
    return questions


def _partners(asked: Sequence[str], absent: Sequence[str], together: Mapping[tuple[str, str], int]) -> list[str]:
    """For each asked object the absent one that occurs most often with it; the first of ``absent`` where none does."""
    left = list(absent)
    partners = []
    for name in asked:
        partner = max(left, key=lambda other, name=name: together.get((name, other), 0))
        left.remove(partner)
        partners.append(partner)
    return partners


def distinct_questions(splits: Mapping[str, Sequence[Question]]) -> list[Question]:
    """Every (image, object) pair of several splits once: what has to be asked of a model."""
    return list({question.question_id: question for questions in splits.values() for question in questions}.values())


def score_pope(
    questions: Sequence[Question], answers: Mapping[str, str], *, parser: str = "strict", allow_missing: bool = False
) -> ScoreReport:
    """Score replies, joined to questions by ``question_id``.

    A reply that cannot be parsed is wrong: it costs accuracy, and recall where yes was right.

    Returns:
        metrics ``accuracy``, ``precision``, ``recall``, ``f1``, ``yes_ratio``, ``unparsed`` (fractions) and ``TP``,
        ``FP``, ``TN``, ``FN``; one item per answered question with ``parsed``.

    Raises:
        ValueError: unknown parser, a question without an answer (unless ``allow_missing``), or a repeated question.
    """
    rows = [{"question_id": q.question_id, "image": q.image_id, "label": q.label} for q in questions]
    scorer = PopeScorer(rows, parser=parser)
    items = []
    for question in questions:
        if question.question_id in answers:
            reply = answers[question.question_id]
            found = scorer.add({"question_id": question.question_id, "answer": reply}, "answers")
            items.append({**question.to_json(), "answer": reply, **found})
    totals = scorer.finish(allow_missing=allow_missing)
    return ScoreReport(
        metrics=totals.metrics,
        items=items,
        counts=totals.counts,
        warnings=totals.warnings,
        meta={"scorer": "pope", "version": PopeScorer.version, "parser": parser},
        sums=totals.sums,
    )


def score_splits(
    splits: Mapping[str, Sequence[Question]], answers: Mapping[str, str], *, parser: str = "strict"
) -> dict[str, ScoreReport]:
    """One report per split from one set of answers."""
    return {name: score_pope(questions, answers, parser=parser) for name, questions in splits.items()}
