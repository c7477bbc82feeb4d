"""The one place that knows generators by name: makes one, and says which options it has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol

from hacl.data.records import HallucinatedCaption, Record
from hacl.hallucinate.backends.base import Backend, BackendOption
from hacl.hallucinate.balance import Balance
from hacl.hallucinate.select import CANDIDATES, Balanced
from hacl.hallucinate.survey import Survey

BACKENDS = {
    "lexical": "hacl.hallucinate.lexical:LexicalHallucinator",
    "naive": "hacl.hallucinate.backends.naive:NaiveBackend",
    "lm": "hacl.hallucinate.backends.lm:LanguageModelBackend",
    "openai": "hacl.hallucinate.backends.chat:ChatBackend",
    "model": "hacl.hallucinate.backends.model:ModelBackend",
}


class Hallucinator(Protocol):
    """Makes hallucinated captions; `rejections` counts candidates that were thought of and refused, by reason."""

    rejections: Counter[str]

    def propose(self, record: Record, caption_index: int, k: int) -> list[HallucinatedCaption]:
        """Up to k different hallucinated captions of one caption, the same for the same arguments."""


def backend_class(name: str) -> type[Backend]:
    """The class of a backend, imported on demand. Raises ValueError for an unknown name."""
    if name not in BACKENDS:
        raise ValueError(f"unknown generator {name!r}; available: {', '.join(BACKENDS)}")
    module, _, attribute = BACKENDS[name].partition(":")
    return getattr(import_module(module), attribute)


def backend_options(name: str) -> tuple[BackendOption, ...]:
    """The options that one backend adds to `seed` and `types`."""
    return backend_class(name).options


def make_hallucinator(
    name: str,
    *,
    seed: int = 0,
    types: Sequence[str] | None = None,
    survey: Survey | None = None,
    balance: Balance | None = None,
    candidates: int = CANDIDATES,
    **options: Any,
) -> Backend:
    """The generator called `name`.

    survey: the first pass over the input, which makes absent objects and words plausible; balance: of `fit_balance`,
    with which as many `candidates` are made and k of them chosen; options: of that backend. Raises ValueError for an
    unknown name or option.
    """
    made = backend_class(name)
    known = {option.name for option in made.options}
    if unknown := options.keys() - known:
        raise ValueError(
            f"{name} has no option {', '.join(sorted(unknown))}; it has {', '.join(sorted(known)) or 'none'}"
        )
    backend = made(seed=seed, types=types, survey=survey, **options)
    return backend if balance is None else Balanced(backend, balance, candidates, seed)
