"""Association diversity: how far apart, and how far from the image, the nouns of one answer are.

The answer lists nouns that have little to do with each other or with the image, in the manner of the Divergent
Association Task (Olson et al. 2021, doi 10.1073/pnas.2022340118), scored as 100 * (1 - mean cosine). The distance alone
rewards irrelevance, so it is read beside the shares of invalid answers and of repeated nouns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hacl.evaluation.scorers.creative_embedders import Embedder, unit

_NUMBERED = re.compile(r"(?:^|(?<=\s))\d{1,2}\s*[.):]\s*")
_BULLET = re.compile(r"^\s*(?:[-*•–]|\d{1,2}\s*[.):])\s*(.+)$")
_CUT = re.compile(r"[.,:;(!?\n]|\s[-–—]\s")
_ARTICLE = re.compile(r"^(?:a|an|the)\s+")
LONGEST = 3


def parse_list(text: str) -> list[str]:
    """Nouns of a reply that lists them: bullets or numbers on lines or in running text, or commas.

    Lower-cased, without articles and quotes; an entry ends at the first punctuation mark, so prose after the last one
    does not join it, and entries of more than three words are left out. Hyphenated words stay whole.
    """
    bullets = [match.group(1) for line in text.splitlines() if (match := _BULLET.match(line))]
    numbered = _NUMBERED.split(text)[1:]
    if len(numbered) > max(1, len(bullets)):
        entries = numbered
    elif len(bullets) > 1:
        entries = bullets
    else:
        line = max(text.splitlines() or [""], key=lambda line: line.count(","))
        line = line.rsplit(":", 1)[-1]
        entries = re.split(r",\s*(?:and\s+)?|\s+and\s+", line) if "," in line else [line]
    return [noun for noun in (_tidy(entry) for entry in entries) if noun and len(noun.split()) <= LONGEST]


def _tidy(entry: str) -> str:
    entry = re.sub(r"[*_\"'“”‘’`]+(?=\W|$)|(?<!\w)[*_\"'“”‘’`]+", "", entry).strip()
    return _ARTICLE.sub("", _CUT.split(entry, maxsplit=1)[0].strip().lower())


@dataclass
class Associations:
    """One answer's nouns.

    Attributes:
        nouns: the different nouns used, in order.
        repeated: how many entries repeated an earlier one.
        unknown: nouns the embedder does not know.
        noun_noun, image_noun: mean distances 0 to 200; None where the answer is invalid or there is no image vector.
    """

    nouns: Sequence[str]
    repeated: int = 0
    unknown: Sequence[str] = field(default_factory=tuple)
    noun_noun: float | None = None
    image_noun: float | None = None


def associations(listed: Sequence[str], row: Mapping[str, Any], embedder: Embedder, count: int) -> Associations:
    """Distances of the first ``count`` different nouns that the embedder knows; fewer than that is an invalid answer.

    Args:
        listed: nouns as answered.
        row: names the image.
        count: nouns to use, at least two.
    """
    different = list(dict.fromkeys(noun.strip().lower() for noun in listed if noun.strip()))
    found = list(zip(different, embedder.text(different), strict=True))
    used = [(noun, unit(vector, repr(noun))) for noun, vector in found if vector is not None][:count]
    unknown = [noun for noun, vector in found if vector is None]
    result = Associations([noun for noun, _ in used], len(listed) - len(different), unknown)
    if len(used) < count:
        return result
    vectors = np.stack([vector for _, vector in used])  # [N, D]
    cosines = vectors @ vectors.T
    result.noun_noun = 100 * (1 - float(cosines[np.triu_indices(count, 1)].mean()))
    image = embedder.image(row)
    if image is not None:
        result.image_noun = 100 * (1 - float((vectors @ unit(image, "the image")).mean()))
    return result
