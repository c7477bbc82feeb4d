"""Small English: words with offsets, articles, plurals, verb forms, and replacing spans of a caption."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

_WORD = re.compile(r"[A-Za-z]+(?:['’-][A-Za-z]+)*|\d+")
_PLURALS = {
    "man": "men", "woman": "women", "person": "people", "child": "children", "sheep": "sheep", "knife": "knives",
    "mouse": "mice", "wine glass": "wine glasses", "calf": "calves", "foot": "feet", "tooth": "teeth",
    "fireman": "firemen", "policeman": "policemen", "shelf": "shelves", "loaf": "loaves", "leaf": "leaves",
    "broccoli": "broccoli", "luggage": "luggage", "scissors": "scissors", "skis": "skis", "aircraft": "aircraft",
    "gentleman": "gentlemen", "goose": "geese", "deer": "deer", "fish": "fish", "lady": "ladies", "potato": "potatoes",
    "tomato": "tomatoes", "batsman": "batsmen",
}  # fmt: skip
_SINGULARS = {plural: singular for singular, plural in _PLURALS.items()}
_NO_AN = re.compile(r"(?:uni(?!n|m)|use|usu|eu|one\b|once|ukulele|ufo|utensil|utility)")
_AN = re.compile(r"(?:[aeiou]|hour|honest|heir)")
DETERMINERS = frozenset("a an the his her their its this that these those my our your another some any each".split())
FUNCTION_WORDS = DETERMINERS | frozenset(
    "on in at near next by under beside behind with and or but is are was were be been being that which who whom while "
    "inside outside over above below from to into onto of through along across around against as during up down off "
    "towards toward between atop underneath beneath has have had for out about there it he she they him them himself "
    "herself themselves itself where when after before if so than then not very all both to".split()
)
_FINITE = frozenset(
    "is was has does sits stands lies lays looks holds rides walks runs plays eats drives flies waits poses jumps goes "
    "wears carries reads cuts watches talks smiles sleeps grazes leans prepares makes takes gets uses tries hits "
    "swings throws catches drinks cooks pulls pushes appears shows features contains seems leads hangs rests performs "
    "skis surfs comes crosses passes moves travels works serves reaches brushes displays gives puts touches "
    "balances displays includes remains bends licks kicks turns stares kneels peeks enjoys faces follows inspects "
    "officiates enters depicts approaches begins strikes stops winds explores examines attempts consists".split()
)


class Word(NamedTuple):
    """A word of a caption: lower-cased text and [start, end) character offsets."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Replacement:
    """Characters [start, end) become `text`; start == end inserts."""

    start: int
    end: int
    text: str


def words_of(text: str) -> list[Word]:
    """The words and whole numbers of a text, with hyphens and apostrophes kept inside words."""
    return list(_words(text))


@lru_cache(maxsize=4096)
def _words(text: str) -> tuple[Word, ...]:
    return tuple(Word(m.group().lower().replace("’", "'"), m.start(), m.end()) for m in _WORD.finditer(text))


@lru_cache(maxsize=4096)
def same_text_key(text: str) -> tuple[str, ...]:
    """Equal for texts that differ in case, spaces and punctuation alone."""
    return tuple(word.text for word in words_of(text))


