"""What a set of requests costs: an estimate before asking, and what the server counted afterwards.

Tokens are approximated before: one per 4 characters of ASCII text and one per 1.5 other characters, 4 more per
message, 1,000 per image. English prose lies within about a fifth of that; code, digits and small vocabularies do not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CHARACTERS_PER_TOKEN = 4.0
OTHER_CHARACTERS_PER_TOKEN = 1.5
TOKENS_PER_MESSAGE = 4
TOKENS_PER_IMAGE = 1000


def text_tokens(text: str) -> int:
    """Approximate number of tokens of a text."""
    plain = sum(character.isascii() for character in text)
    return math.ceil(plain / CHARACTERS_PER_TOKEN + (len(text) - plain) / OTHER_CHARACTERS_PER_TOKEN)


def message_tokens(messages: Sequence[Mapping[str, Any]]) -> int:
    """Approximate number of tokens of a conversation."""
    total = 0
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        total += TOKENS_PER_MESSAGE
        total += sum(text_tokens(part["text"]) if part["type"] == "text" else TOKENS_PER_IMAGE for part in parts)
    return total


def dollars(prompt: int, completion: int, price_in: float | None, price_out: float | None) -> float | None:
    """Cost at prices per million tokens; None where a price is not known."""
    if price_in is None or price_out is None:
        return None
    return (prompt * price_in + completion * price_out) / 1e6


@dataclass(frozen=True)
class CostEstimate:
    """What asking would take: `new` of `requests` need the server, at most `completion_tokens` come back."""

    requests: int
    new: int
    cached: int
    repeated: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None

    def __str__(self) -> str:
        price = "no prices given" if self.cost is None else f"at most about ${self.cost:,.4f}"
        return (
            f"{self.requests} requests: {self.new} to ask, {self.cached} in the cache, {self.repeated} repeated; "
            f"about {self.prompt_tokens:,} tokens in (approximated), at most {self.completion_tokens:,} out; {price}"
        )


@dataclass
class Spending:
    """What was asked and what came back; `failures` counts attempts by what went wrong."""

    attempts: int = 0
    replies: int = 0
    cached: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    price_in: float | None = None
    price_out: float | None = None

    @property
    def cost(self) -> float | None:
        return dollars(self.prompt_tokens, self.completion_tokens, self.price_in, self.price_out)

    def to_json(self) -> dict[str, Any]:
        names = ("attempts", "replies", "cached", "failed", "prompt_tokens", "completion_tokens", "uncounted", "cost")
        return {name: getattr(self, name) for name in names} | {"failures": dict(sorted(self.failures.items()))}

    def __str__(self) -> str:
        failures = ", ".join(f"{count} {kind}" for kind, count in sorted(self.failures.items())) or "none"
        price = "no prices given" if self.cost is None else f"${self.cost:,.4f}"
        guessed = f" ({self.uncounted} replies without usage are approximated)" if self.uncounted else ""
        return (
            f"{self.replies} replies in {self.attempts} attempts, {self.cached} from the cache, {self.failed} failed; "
            f"failed attempts: {failures}; tokens {self.prompt_tokens:,} in, {self.completion_tokens:,} out"
            f"{guessed}; {price}"
        )
