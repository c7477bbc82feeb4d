"""Parts of speech of a caption's words by a spaCy pipeline (optional), in place of the rules that guess them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from hacl.hallucinate.english import Word

TAGGERS = ("rules", "spacy")
NOUNS = frozenset(("NOUN", "PROPN"))
VERBS = frozenset(("VERB", "AUX"))


class SpacyTagger:
    """pipeline: an installed package or a folder with a tagger. Raises ValueError where spaCy or it is missing."""

    def __init__(self, pipeline: str = "en_core_web_sm"):
        if find_spec("spacy") is None:
            raise ValueError('tagger=spacy needs the package spacy: pip install "hacl[spacy]"; or use tagger=rules')
        self.name = pipeline
        self._nlp = _pipeline(pipeline)
        self._tagged = lru_cache(maxsize=4096)(self._tag)

    def tags(self, text: str, words: Sequence[Word]) -> tuple[str, ...]:
        """The universal part of speech of each word: that of the last token inside it, "" where none is."""
        return self._tagged(text, tuple(words))

    def _tag(self, text: str, words: tuple[Word, ...]) -> tuple[str, ...]:
        ends = {token.idx + len(token.text): token.pos_ for token in self._nlp(text)}
        return tuple(ends.get(word.end, "") for word in words)

    def __reduce__(self):  # a worker process opens its own
        return SpacyTagger, (self.name,)


@lru_cache(maxsize=2)
def _pipeline(name: str) -> Any:
    import spacy

    try:
        return spacy.load(name, exclude=["ner", "parser", "lemmatizer"])
    except OSError as error:
        raise ValueError(
            f"spacy_pipeline={name}: no such package or folder; install one (en_core_web_sm) or give its path"
        ) from error