def plural(noun: str) -> str:
    """Plural of a noun or of the last word of a compound: "stop sign" -> "stop signs"."""
    if noun in _PLURALS:
        return _PLURALS[noun]
    head, _, last = noun.rpartition(" ")
    if head:
        return f"{head} {plural(last)}"
    if re.search(r"(?:s|x|z|ch|sh)$", noun):
        return noun + "es"
    if re.search(r"[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    return noun + "s"


def singular(noun: str) -> str:
    """Singular of a noun; a noun that is singular already comes back as it is."""
    if noun in _SINGULARS:
        return _SINGULARS[noun]
    if re.search(r"(?:[sxz]|ch|sh)es$", noun) and not noun.endswith(("ses", "zes")) or noun in ("buses", "glasses"):
        return noun[:-2]
    if noun.endswith("ies") and len(noun) > 4:
        return noun[:-3] + "y"
    if noun.endswith("s") and not noun.endswith(("ss", "us", "is")):
        return noun[:-1]
    return noun


def is_plural(noun: str) -> bool:
    """Whether a noun looks plural: an irregular plural or a final s that is not part of the stem."""
    return noun in _SINGULARS and _SINGULARS[noun] != noun or singular(noun) != noun


def article(following: str) -> str:
    """ "a" or "an" for the word that follows."""
    word = following.lower()
    return "an" if _AN.match(word) and not _NO_AN.match(word) else "a"


def base_form(third_person: str) -> str:
    """ "sits" -> "sit", "catches" -> "catch", "carries" -> "carry", "is" -> "are", "has" -> "have"."""
    irregular = {"is": "are", "was": "were", "has": "have", "does": "do", "goes": "go"}
    if third_person in irregular:
        return irregular[third_person]
    if third_person.endswith("ies") and len(third_person) > 4:
        return third_person[:-3] + "y"
    if re.search(r"(?:ss|x|zz|ch|sh)es$", third_person):
        return third_person[:-2]
    return third_person[:-1]


@lru_cache(maxsize=1)
def _bases() -> frozenset[str]:
    return frozenset(base_form(verb) for verb in _FINITE if verb not in ("is", "was", "has", "does"))


def is_base(word: str) -> bool:
    """Whether a word may be a verb that agrees with several persons or things ("sit", "play")."""
    return word in _bases()


def is_finite_singular(word: str) -> bool:
    """Whether a word is a verb that agrees with one person or thing ("is", "sits")."""
    return word in _FINITE or word.endswith(("'s",)) and word[:-2] in ("it", "he", "she", "that", "there")


def apart(text: str, left: Word, right: Word) -> bool:
    """Whether punctuation stands between two words."""
    return bool(text[left.end : right.start].strip())


def noun_run(text: str, words: Sequence[Word], at: int) -> tuple[int, int]:
    """[first, stop) of the words from `at` up to the next function word or punctuation, at most four: a bare noun
    phrase without its determiner, whose last word is the head."""
    stop = at
    while stop < len(words) and stop - at < 4 and words[stop].text not in FUNCTION_WORDS:
        if stop > at and (apart(text, words[stop - 1], words[stop]) or _is_verb(words[stop].text)):
            break
        stop += 1
    return at, stop


def _is_verb(word: str) -> bool:
    nouns = ("building", "ceiling", "railing", "painting", "clothing", "wedding", "thing", "evening", "morning", "ring")
    return word in _FINITE and word != "skis" or word.endswith("ing") and not word.endswith(nouns)


def apply(text: str, replacements: Sequence[Replacement]) -> tuple[str, tuple[int, int]]:
    """The edited text and the [start, end) span in it that covers every replacement.

    An article right before a replaced word is made to agree and then counts as edited; a replacement at the start of
    a sentence takes over its capital.
    """
    ordered = sorted(_with_articles(text, replacements), key=lambda r: (r.start, r.end))
    out, at = [], 0
    first = last = None
    length = 0
    for item in ordered:
        kept = text[at : item.start]
        new = item.text
        if new and _starts_sentence(text, item.start) and text[item.start : item.start + 1].isupper():
            new = new[0].upper() + new[1:]
        if text.isupper() or _is_upper(text[item.start : item.end]):
            new = new.upper()
        length += len(kept)
        shift = len(new) - len(new.lstrip(" ,"))
        first = length + shift if first is None else first
        length += len(new)
        last = length
        out += [kept, new]
        at = item.end
    out.append(text[at:])
    return "".join(out), (first or 0, last or 0)


def _with_articles(text: str, replacements: Sequence[Replacement]) -> list[Replacement]:
    result = list(replacements)
    for item in replacements:
        before = re.search(r"\b(an?)(\s+)$", text[: item.start], re.IGNORECASE)
        edited = any(before and other.start <= before.start() < other.end for other in replacements)
        if before is None or edited or not item.text.strip() or item.start == item.end:
            continue
        wanted = article(item.text)
        if before.group(1).lower() != wanted:
            result.append(Replacement(before.start(1), before.end(1), wanted))
    return result


def _is_upper(text: str) -> bool:
    return len(text) > 1 and text.isupper()


def _starts_sentence(text: str, at: int) -> bool:
    before = text[:at].rstrip(" \"'(")
    return not before or before[-1] in ".!?"
