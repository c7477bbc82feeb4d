"""Read a caption of the offline world back into its claims, so that any text can be judged by the scene."""

from __future__ import annotations

import re

from hacl.pocket.language import OPENERS, Caption, Mention, Relation
from hacl.pocket.world import COLOURS, KINDS, NUMBERS, RELATIONS

_OPENERS = tuple(sorted((*OPENERS, "there are"), key=len, reverse=True))
_NOUNS = {word: (kind.name, n) for kind in KINDS for n, pair in enumerate(kind.words) for word in pair}
_COUNTS = {"a": 1, "an": 1} | {word: number for number, word in enumerate(NUMBERS)}
_RELATION = re.compile(rf"the (\S+) is ({'|'.join(RELATIONS)}) the (\S+) \.")


def read_caption(text: str) -> Caption | None:
    """The claims of a caption, None where it is none of this world's.

    Slips of article and number ("a anchor", "two cup") are read over: the claim is what they say anyway.
    """
    opener = next((each for each in _OPENERS if text.startswith(f"{each} ")), None)
    listed, stop, rest = text[len(opener or "") :].partition(" .")
    if opener is None or not stop:
        return None
    mentions = tuple(_mention(phrase.split()) for phrase in re.split(r" , | and ", listed.strip()))
    if any(mention is None for mention in mentions):
        return None
    relation = None
    if rest.strip():
        relation = _relation(rest.strip())
        if relation is None:
            return None
    return Caption("there is" if opener == "there are" else opener, mentions, relation)


def _mention(words: list[str]) -> Mention | None:
    colour = words.pop(1) if len(words) == 3 and words[1] in COLOURS else None
    if len(words) != 2 or words[0] not in _COUNTS or words[1] not in _NOUNS:
        return None
    kind, word = _NOUNS[words[1]]
    return Mention(kind, _COUNTS[words[0]], colour, word)


def _relation(text: str) -> Relation | None:
    found = _RELATION.fullmatch(text)
    if found is None or found[1] not in _NOUNS or found[3] not in _NOUNS:
        return None
    subject, other = _NOUNS[found[1]], _NOUNS[found[3]]
    return Relation(subject[0], found[2], other[0], (subject[1], other[1]))
