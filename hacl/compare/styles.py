"""Word lists of caption styles and kinds of answers: small, our own, plain data. No torch here."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hacl.representations.words import WORD_CLASSES

_GENDERED = """
man men woman women boy boys girl girls guy guys lady ladies gentleman gentlemen male female he she him her his hers
himself herself father mother son daughter brother sister husband wife king queen businessman businesswoman policeman
policewoman fireman fisherman salesman waitress actress bride groom grandfather grandmother dad mom
""".split()
_NEUTRAL = """
person people someone somebody child children adult adults individual individuals human humans they them their
themselves parent sibling spouse worker officer player rider skater surfer server police firefighter couple kid kids
""".split()
_POSITIVE = """
happy beautiful lovely nice calm peaceful pretty cute delicious exciting cheerful wonderful joyful charming bright
friendly relaxing gorgeous amazing great
""".split()
_NEGATIVE = """
sad ugly angry scary boring lonely gloomy terrible awful dirty broken dark dangerous messy miserable nasty cold
abandoned worn dull
""".split()


@dataclass(frozen=True)
class Style:
    """words: that a text of the style uses; avoids: that it does not use, and source texts do (empty: any other)."""

    words: tuple[str, ...]
    avoids: tuple[str, ...] = ()


STYLES: dict[str, Style] = {
    "colour": Style(tuple(WORD_CLASSES["colours"])),
    "place": Style(tuple(WORD_CLASSES["places"])),
    "sentiment": Style(tuple(sorted({*_POSITIVE, *_NEGATIVE}))),
    "positive": Style(tuple(_POSITIVE), tuple(_NEGATIVE)),
    "negative": Style(tuple(_NEGATIVE), tuple(_POSITIVE)),
    "gender_neutral": Style(tuple(_NEUTRAL), tuple(_GENDERED)),
}

NUMBERS = frozenset(WORD_CLASSES["numbers"]) | frozenset("zero none eleven twelve".split())
ANSWER_TYPES = ("yes/no", "number", "other")


def plain_answer(text: str) -> str:
    """An answer without case, outer blanks, end marks and a leading article."""
    return re.sub(r"^(?:a|an|the)\s+", "", text.strip().lower().strip(".,!?\"' "))


def answer_type(text: str) -> str:
    """The kind of an answer, by its form, as in VQAv2: yes/no, number or other."""
    words = plain_answer(text).split()
    if words and words[0].strip(",.") in ("yes", "no"):
        return "yes/no"
    return "number" if len(words) == 1 and (words[0] in NUMBERS or words[0].isdecimal()) else "other"
