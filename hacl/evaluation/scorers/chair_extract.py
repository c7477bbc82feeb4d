"""From a caption to the COCO objects it names, by the two published dialects of CHAIR.

``pattern`` (LisaAnne/Hallucination@6e4d33c4, Maxlinn/CHAIR-metric-standalone@640c5071): every token in the singular of
:mod:`~hacl.evaluation.scorers.singular`. ``wordnet`` (shikiw/OPERA@2a0a2344, LALBJ/PAI@2112e7f9, DeCo, lmms-eval): the
WordNet lemma by the token's tag. What follows is the same: join word pairs, drop "seat" where "toilet" is said, keep
what the synonym list has, every mention counted.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from hacl.evaluation.scorers.base import InputError
from hacl.evaluation.scorers.chair_lemmas import Lemmatizer, WordNetLemmas, chair_lemmas
from hacl.evaluation.scorers.chair_tagger import PerceptronTagger, guess_tags
from hacl.evaluation.scorers.chair_tokens import Tokenizer
from hacl.evaluation.scorers.chair_words import JOINED_BY_FIRST, OBJECT_OF
from hacl.evaluation.scorers.singular import singular

DIALECTS = ("pattern", "wordnet")
Tagger = Callable[[Sequence[str]], Sequence[str]]


class Mentions(NamedTuple):
    """What a caption names.

    Attributes:
        words: the object words in order, repetitions kept.
        objects: the head word of each.
        length: tokens after joining pairs, what the "Len" of OPERA and PAI counts.
    """

    words: list[str]
    objects: list[str]
    length: int


def find_objects(words: Sequence[str]) -> Mentions:
    """Mentions among words that are already singular or lemmas."""
    if not JOINED_BY_FIRST.keys().isdisjoint(words):
        words = _join(words)
    length = len(words)
    found = [word for word in words if word in OBJECT_OF]
    if "seat" in found and "toilet" in words:
        found = [word for word in found if word != "seat"]
    return Mentions(found, [OBJECT_OF[word] for word in found], length)


def _join(words: Sequence[str]) -> list[str]:
    joined, i, last = [], 0, len(words) - 1
    while i <= last:
        seconds = JOINED_BY_FIRST.get(words[i])
        one = seconds.get(words[i + 1]) if seconds and i < last else None
        joined.append(words[i] if one is None else one)
        i += 1 if one is None else 2
    return joined


class Extractor(ABC):
    """Objects named by captions, in one dialect."""

    def __init__(self) -> None:
        self.tokenizer = Tokenizer()

    def mentions(self, caption: str) -> Mentions:
        """The objects that a caption names."""
        return find_objects(self.normal_forms(self.tokenizer.tokens(caption.lower())))

    @abstractmethod
    def normal_forms(self, tokens: Sequence[str]) -> list[str]:
        """Tokens in lower case -> singular forms or lemmas."""


class PatternExtractor(Extractor):
    """The first published dialect; remembers singular forms."""

    def __init__(self) -> None:
        super().__init__()
        self._singular: dict[str, str] = {}

    def normal_forms(self, tokens: Sequence[str]) -> list[str]:
        known, forms = self._singular, []
        for token in tokens:
            form = known.get(token)
            if form is None:
                form = singular(token)
                if len(known) < 200_000 and len(token) < 40:
                    known[token] = form
            forms.append(form)
        return forms


class WordnetExtractor(Extractor):
    """The dialect of OPERA and PAI; by default with guessed tags and the lemmas of CHAIR's own words."""

    def __init__(self, tagger: Tagger = guess_tags, lemmatizer: Lemmatizer | None = None) -> None:
        super().__init__()
        self.tagger = tagger
        self.lemmatizer = lemmatizer or chair_lemmas()

    def normal_forms(self, tokens: Sequence[str]) -> list[str]:
        return self.with_tags(tokens, self.tagger(tokens))

    def with_tags(self, tokens: Sequence[str], tags: Sequence[str]) -> list[str]:
        """Lemmas of tokens whose tags are known."""
        return list(map(self.lemmatizer, tokens, tags))


def make_extractor(
    dialect: str, nltk_data: str | Path | None = None, *, tagged: bool = False
) -> tuple[Extractor, list[str]]:
    """An extractor and warnings on how it may differ from the scripts.

    Args:
        dialect: "pattern" or "wordnet".
        nltk_data: folder with tagger and WordNet in NLTK's layout. WordNet may be absent: the built-in table gives the
            same lemmas for every word that CHAIR looks up.
        tagged: tags come from elsewhere, so the folder needs no tagger.

    Raises:
        FileNotFoundError: no folder, or no tagger in it. ValueError: it is given for the pattern dialect.
    """
    if dialect == "pattern":
        if nltk_data is not None:
            raise ValueError("chair: --nltk-data is for --dialect wordnet; the pattern dialect needs no data")
        return PatternExtractor(), []
    if nltk_data is None:
        return WordnetExtractor(), [
            "wordnet dialect without --nltk-data: tags are guessed from endings, so figures may differ from the "
            "scripts' in the last digits"
        ]
    folder = Path(nltk_data)
    if not folder.is_dir():
        raise FileNotFoundError(f"--nltk-data {folder}: no such folder")
    notes = []
    tagger: Tagger = guess_tags
    try:
        tagger = PerceptronTagger.from_data(folder).tags
    except FileNotFoundError as error:
        if not tagged:
            raise
        notes.append(f"tags are guessed from endings: {error}")
    lemmatizer: Lemmatizer = chair_lemmas()
    try:
        lemmatizer = WordNetLemmas.from_data(folder)
    except FileNotFoundError as error:
        notes.append(f"lemmas are those of the built-in table: {error}")
    return WordnetExtractor(tagger, lemmatizer), notes


_NOT_LETTERS = re.compile(r"[\W_]+")


def check_tokens(tokens: Sequence[str], caption: str, where: object) -> None:
    """Whether tokens from outside are those of the caption, by their letters and digits.

    Raises:
        InputError: they are not, so the tags belong to another prediction.
    """
    if _NOT_LETTERS.sub("", "".join(tokens)) != _NOT_LETTERS.sub("", caption.lower()):
        raise InputError(
            f"{where}: the tokens {' '.join(tokens)[:60]!r} are not those of the caption {caption[:60]!r}; "
            "the tags file needs one row per prediction, in the order of the predictions"
        )
