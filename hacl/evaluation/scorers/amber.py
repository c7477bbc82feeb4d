"""AMBER: hallucination in free captions and in yes/no questions (Wang et al., 2023, arXiv 2311.07397).

Source of the arithmetic: junyangwang0410/AMBER@534babf6 (Apache-2.0), ``inference.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from hacl.evaluation.scorers.amber_captions import THRESHOLD, judge_caption
from hacl.evaluation.scorers.amber_figures import (
    EXISTENCE_EPSILON,
    AnswerCounts,
    CaptionCounts,
    amber_score,
    answer_figures,
)
from hacl.evaluation.scorers.amber_nouns import open_nouns
from hacl.evaluation.scorers.amber_references import GENERATIVE, open_references
from hacl.evaluation.scorers.amber_similarity import open_similarity
from hacl.evaluation.scorers.base import ImageSums, InputError, Option, Scorer, Totals, listed
from hacl.evaluation.scorers.reading import require

KINDS = ("existence", "state", "number", "action", "relation")
ATTRIBUTE = ("state", "number", "action")
# Group of the report -> the kinds of questions in it.
QUESTION_GROUPS = {"discriminative": KINDS, "existence": ("existence",), "attribute": ATTRIBUTE}
QUESTION_GROUPS |= {kind: (kind,) for kind in (*ATTRIBUTE, "relation")}
CAPTION_FIGURES = ("CHAIR", "Cover", "Hal", "Cog")
ANSWER_FIGURES = ("Accuracy", "Precision", "Recall", "F1")
# The official evaluation types: which groups they print.
EVALUATION_TYPES = {
    "a": (GENERATIVE, *QUESTION_GROUPS),
    "g": (GENERATIVE,),
    "d": tuple(QUESTION_GROUPS),
    "de": ("existence",),
    "da": ("attribute", *ATTRIBUTE),
    "dr": ("relation",),
}


def parse_exact(reply: str) -> str | None:
    """ "yes" or "no" if the reply is exactly ``Yes`` or ``No``, as the official script compares, otherwise None."""
    return {"Yes": "yes", "No": "no"}.get(reply)


def parse_strict(reply: str) -> str | None:
    """ "yes" or "no" if one of the two occurs as a whole word and the other does not, otherwise None."""
    found = set(re.findall(r"\b(yes|no)\b", reply.lower()))
    return found.pop() if len(found) == 1 else None


PARSERS = {"exact": parse_exact, "strict": parse_strict}


class AmberScorer(Scorer):
    """Rows ``id``, ``response``; ids index the annotation array from 1. All figures are per cent.

    metrics ``CHAIR``, ``Cover``, ``Hal``, ``Cog``, ``Accuracy``, ``Precision``, ``Recall``, ``F1`` (over all
    questions, "No" positive), ``amber_score`` and ``mean_words`` (length of the captions). groups ``generative``,
    ``discriminative``, ``existence``, ``attribute``, ``state``, ``number``, ``action``, ``relation``; a group that is
    not evaluated holds nulls. Items of captions have ``nouns``, ``hallucinated``, ``covered``, ``invented``; items of
    questions ``truth``, ``parsed``, ``right``.

    Args:
        references: see :func:`hacl.evaluation.scorers.amber_references.open_references`.
        options: see ``options``; from Python, ``similarity`` may be a function of two words and ``nouns`` a function
            of a response.
    """

    benchmark: ClassVar[str] = "amber"
    version: ClassVar[int] = 1
    needs_references: ClassVar[bool] = True
    options: ClassVar[tuple[Option, ...]] = (
        Option("similarity", "word similarity: exact, table:FILE or spacy:MODEL", default="exact"),
        Option("similarity_threshold", "words more similar than this stand for each other", THRESHOLD, kind=float),
        Option("nouns", "JSONL with the nouns of each response, from an external extractor"),
        Option("nltk_data", "folder of NLTK data: extract nouns as the official script does"),
        Option("rounding", "official arithmetic with one decimal, or plain ratios", "official", ("official", "none")),
        Option("answer_parser", "reply must be exactly Yes or No, or hold one of them", "exact", tuple(PARSERS)),
        Option(
            "evaluation_type",
            "which tasks must be answered in full: auto (those that occur), or a, g, d, de, da, dr as upstream",
            "auto",
            ("auto", *EVALUATION_TYPES),
        ),
    )

    def __init__(self, references: Any, **options: Any) -> None:
        super().__init__(references, **options)
        settings = self.settings
        self.truth = open_references(references)
        self.similarity, self.similarity_name, similarity_files = open_similarity(settings["similarity"])
        self.find_nouns, self.noun_source, noun_files = open_nouns(
            settings["nouns"], settings["nltk_data"], self.truth.vocabulary
        )
        self.official = settings["rounding"] == "official"
        self.parse = PARSERS[settings["answer_parser"]]
        self._files = [*self.truth.paths, *similarity_files, *noun_files]
        self.captions = CaptionCounts()
        self.answers = {kind: AnswerCounts() for kind in KINDS}
        self.seen: dict[int, str] = {}
        self.unparsed = self.words = 0
        self.sums = ImageSums((*CAPTION_FIGURES, *ANSWER_FIGURES))

    def input_files(self) -> list[Path]:
        return self._files

    def add(self, row: Mapping[str, Any], where: object) -> dict[str, Any]:
        identifier, response = require(row, "id", where, int), require(row, "response", where)
        if not 1 <= identifier <= len(self.truth):
            raise InputError(f"{where}: id {identifier} is not in the annotations, which are 1 to {len(self.truth)}")
        if identifier in self.seen:
            raise InputError(f"{where}: id {identifier} is answered twice, first at {self.seen[identifier]}")
        self.seen[identifier] = str(where)
        group = self.truth.group(identifier)
        image_id = str(row.get("image_id", row.get("image", identifier)))
        item = {"id": identifier, "image_id": image_id, "group": group}
        if group == GENERATIVE:
            return item | self._add_caption(identifier, image_id, response, str(where))
        return item | self._add_answer(identifier, image_id, response, group)

    def _add_caption(self, identifier: int, image_id: str, response: str, where: str) -> dict[str, Any]:
        image = self.truth.image_words(identifier)
        verdict = judge_caption(
            self.find_nouns(identifier, response, where),
            image,
            vocabulary=self.truth.vocabulary,
            safe_words=self.truth.safe_words,
            similarity=self.similarity,
            threshold=self.settings["similarity_threshold"],
        )
        counts, clean = self.captions, not verdict.hallucinated
        self.words += len(response.split())
        counts.captions += 1
        counts.clean += clean
        counts.nouns += len(verdict.nouns)
        counts.hallucinated += len(verdict.hallucinated)
        counts.truth += len(image.truth)
        counts.covered += len(verdict.covered)
        counts.hallu += len(image.hallu)
        counts.invented += len(verdict.invented)
        self.sums.add(image_id, "CHAIR", 100 * len(verdict.hallucinated), len(verdict.nouns))
        self.sums.add(image_id, "Cover", 100 * len(verdict.covered), len(image.truth))
        self.sums.add(image_id, "Hal", 100 * (not clean), 1)
        self.sums.add(image_id, "Cog", 100 * len(verdict.invented), len(image.hallu))
        return {
            "nouns": list(verdict.nouns),
            "hallucinated": list(verdict.hallucinated),
            "covered": [image.truth[position] for position in sorted(verdict.covered)],
            "invented": [image.hallu[position] for position in sorted(verdict.invented)],
        }

    def _add_answer(self, identifier: int, image_id: str, response: str, kind: str) -> dict[str, Any]:
        truth, parsed = self.truth.answer(identifier), self.parse(response)
        right, gold_no, said_no = parsed == truth, truth == "no", parsed == "no"
        counts = self.answers[kind]
        counts.questions += 1
        counts.right += right
        counts.gold_no += gold_no
        counts.said_no += said_no
        counts.right_no += gold_no and said_no
        self.unparsed += parsed is None
        self.sums.add(image_id, "Accuracy", 100 * right, 1)
        self.sums.add(image_id, "Precision", 100 * (gold_no and said_no), said_no)
        self.sums.add(image_id, "Recall", 100 * (gold_no and said_no), gold_no)
        self.sums.add(image_id, "F1", 200 * (gold_no and said_no), said_no + gold_no)
        return {"truth": truth, "parsed": parsed, "right": right}

    def finish(self, *, allow_missing: bool = False) -> Totals:
        warnings: list[str] = []
        groups = self._evaluated()
        missing = self._missing(groups)
        if missing:
            message = f"{len(missing)} ids of {', '.join(groups)} have no prediction: {listed(missing)}"
            if not allow_missing:
                raise InputError(f"{message}; answer them, or pass --evaluation-type or --allow-missing")
            warnings.append(message)
        figures: dict[str, dict[str, float | None]] = {}
        for name in EVALUATION_TYPES["a"]:
            figures[name] = self._figures(name, name in groups, warnings)
        caption, answer = figures[GENERATIVE], figures["discriminative"]
        metrics = caption | answer | {"amber_score": amber_score(caption["CHAIR"], answer["F1"])}
        captions = self.captions.captions
        metrics["mean_words"] = self.words / captions if captions else None
        questions = sum(counts.questions for counts in self.answers.values())
        if self.unparsed:
            expected = "exactly Yes or No" if self.settings["answer_parser"] == "exact" else "a clear yes or no"
            warnings.append(f"{self.unparsed} of {questions} replies are not {expected} and count as wrong")
        if captions and self.noun_source == "vocabulary":
            warnings.append(
                "nouns come from the shipped word finder, not from AMBER's tagger: see --nouns, --nltk-data"
            )
        if captions and self.similarity_name == "exact":
            warnings.append("similarity is exact: words that AMBER's vectors would excuse count as hallucinated")
        counts = asdict(self.captions) | {"questions": questions, "unparsed": self.unparsed, "missing": len(missing)}
        return Totals(metrics=metrics, groups=figures, counts=counts, warnings=warnings, sums=self.sums)

    def _evaluated(self) -> tuple[str, ...]:
        if self.settings["evaluation_type"] != "auto":
            return EVALUATION_TYPES[self.settings["evaluation_type"]]
        answered = any(counts.questions for counts in self.answers.values())
        if answered and self.captions.captions:
            return EVALUATION_TYPES["a"]
        return EVALUATION_TYPES["d" if answered else "g"]

    def _missing(self, groups: tuple[str, ...]) -> list[int]:
        wanted = {kind for group in groups for kind in QUESTION_GROUPS.get(group, (group,))}
        ids = range(1, len(self.truth) + 1)
        return [number for number in ids if number not in self.seen and self.truth.group(number) in wanted]

    def _figures(self, group: str, evaluated: bool, warnings: list[str]) -> dict[str, float | None]:
        names = CAPTION_FIGURES if group == GENERATIVE else ANSWER_FIGURES
        if not evaluated:
            return dict.fromkeys(names)
        if group == GENERATIVE:
            plain, shown = self.captions.figures(False), self.captions.figures(self.official)
        else:
            kinds = [self.answers[kind] for kind in QUESTION_GROUPS[group]]
            # The official overall figures come from their own counters, with one offset; those of attribute add three.
            if group == "discriminative":
                kinds = [
                    AnswerCounts(*(sum(column) for column in zip(*(asdict(k).values() for k in kinds), strict=True)))
                ]
            plain = answer_figures(kinds, False)
            shown = answer_figures(kinds, self.official, EXISTENCE_EPSILON) if group == "existence" else None
            shown = shown or answer_figures(kinds, self.official)
        undefined = [name for name in names if plain[name] is None]
        if undefined:
            told = "printed as the official script does" if self.official else "reported as null"
            warnings.append(f"{group}: {', '.join(undefined)} undefined (0/0), {told}")
        return shown
