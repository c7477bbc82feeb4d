"""What a concept or shift says: the words the LM head reads in it, and the samples that carry most of it.

T_words and X_MAS of arXiv 2501.03012 (section 3). Words are taken from the tokens with the largest logits; the rule
that keeps a token is stated in `WordRule`, and lists hold every word once.

Shapes: K concepts, D hidden size, V vocabulary, N samples.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hacl.representations.readout import Readout
from hacl.representations.word_lists import english_words, is_listed, stop_words

NORM_MODES = ("none", "apply", "fold")
NUMBER = re.compile(r"\d+(?:[.,]\d+)?")
MARKERS = "\u2581\u0120\u010a"  # word starts of SentencePiece and byte-level vocabularies, and the latter's line end


@dataclass(frozen=True)
class WordRule:
    """Which tokens count as words.

    A token counts, lower-cased and without spaces, if it is a number, or if it has at least `least` letters, is listed
    (or inflected from a listed word) and is not a stop word. words: length of a list; prefilter: how many of the
    largest logits are looked at, so a list may come out short; english: None switches to the language-neutral rule: at
    least one letter of any script, none but letters, no length limit.
    """

    words: int = 15
    prefilter: int = 200
    least: int = 3
    english: frozenset[str] | None = None
    stop: frozenset[str] = frozenset()
    numbers: bool = True

    @classmethod
    def default(cls, **changes: Any) -> WordRule:
        """English words of captions, with our lists."""
        return cls(**{"english": english_words(), "stop": stop_words(), **changes})

    @classmethod
    def neutral(cls, **changes: Any) -> WordRule:
        """Any language: no list, no length limit."""
        return cls(**{"least": 1, **changes})

    def keeps(self, word: str) -> bool:
        if NUMBER.fullmatch(word):
            return self.numbers
        if not word.isalpha() or len(word) < self.least or word in self.stop:
            return False
        return self.english is None or is_listed(word, self.english)

    def to_json(self) -> dict[str, Any]:
        lists = {"english": None if self.english is None else len(self.english), "stop": len(self.stop)}
        plain = {name: getattr(self, name) for name in ("words", "prefilter", "least", "numbers")}
        return {**plain, **{f"{name}_size": size for name, size in lists.items()}}


def plain_word(token: str) -> str:
    """A decoded token (or a raw one, with its word-start mark) as a word: without spaces, lower case."""
    return token.strip().strip(MARKERS).strip().lower()


def logits(u_KD: np.ndarray, readout: Readout, norm_mode: str = "none") -> np.ndarray:
    """Logits of each vector (K, V), fp32.

    norm_mode: "none": W u, for states after the final norm (upstream's only way); "apply": W norm(u), the logit lens,
    for states before it; "fold": W (gain * u), with the mean taken off for a LayerNorm: the linear part of the norm,
    for differences of states, whose length would mislead "apply".

    Raises:
        ValueError: an unknown mode or kind of norm, or vectors of another width.
    """
    u_KD = np.atleast_2d(np.asarray(u_KD, dtype=np.float64))
    if norm_mode not in NORM_MODES:
        raise ValueError(f"norm_mode {norm_mode!r}; known: {', '.join(NORM_MODES)}")
    if u_KD.shape[1] != readout.lm_head.shape[1]:
        raise ValueError(f"vectors of width {u_KD.shape[1]}; this LM head reads {readout.lm_head.shape[1]}")
    if norm_mode == "apply":
        u_KD = readout.norm(u_KD)
    elif norm_mode == "fold":
        u_KD = u_KD - u_KD.mean(axis=1, keepdims=True) if readout.norm_kind == "layer" else u_KD
        u_KD = u_KD if readout.norm_weight is None else u_KD * readout.norm_weight
    return u_KD.astype(np.float32) @ readout.lm_head.T


def norm_modes(layer: str | int) -> tuple[str, str]:
    """The modes that fit a stored layer: for states, and for differences of states."""
    return ("none", "none") if layer == "final_norm" else ("apply", "fold")


def ground_words(
    u_KD: np.ndarray, readout: Readout, rule: WordRule | None = None, *, norm_mode: str = "none"
) -> list[list[str]]:
    """The words of each vector, largest logit first, each once; up to `rule.words` of them, maybe none.

    Ties go to the smaller token id. A vector of length zero says nothing: its list is empty.
    """
    rule = rule or WordRule.default()
    u_KD = np.atleast_2d(np.asarray(u_KD, dtype=np.float64))
    found = []
    for u_D, row_V in zip(u_KD, logits(u_KD, readout, norm_mode), strict=True):
        words: dict[str, None] = {}
        top = _largest(row_V, rule.prefilter) if u_D.any() else []
        for token_id in top:
            word = plain_word(readout.tokens[token_id])
            if len(words) < rule.words and rule.keeps(word):
                words.setdefault(word)
        found.append(list(words))
    return found


def _largest(row_V: np.ndarray, count: int) -> list[int]:
    return np.argsort(-row_V, kind="stable")[:count].tolist()


@dataclass(frozen=True)
class Overlap:
    """Shared items over the number of items of the reference; percent is None where the reference is empty."""

    shared: int
    of: int

    @property
    def percent(self) -> float | None:
        return 100.0 * self.shared / self.of if self.of else None

    def to_json(self) -> dict[str, float | int | None]:
        return {"shared": self.shared, "of": self.of, "percent": self.percent}


def overlap(reference: Sequence[Any], other: Sequence[Any]) -> Overlap:
    """T-Overlap and MAS overlap: how much of `reference` the other has too; repeats count once.

    100 |reference and other| / |reference| (arXiv 2501.03012, section 3; the denominator is the list's own length, not
    a constant).
    """
    return Overlap(len(set(reference) & set(other)), len(set(reference)))


def dictionary_overlap(words: Sequence[Sequence[str]]) -> float | None:
    """Mean percentage of a concept's words that another concept of the same dictionary has too; lower is better.

    Over all ordered pairs of different concepts; those without words are left out. None with fewer than two others.
    """
    found = [overlap(a, b).percent for i, a in enumerate(words) for j, b in enumerate(words) if i != j and a and b]
    return float(np.mean(found)) if found else None


def most_activating(activations_NK: np.ndarray, count: int = 5, groups: Sequence[str] | None = None) -> list[list[int]]:
    """Rows with the largest activation of each concept, in falling order; ties go to the earlier row.

    groups: image of each row; then at most one row of an image is taken.
    """
    found = []
    for column_N in np.asarray(activations_NK).T:
        seen: set[str] = set()
        rows: list[int] = []
        for row in np.argsort(-column_N, kind="stable").tolist():
            name = row if groups is None else groups[row]
            if name not in seen:
                seen.add(name)
                rows.append(row)
            if len(rows) == count:
                break
        found.append(rows)
    return found
