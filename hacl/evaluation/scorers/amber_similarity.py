"""Word similarity for AMBER: which caption noun stands for which listed word.

AMBER asks spaCy's ``en_core_web_lg`` vectors. They are not on a package index, and the smaller spaCy models are no
substitute (their vectors are pruned: unrelated words become equal), so similarity is a function that the user chooses
and every report names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from hacl.evaluation.scorers.base import InputError
from hacl.evaluation.scorers.reading import load_json

Similarity = Callable[[str, str], float]


def exact(word: str, other: str) -> float:
    """1.0 for equal words, otherwise 0.0."""
    return 1.0 if word == other else 0.0


class TableSimilarity:
    """Values looked up in either order; equal words are 1.0, unknown pairs 0.0.

    Args:
        table: ``{"word a|word b": value}``.
        name: what messages call the table.
    """

    def __init__(self, table: Mapping[str, float], name: str = "similarity table") -> None:
        self.values: dict[tuple[str, str], float] = {}
        for key, value in table.items():
            words = key.split("|")
            if len(words) != 2 or isinstance(value, bool) or not isinstance(value, int | float):
                raise InputError(f'{name}: entry {key!r}: {value!r}; write "word a|word b": number')
            self.values[words[0], words[1]] = float(value)

    def __call__(self, word: str, other: str) -> float:
        if word == other:
            return 1.0
        return self.values.get((word, other), self.values.get((other, word), 0.0))


def open_similarity(choice: Any) -> tuple[Similarity, str, list[Path]]:
    """The function, its name for the report, and the files it was read from.

    Args:
        choice: ``"exact"``, ``"table:FILE"`` (JSON object), ``"spacy:MODEL"`` (an installed spaCy package with
            vectors, for the official figures ``en_core_web_lg``), a mapping in the form of the table, or a function
            of two words.

    Raises:
        InputError: anything else.
        FileNotFoundError: no such table.
    """
    if callable(choice):
        return lru_cache(maxsize=200_000)(choice), f"python:{getattr(choice, '__name__', type(choice).__name__)}", []
    if isinstance(choice, Mapping):
        return TableSimilarity(choice), "table", []
    kind, _, argument = str(choice).partition(":")
    if choice == "exact":
        return exact, "exact", []
    if kind == "table" and argument:
        path = Path(argument)
        return TableSimilarity(_read_table(path), str(path)), f"table:{path.name}", [path]
    if kind == "spacy" and argument:
        return lru_cache(maxsize=200_000)(_spacy(argument)), f"spacy:{argument}", []
    raise InputError(f"similarity {choice!r}: use exact, table:FILE or spacy:MODEL")


def _read_table(path: Path) -> Mapping[str, float]:
    table = load_json(path)
    if not isinstance(table, dict):
        raise InputError(f'{path}: a JSON object {{"word a|word b": value}} is expected')
    return table


def _spacy(model: str) -> Similarity:
    try:
        import spacy
    except ImportError as error:
        raise InputError(f"similarity spacy:{model}: install spacy and {model}, or use exact or table:FILE") from error
    try:
        pipeline = spacy.load(model)
    except OSError as error:
        raise InputError(f"similarity spacy:{model}: the model is not installed ({error})") from error

    def similarity(word: str, other: str) -> float:
        return float(pipeline(word).similarity(pipeline(other)))

    return similarity
