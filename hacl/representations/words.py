"""Words in a text that a model wrote or read, and the tokens they are made of. No torch here.

A word is matched as a whole on the decoded text, whatever its case, and mapped to tokens by character offsets: a word
of several tokens is found, and a word that merely shares its first token with another is not.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

WORD_CLASSES: Mapping[str, tuple[str, ...]] = {
    "colours": tuple(
        "red orange yellow green blue purple violet pink brown black white grey gray silver golden beige turquoise "
        "dark bright colourful colorful".split()
    ),
    "numbers": tuple("one two three four five six seven eight nine ten several many dozens".split()),
    "places": tuple(
        "street road park beach kitchen bathroom bedroom room field forest mountain river lake ocean city restaurant "
        "airport station garden yard sidewalk building store office court stadium".split()
    ),
    "positions": tuple(
        "left right top bottom above below under behind beside between near front inside outside".split()
    ),
    "sizes": tuple("small large big little tiny huge tall short long wide".split()),
    "sentiments": tuple(
        "happy sad beautiful ugly lovely nice calm peaceful angry scary pretty cute delicious exciting boring lonely "
        "gloomy cheerful terrible wonderful".split()
    ),
}


@dataclass(frozen=True)
class WordTokens:
    """word: as the text spells it; first, last: indices of its first and last token in the ids that were searched."""

    word: str
    first: int
    last: int


class DecodedTokens:
    """The text of a list of token ids and where each token ends in it.

    decode: ids -> text, special tokens left out. Token i covers the characters [ends[i-1], ends[i]) of `text`; the
    ends come from decoding prefixes, which is right for every tokenizer, and for ids that a model wrote itself.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], ids: Sequence[int], special: frozenset[int] = frozenset()
    ):
        self.ids, self.special = list(ids), special
        self.text = decode(self.ids) if self.ids else ""
        self.ends: list[int] = []
        for count in range(1, len(self.ids) + 1):
            shared = len(os.path.commonprefix([decode(self.ids[:count]), self.text]))
            self.ends.append(max(shared, self.ends[-1] if self.ends else 0))

    def find(self, pattern: re.Pattern[str]) -> list[WordTokens]:
        """Every match, in the order of the text."""
        return [
            WordTokens(match.group(), self._first(match.start()), bisect_left(self.ends, match.end()))
            for match in pattern.finditer(self.text)
        ]

    def _first(self, start: int) -> int:
        """The token in which the character at `start` begins: a character of several tokens shows with its last."""
        first = bisect_right(self.ends, start)
        while first and self.ids[first - 1] not in self.special and self._is_part(first - 1):
            first -= 1
        return first

    def _is_part(self, index: int) -> bool:
        return self.ends[index] == (self.ends[index - 1] if index else 0)


def word_pattern(words: Iterable[str]) -> re.Pattern[str]:
    """Matches any of `words` (which may contain blanks) as a whole, longest first, in any case.

    Raises:
        ValueError: no word, or an empty one.
    """
    listed = sorted({" ".join(word.split()) for word in words}, key=lambda word: (-len(word), word))
    if not listed or not listed[-1]:
        raise ValueError("a word to look for is empty")
    either = "|".join(r"\s+".join(map(re.escape, word.split())) for word in listed)
    return re.compile(rf"(?<!\w)(?:{either})(?!\w)", re.IGNORECASE)
