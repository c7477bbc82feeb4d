"""How targeted a steering is: target words in what it changed, changes where there should be none, accuracy by type.

Shapes are lists aligned by sample. No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hacl.compare.agreement import words as words_of
from hacl.compare.plain import plain
from hacl.compare.recovery_fraction import per_image
from hacl.compare.side_effects import changed, longest_repeat
from hacl.compare.styles import plain_answer
from hacl.evaluation.statistics import Interval, Table, bootstrap_runs, paired_difference, table_ratio


@dataclass(frozen=True)
class Targetedness:
    """Shares have intervals over images.

    changed: of the outputs inside the domain; changed_outside: of those outside it, None where none was given;
    target_share: changed outputs whose text holds a target word that the old one did not, over changed outputs;
    target_texts, avoided_texts: outputs with a target word, or with one that should go, before and after; accuracy:
    by answer type, before, after and the difference; longest_repeat: mean, before and after (a loop shows here).
    """

    samples: int
    changed: Interval
    changed_outside: Interval | None
    target_share: Interval
    target_texts: tuple[int, int]
    avoided_texts: tuple[int, int]
    accuracy: dict[str, dict[str, Any]]
    longest_repeat: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        return plain(self)


def targetedness(
    image_ids: Sequence[str],
    before: Sequence[str],
    after: Sequence[str],
    target: Sequence[str],
    *,
    avoided: Sequence[str] = (),
    outside: tuple[Sequence[str], Sequence[str], Sequence[str]] | None = None,
    types: Sequence[str] | None = None,
    references: Sequence[Sequence[str]] | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Targetedness:
    """Compare outputs before and after steering.

    target: words that should appear, avoided: that should not, both matched as whole words in any case; outside:
    (image ids, before, after) of samples that should not change; types, references: kind of each sample's question and
    its accepted answers, for accuracy by type.

    Raises:
        ValueError: no sample, no target word, or lists of unlike length.
    """
    lists = [image_ids, before, after, *(x for x in (types, references) if x is not None)]
    if not len(before) or len({len(x) for x in lists}) > 1:
        raise ValueError(f"lists of {[len(x) for x in lists]} samples; give one entry per sample, at least one")
    if not target:
        raise ValueError("no target word, so nothing can be targeted")
    settings = {"draws": draws, "seed": seed}
    moved = changed(before, after)
    had, has = ([_holds(text, target) for text in texts] for texts in (before, after))
    gained = [m and new and not old for m, old, new in zip(moved, had, has, strict=True)]
    lost = [sum(_holds(text, avoided) for text in texts) if avoided else 0 for texts in (before, after)]
    away = None
    if outside is not None:
        away = bootstrap_runs([per_image(outside[0], changed(outside[1], outside[2]))], **settings)
    return Targetedness(
        samples=len(before),
        changed=bootstrap_runs([per_image(image_ids, moved)], **settings),
        changed_outside=away,
        target_share=bootstrap_runs([per_image(image_ids, gained, moved)], **settings),
        target_texts=(sum(had), sum(has)),
        avoided_texts=(lost[0], lost[1]),
        accuracy=_accuracy(image_ids, before, after, types, references, settings) if references is not None else {},
        longest_repeat=tuple(sum(map(longest_repeat, texts)) / len(texts) for texts in (before, after)),
    )


def is_right(answer: str, references: Sequence[str]) -> float:
    """VQA accuracy (Antol et al., 2015, simplified): matches / 3, at most 1; with fewer than three references, any."""
    matches = sum(plain_answer(answer) == plain_answer(reference) for reference in references)
    return min(1.0, matches / min(3, max(len(references), 1)))


def _accuracy(image_ids, before, after, types, references, settings) -> dict[str, dict[str, Any]]:
    types = ["all"] * len(before) if types is None else list(types)
    found = {}
    for kind in dict.fromkeys([*sorted(set(types)), "all"]):
        rows = [i for i, own in enumerate(types) if kind in (own, "all")]
        tables: list[Table] = [
            per_image([image_ids[i] for i in rows], [is_right(texts[i], references[i]) for i in rows])
            for texts in (before, after)
        ]
        found[kind] = {
            "samples": len(rows), "before": table_ratio(tables[0]), "after": table_ratio(tables[1]),
            "difference": paired_difference([tables[1]], [tables[0]], **settings),
        }  # fmt: skip
    return found


def _holds(text: str, wanted: Sequence[str]) -> bool:
    """Whether a text has one of the words, or one of the phrases, as a whole."""
    joined = f" {' '.join(words_of(text))} "
    return any(f" {' '.join(words_of(word))} " in joined for word in wanted)
