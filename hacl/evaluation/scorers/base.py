"""What a benchmark's scorer is: options that it checks, predictions added one at a time, totals at the end.

A scorer sees each prediction once and keeps only what its totals need, so a million answers fit in little memory. The
evidence for intervals and for paired comparison of two runs is the ratio of two sums per image
(:class:`~hacl.evaluation.scorers.evidence.ImageSums`).
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from hacl.evaluation.scorers.evidence import ImageSums

__all__ = ["ImageSums", "InputError", "Option", "Scorer", "Totals", "divide", "listed"]


class InputError(ValueError):
    """Predictions and references do not fit each other: missing, repeated or unknown ids, a field of a wrong type."""


@dataclass(frozen=True)
class Option:
    """One setting of a scorer: ``name`` in Python, ``--name`` with hyphens on the command line.

    ``kind`` turns the text of the command line into the value; ``bool`` makes a flag without a value.
    """

    name: str
    help: str
    default: Any = None
    choices: tuple[str, ...] = ()
    kind: type = str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


@dataclass
class Totals:
    """What a scorer found over all predictions; ``None`` in metrics and groups is an undefined ratio (0/0)."""

    metrics: dict[str, float | None] = field(default_factory=dict)
    groups: dict[str, dict[str, float | None]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    sums: ImageSums | None = None


class Scorer(ABC):
    """Base of the scorers. Subclasses set the class variables and implement :meth:`add` and :meth:`finish`.

    Attributes:
        benchmark: name in ``score(benchmark, ...)``.
        version: raised whenever the same answers may give another number.
        options: the settings that ``__init__`` accepts.
        needs_references: whether ground truth comes in separate files.
    """

    benchmark: ClassVar[str]
    version: ClassVar[int] = 1
    options: ClassVar[tuple[Option, ...]] = ()
    needs_references: ClassVar[bool] = True

    def __init__(self, references: Any = None, **options: Any) -> None:
        """
        Args:
            references: path(s) to the ground truth, or its loaded content; each scorer says which.
            options: values for :attr:`options`; kept, with defaults filled in, in ``self.settings``.

        Raises:
            ValueError: unknown option or value; InputError, FileNotFoundError: references that do not fit.
        """
        self.references = references
        self.settings = self.check_options(options)

    @classmethod
    def check_options(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Defaults with ``given`` put in; ValueError with a suggestion for a name or value that does not exist."""
        known = {option.name: option for option in cls.options}
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; it takes {', '.join(known) or 'none'}"
                raise ValueError(f"{cls.benchmark} has no option {name!r}{hint}")
        settings = {name: option.default for name, option in known.items()} | dict(given)
        for name, value in settings.items():
            choices = known[name].choices
            if choices and value is not None and value not in choices:
                raise ValueError(f"{cls.benchmark}: {name}={value!r}; use one of {', '.join(choices)}")
        return settings

    @abstractmethod
    def add(self, row: Mapping[str, Any], where: object) -> dict[str, Any]:
        """Take in one prediction and return its item, plain JSON.

        Args:
            row: the prediction.
            where: prints as the place of the prediction ("answers.jsonl:17"), for messages.

        Raises:
            InputError: a field is missing or of a wrong type, an id is unknown or came before.
        """

    @abstractmethod
    def finish(self, *, allow_missing: bool = False) -> Totals:
        """Totals over what was added.

        Raises:
            InputError: references without a prediction, unless ``allow_missing``, which lists them in warnings.
        """

    def input_files(self) -> list[Path]:
        """Files whose content decides the score, besides the predictions; they are hashed into the report."""
        return []

    def again(self) -> Scorer | None:
        """A scorer with the same references that has seen no prediction, or None where that costs a new start.

        With it, items of a large file are computed a second time when asked for, in place of being stored.
        """
        return None


def divide(numerator: float, denominator: float, name: str, warnings: list[str]) -> float | None:
    """``numerator / denominator``; None and a warning for a denominator of zero."""
    if denominator == 0:
        warnings.append(f"{name} is undefined (0/0) and reported as null")
        return None
    return numerator / denominator


def listed(ids: list[Any], limit: int = 20) -> str:
    """Ids for a message: the first ``limit`` and how many more."""
    shown = ", ".join(str(name) for name in ids[:limit])
    return shown + (f" and {len(ids) - limit} more" if len(ids) > limit else "")
