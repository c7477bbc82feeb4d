"""Which positions of a token sequence a selector means. No torch here.

  predicts:WORD  the state whose next token is the first token of WORD      last_prompt      the prompt's last token
  at:WORD        the state at the last token of WORD                        first_generated  the answer's first token
  predicts:@CLASS, at:@CLASS   any word of a class                          mean_generated   mean over the answer
  index:i        position i, negative from the end                          mean_image       mean over image tokens
  all            every position

A position is a token's place in its own sequence, from 0, padding not counted. Words are looked for in the answer, of
which EOS is no part.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from hacl.representations.words import WORD_CLASSES, DecodedTokens, word_pattern

PLAIN = ("last_prompt", "first_generated", "mean_generated", "mean_image", "all")
FORMS = "predicts:WORD, at:WORD, predicts:@CLASS, at:@CLASS, index:i, " + ", ".join(PLAIN)


@dataclass(frozen=True)
class Layout:
    """One token sequence. ids: without padding; prompt: tokens of the prompt; end: where the answer ends, EOS not
    counted; image: positions of image tokens; states: positions that have a state (all, or all but the last token
    that was generated).
    """

    ids: Sequence[int]
    prompt: int
    end: int
    image: Sequence[int]
    states: int


@dataclass(frozen=True)
class Pick:
    """One row to keep: the state at `positions`, or their mean. token_id: predicted or read; None: a mean."""

    selector: str
    key: str
    positions: tuple[int, ...]
    token_id: int | None = None
    word: str | None = None

    @property
    def position(self) -> int | None:
        return None if self.token_id is None else self.positions[0]


@dataclass(frozen=True)
class Selector:
    """A parsed selector. kind: what stands before the colon; argument: what stands behind it; pattern: of its words."""

    spec: str
    kind: str
    argument: str = ""
    pattern: re.Pattern[str] | None = field(default=None, compare=False)

    @classmethod
    def parse(cls, spec: str, classes: Mapping[str, Sequence[str]] | None = None) -> Selector:
        """From its text. classes: words of each class, beside the built-in ones. Raises ValueError."""
        if spec in PLAIN:
            return cls(spec, spec)
        kind, colon, argument = spec.partition(":")
        if kind == "index" and re.fullmatch(r"-?\d+", argument):
            return cls(spec, kind, argument)
        if kind not in ("predicts", "at") or not argument.strip():
            raise ValueError(f"selector {spec!r}: expected one of {FORMS}")
        if not argument.startswith("@"):
            return cls(spec, kind, argument, word_pattern([argument]))
        known = {**WORD_CLASSES, **(classes or {})}
        if argument[1:] not in known:
            raise ValueError(f"selector {spec!r}: no word class {argument[1:]!r}; known: {', '.join(sorted(known))}")
        return cls(spec, kind, argument, word_pattern(known[argument[1:]]))

    @property
    def needs_answer(self) -> bool:
        return self.pattern is not None or self.kind in ("first_generated", "mean_generated")

    @property
    def reads_answer(self) -> bool:
        """Whether what follows the prompt can matter."""
        return self.needs_answer or self.kind in ("index", "all")

    def picks(self, layout: Layout, answer: DecodedTokens | None, occurrences: str = "all") -> list[Pick]:
        """The rows of one sequence; none where it has no such position.

        answer: the answer's tokens, needed by word selectors; occurrences: "all" or "first" of a word.
        """
        if self.pattern is not None:
            return self._words(layout, answer, occurrences)
        if self.kind in ("mean_generated", "mean_image"):
            found = layout.image if self.kind == "mean_image" else range(layout.prompt, layout.end)
            kept = tuple(position for position in found if position < layout.states)
            return [Pick(self.spec, f"{self.spec}#0", kept)] if kept else []
        return [
            Pick(self.spec, f"{self.spec}#{position if self.kind == 'all' else 0}", (position,), layout.ids[position])
            for position in self._plain(layout)
            if 0 <= position < layout.states
        ]

    def _plain(self, layout: Layout) -> Iterable[int]:
        if self.kind == "last_prompt":
            return [layout.prompt - 1]
        if self.kind == "first_generated":
            return [layout.prompt] if layout.prompt < layout.end else []
        if self.kind == "all":
            return range(layout.states)
        index = int(self.argument)
        return [index if index >= 0 else len(layout.ids) + index]

    def _words(self, layout: Layout, answer: DecodedTokens | None, occurrences: str) -> list[Pick]:
        found = []
        for number, match in enumerate(answer.find(self.pattern) if answer else []):
            if number and occurrences == "first":
                break
            token = layout.prompt + (match.first if self.kind == "predicts" else match.last)
            position = token - 1 if self.kind == "predicts" else token
            if 0 <= position < layout.states:
                found.append(Pick(self.spec, f"{self.spec}#{number}", (position,), layout.ids[token], match.word))
        return found


def parse_selectors(select: str | Sequence[str], classes: Mapping[str, Sequence[str]] | None = None) -> list[Selector]:
    """All selectors, in order. Raises ValueError where there is none, a wrong one, or one twice."""
    specs = [select] if isinstance(select, str) else list(select)
    if not specs or len(set(specs)) != len(specs):
        raise ValueError(f"select={specs}: name at least one selector, and each once ({FORMS})")
    return [Selector.parse(spec, classes) for spec in specs]
