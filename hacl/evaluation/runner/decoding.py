"""How a reply is decoded: the settings that a report must name, checked once. No torch here."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Decoding:
    """Decoding settings of one reply.

    max_new_tokens, min_new_tokens: bounds on the reply, in tokens, EOS included; temperature: 0 decodes greedily;
    top_p, top_k: what is left to sample from (1.0 and 0 leave everything); num_beams: beam search, greedy only;
    seed: of the noise of every sampled reply.

    Raises:
        ValueError: a setting outside its range, or one that another setting makes meaningless.
    """

    max_new_tokens: int = 64
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    num_beams: int = 1
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        rules = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "min_new_tokens": (0 <= self.min_new_tokens <= self.max_new_tokens, "between 0 and max_new_tokens"),
            "temperature": (self.temperature >= 0, "0 (greedy) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k >= 0, "0 (off) or more"),
            "num_beams": (self.num_beams >= 1, "at least 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0 (1 is off)"),
        }
        for name, (right, wanted) in rules.items():
            if not right:
                raise ValueError(f"{name}={getattr(self, name)}: it must be {wanted}")
        if self.temperature and self.num_beams > 1:
            raise ValueError("sampling with beams is not offered; use temperature=0 or num_beams=1")
        if not self.temperature and (self.top_p < 1 or self.top_k):
            raise ValueError("top_p and top_k only act on sampling; give a temperature above 0 or leave them out")

    def to_json(self) -> dict[str, Any]:
        """The settings as a plain dictionary."""
        return asdict(self)
