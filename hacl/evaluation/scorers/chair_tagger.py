"""Penn tags for tokens: NLTK's averaged perceptron read from its JSON files, or a rough guess without data.

The model (``taggers/averaged_perceptron_tagger_eng``) comes with nltk_data since 2024; older copies are pickles and are
not opened. Features and ties follow nltk 3.9 ``PerceptronTagger`` (after M. Honnibal), so tags are the same.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hacl.evaluation.scorers.base import InputError

NAME = "averaged_perceptron_tagger_eng"
_PARTS = ("weights", "tagdict", "classes")


class PerceptronTagger:
    """Greedy averaged perceptron.

    Args:
        weights: feature -> tag -> weight.
        tagdict: words that have one tag wherever they stand.
        classes: all tags.
    """

    def __init__(self, weights: Mapping[str, Mapping[str, float]], tagdict: Mapping[str, str], classes: Sequence[str]):
        self.weights, self.tagdict, self.classes = weights, tagdict, sorted(classes, reverse=True)

    @classmethod
    def from_data(cls, folder: Path) -> PerceptronTagger:
        """Read the model below an NLTK data folder, unpacked or as the .zip that the downloader leaves.

        Raises:
            FileNotFoundError: it is not there (a pickle of an older nltk does not count).
        """
        return cls(*(_load(folder, part) for part in _PARTS))

    def tags(self, tokens: Sequence[str]) -> list[str]:
        """One tag per token."""
        context = ["-START-", "-START2-", *map(_shape, tokens), "-END-", "-END2-"]
        tags: list[str] = []
        previous, before = "-START-", "-START2-"
        for i, word in enumerate(tokens):
            tag = self.tagdict.get(word) or self._predict(i + 2, word, context, previous, before)
            tags.append(tag)
            previous, before = tag, previous
        return tags

    def _predict(self, i: int, word: str, context: list[str], previous: str, before: str) -> str:
        features = (
            "bias",
            f"i suffix {word[-3:]}",
            f"i pref1 {word[:1]}",
            f"i-1 tag {previous}",
            f"i-2 tag {before}",
            f"i tag+i-2 tag {previous} {before}",
            f"i word {context[i]}",
            f"i-1 tag+i word {previous} {context[i]}",
            f"i-1 word {context[i - 1]}",
            f"i-1 suffix {context[i - 1][-3:]}",
            f"i-2 word {context[i - 2]}",
            f"i+1 word {context[i + 1]}",
            f"i+1 suffix {context[i + 1][-3:]}",
            f"i+2 word {context[i + 2]}",
        )
        scores: dict[str, float] = {}
        for feature in features:
            for tag, weight in self.weights.get(feature, {}).items():
                scores[tag] = scores.get(tag, 0.0) + weight
        # Classes are in reverse alphabetical order and max keeps the first, so of equal scores the last name wins.
        return max(self.classes, key=lambda tag: scores.get(tag, 0.0))


def guess_tags(tokens: Sequence[str]) -> list[str]:
    """Tags without data: words in -ing and -ed are verbs ("skiing", "seated"), everything else is a noun."""
    return ["VBG" if token.endswith("ing") else "VBN" if token.endswith("ed") else "NN" for token in tokens]


def _shape(word: str) -> str:
    if "-" in word and word[0] != "-":
        return "!HYPHEN"
    if word.isdigit() and len(word) == 4:
        return "!YEAR"
    return "!DIGITS" if word[:1].isdigit() else word.lower()


def _load(folder: Path, part: str) -> Any:
    name = f"{NAME}.{part}.json"
    for place in (folder / "taggers" / NAME, folder / NAME, folder):
        if (place / name).is_file():
            return json.loads((place / name).read_text(encoding="utf-8"))
    for archive in (folder / "taggers" / f"{NAME}.zip", folder / f"{NAME}.zip"):
        if archive.is_file():
            with zipfile.ZipFile(archive) as file:
                try:
                    with file.open(f"{NAME}/{name}") as member:
                        return json.load(io.TextIOWrapper(member, "utf-8"))
                except KeyError as error:
                    raise InputError(f"{archive}: no {NAME}/{name}; fetch the archive again") from error
    raise FileNotFoundError(
        f"{folder}: no tagger (taggers/{NAME}/{name} or its .zip); get it with nltk.downloader {NAME}. "
        "The older pickle averaged_perceptron_tagger is not opened; tag with your own nltk and pass --tags instead"
    )
