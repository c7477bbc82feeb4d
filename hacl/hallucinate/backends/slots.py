"""Words of a caption that a word of the same type can replace, from word lists alone: no grammar, no truth."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from hacl.hallucinate.english import Word, plural
from hacl.hallucinate.lexicon import Lexicon


def word_types(lexicon: Lexicon) -> Mapping[str, tuple[str, ...]]:
    """Type -> words: nouns (one list for each number), values of attributes, verbs, prepositions, numbers."""
    nouns = sorted({word for _, group in lexicon.noun_groups for word in group if " " not in word})
    return {
        "object": tuple(nouns),
        "object (plural)": tuple(plural(noun) for noun in nouns),
        "attribute": tuple(sorted({word for values in lexicon.attributes for word in values.words})),
        "action": tuple(sorted({verb for group in lexicon.verb_groups for verb in group if verb.endswith("ing")})),
        "action (sits)": tuple(sorted({v for group in lexicon.verb_groups for v in group if v.endswith("s")})),
        "relation": tuple(sorted(word for word in lexicon.prepositions if " " not in word)),
        "number": tuple(sorted(lexicon.numbers)),
    }


@cache
def _table(lexicon_id: int, words: tuple[tuple[str, tuple[str, ...]], ...]) -> dict[str, str]:
    return {word: kind for kind, listed in reversed(words) for word in listed}


def slots(words: list[Word], types: Mapping[str, tuple[str, ...]]) -> list[tuple[int, str]]:
    """(position, key of `types`) of each word that is in a list."""
    table = _table(0, tuple(types.items()))
    return [(at, table[word.text]) for at, word in enumerate(words) if word.text in table]
