"""Noun sources for AMBER: which words of a response are nouns, in singular form and in order.

AMBER tags with NLTK, keeps tags that start with NN, and takes the WordNet lemma. That needs language data, so there are
three sources: a file from outside, the tagger and WordNet in the user's NLTK data, and a default that needs nothing.
The default is **not** the official tagger: it looks for the words AMBER lists and does not decide word classes, except
for words that are more often something else ("can", "light", "leave"), which count only after a determiner. It reads
capitalised plurals too, which the official lemmatiser misses: "Dogs" counts here and not there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hacl.evaluation.scorers.base import InputError
from hacl.evaluation.scorers.chair_lemmas import WordNetLemmas
from hacl.evaluation.scorers.chair_tagger import PerceptronTagger
from hacl.evaluation.scorers.chair_tokens import sentences, split_sentence
from hacl.evaluation.scorers.reading import iter_rows

NounSource = Callable[[Any, str, str], Sequence[str]]
WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
LONG_BLANK = re.compile(r"\s{4,}")
# Forms of listed words that a caption uses as a verb, modal or adjective at least as often as a noun.
AMBIGUOUS = frozenset(
    "can drink drinks hot leave leaves light line note pack plug range rock sailing sound sounds spray sprays support "
    "supports switch tap track watch watches".split()
)
DETERMINERS = frozenset(
    "a an the this that these those his her its their my our your some any no each every another both all several many "
    "few one two three four five six seven eight nine ten".split()
)
IRREGULAR = {
    "men": "man", "women": "woman", "children": "child", "mice": "mouse", "geese": "goose",
    "knives": "knife", "leaves": "leave", "shelves": "shelf", "bookshelves": "bookshelf", "scarves": "scarf",
    "snowmen": "snowman",
}  # fmt: skip


class VocabularyNouns:
    """The default: listed words found in the response, in singular form.

    Args:
        vocabulary: AMBER's words (:attr:`AmberReferences.vocabulary`).
    """

    def __init__(self, vocabulary: Collection[str]) -> None:
        self.vocabulary = {word.lower(): word for word in vocabulary}

    def __call__(self, identifier: Any, response: str, where: str) -> list[str]:
        words = [match.group().lower() for match in WORD.finditer(response)]
        nouns = []
        for position, word in enumerate(words):
            listed = next((self.vocabulary[form] for form in _singular_forms(word) if form in self.vocabulary), None)
            if listed is None:
                continue
            if word in AMBIGUOUS and not DETERMINERS.intersection(words[max(0, position - 2) : position]):
                continue
            nouns.append(listed)
        return nouns


def _singular_forms(word: str) -> Iterator[str]:
    """The word itself, then what it may be the plural of, most likely first."""
    yield word
    if word in IRREGULAR:
        yield IRREGULAR[word]
    if word.endswith("ies"):
        yield word[:-3] + "y"
    if word.endswith("s") and not word.endswith("ss"):
        yield word[:-1]
    if word.endswith("es"):
        yield word[:-2]


class ListedNouns:
    """Nouns that an external extractor found.

    Args:
        source: path of a JSONL file (or rows) with ``{"id": ..., "nouns": [...]}``, one per response.

    Raises:
        InputError: a row of another shape or a repeated id.
    """

    def __init__(self, source: Any) -> None:
        self.name = str(source) if isinstance(source, str | Path) else "nouns"
        self.nouns: dict[str, list[str]] = {}
        for where, row in _rows(source):
            nouns = row.get("nouns")
            if "id" not in row or not isinstance(nouns, list) or not all(isinstance(noun, str) for noun in nouns):
                raise InputError(f'{where}: write {{"id": ..., "nouns": ["dog", ...]}}')
            if str(row["id"]) in self.nouns:
                raise InputError(f"{where}: id {row['id']!r} has nouns twice")
            self.nouns[str(row["id"])] = nouns

    def __call__(self, identifier: Any, response: str, where: str) -> list[str]:
        if str(identifier) not in self.nouns:
            raise InputError(f"{where}: {self.name} has no nouns for id {identifier!r}")
        return self.nouns[str(identifier)]


def _rows(source: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(source, Mapping):
        yield from ((f"nouns[{key!r}]", {"id": key, "nouns": nouns}) for key, nouns in source.items())
    else:
        yield from iter_rows(source)


class TaggedNouns:
    """The official extraction: word tokens, tags starting with NN, WordNet's noun lemma.

    The tagger's weights and WordNet are read from the folder; the package nltk is not needed. Tokens differ from NLTK's
    only around abbreviations and initials in capitals.

    Args:
        folder: NLTK data with ``averaged_perceptron_tagger_eng`` and ``wordnet``; nothing is downloaded.

    Raises:
        FileNotFoundError: no such folder, or one of the two is not in it.
    """

    def __init__(self, folder: str | Path) -> None:
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"--nltk-data {folder}: no such folder")
        self.tags = PerceptronTagger.from_data(Path(folder)).tags
        self.lemma = WordNetLemmas.from_data(Path(folder))

    def __call__(self, identifier: Any, response: str, where: str) -> list[str]:
        # The script tags all sentences of a response in one go. Long blanks would cost the rules quadratic time.
        text = LONG_BLANK.sub(" \n ", response)
        tokens = [token for sentence in sentences(text) for token in split_sentence(sentence)]
        tagged = zip(tokens, self.tags(tokens), strict=True)
        return [self.lemma(token, "NN") for token, tag in tagged if tag.startswith("NN")]


def open_nouns(nouns: Any, nltk_data: Any, vocabulary: Collection[str]) -> tuple[NounSource, str, list[Path]]:
    """The noun source, its name for the report, and the files it was read from.

    Args:
        nouns: a function of the response (Python only), rows or the path of a file, or None.
        nltk_data: folder of NLTK data, or None. Without both, the default source.

    Raises:
        InputError: both are given.
    """
    if nouns is not None and nltk_data is not None:
        raise InputError("give either --nouns or --nltk-data, not both")
    if callable(nouns):
        name = f"python:{getattr(nouns, '__name__', type(nouns).__name__)}"
        return (lambda identifier, response, where: list(nouns(response))), name, []
    if nouns is not None:
        return ListedNouns(nouns), "file", [Path(nouns)] if isinstance(nouns, str | Path) else []
    if nltk_data is not None:
        return TaggedNouns(nltk_data), "nltk", []
    return VocabularyNouns(vocabulary), "vocabulary", []
