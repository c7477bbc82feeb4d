"""Two sets of samples to steer between: by answer, by kind of answer, or by caption style. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hacl.compare.agreement import words as words_of
from hacl.compare.styles import ANSWER_TYPES, STYLES, Style, answer_type, plain_answer
from hacl.representations.samples import Sample


@dataclass(frozen=True)
class SampleSets:
    """source, target: samples with answers; words: that should become more frequent, avoided: less; select_source,
    select_target: which states stand for a set (see `hacl.representations.selectors`); classes: word classes that the
    selectors name.
    """

    name: str
    source: list[Sample]
    target: list[Sample]
    words: tuple[str, ...]
    avoided: tuple[str, ...] = ()
    select_source: str = "last_prompt"
    select_target: str = "last_prompt"
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for side, samples in (("source", self.source), ("target", self.target)):
            if not samples:
                raise ValueError(f"{self.name}: no sample belongs to the {side}; give more samples or another pair")


def by_answer(samples: Sequence[Sample], source: str, target: str) -> SampleSets:
    """From samples answered `source` to samples answered `target` ("yes" to "no", "1" to "3"); whole answers count."""
    picked = [[s for s in samples if plain_answer(s.answer or "") == plain_answer(side)] for side in (source, target)]
    return SampleSets(f"{source} to {target}", *picked, words=(target,), avoided=(source,))


def by_answer_type(samples: Sequence[Sample], source: str, target: str) -> SampleSets:
    """From one kind of answer to another: yes/no, number or other. The target words are the answers of that kind.

    Raises:
        ValueError: an unknown kind, or a kind without a sample.
    """
    unknown = sorted({source, target} - set(ANSWER_TYPES))
    if unknown:
        raise ValueError(f"answer type {unknown[0]!r}: one of {', '.join(ANSWER_TYPES)}")
    picked = [[s for s in samples if s.answer and answer_type(s.answer) == side] for side in (source, target)]
    answers = [tuple(sorted({plain_answer(sample.answer) for sample in side})) for side in picked]
    return SampleSets(f"{source} to {target}", *picked, words=answers[1], avoided=answers[0])


def by_style(samples: Sequence[Sample], style: str | Style) -> SampleSets:
    """From captions without a style's words (or with the words it avoids) to captions with them.

    The target's states are those that predict a style word; the source's are means over the answer, or, where the style
    avoids words, those that predict one of these.

    Raises:
        ValueError: an unknown style, or a side without a sample.
    """
    if isinstance(style, str) and style not in STYLES:
        raise ValueError(f"style {style!r}: one of {', '.join(STYLES)}, or a Style of your own")
    name, rule = (style, STYLES[style]) if isinstance(style, str) else ("style", style)
    target = [s for s in samples if _uses(s, rule.words)]
    others = [s for s in samples if s.answer and not _uses(s, rule.words)]
    source = [s for s in others if _uses(s, rule.avoids)] if rule.avoids else others
    classes = {"style": rule.words} | ({"avoided": rule.avoids} if rule.avoids else {})
    return SampleSets(
        name, source, target, words=rule.words, avoided=rule.avoids,
        select_source="predicts:@avoided" if rule.avoids else "mean_generated", select_target="predicts:@style",
        classes=classes,
    )  # fmt: skip


def _uses(sample: Sample, wanted: Sequence[str]) -> bool:
    return not set(words_of(sample.answer or "")).isdisjoint(wanted)
