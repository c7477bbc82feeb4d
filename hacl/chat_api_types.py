"""What goes to a chat endpoint and what comes back, as plain data: decoding, request, reply.

A request's key is a hash of everything the answer depends on; the caller's own id is not part of it.
"""

from __future__ import annotations

import base64
import math
import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Decoding:
    """How the server is to decode. `extra` is merged into the request; a None in it takes a field out.

    Servers that want another name for the limit: `extra={"max_tokens": None, "max_completion_tokens": 512}`.
    """

    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float | None = None
    seed: int | None = None
    top_logprobs: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """The fields as they are sent."""
        fields: dict[str, Any] = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        fields |= {"top_p": self.top_p, "seed": self.seed}
        if self.top_logprobs is not None:
            fields |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        return {name: value for name, value in {**fields, **self.extra}.items() if value is not None}


@dataclass(frozen=True)
class ChatRequest:
    """One conversation to continue. `id` is the caller's own and takes no part in the key."""

    id: str
    messages: Sequence[Mapping[str, Any]]
    decoding: Decoding = field(default_factory=Decoding)


@dataclass(frozen=True)
class ChatReply:
    """The continuation, or why there is none (`error`; `text` is then empty).

    logprobs: alternatives of the first token that is not blank as (token, log-probability), None where not given.
    """

    id: str
    text: str
    finish_reason: str = ""
    usage: Mapping[str, int] | None = None
    logprobs: tuple[tuple[str, float], ...] | None = None
    cached: bool = False
    error: str | None = None


def image_part(path: Path | str) -> dict[str, Any]:
    """A message part that carries an image file. Needs a client with `allow_images=True`."""
    kind = mimetypes.guess_type(str(path))[0]
    if kind is None or not kind.startswith("image/"):
        raise ValueError(f"{path}: not an image by its ending")
    data = base64.b64encode(Path(path).read_bytes()).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}


def first_token(choice: Mapping[str, Any]) -> list[list[Any]] | None:
    """[token, log-probability] of the alternatives of the first token that is not blank, None where there are none.

    Guards of the Llama-Guard kind write line breaks before their verdict.
    """
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    tokens = [one for one in content if isinstance(one, Mapping)] if isinstance(content, list) else []
    first = next((one for one in tokens if str(one.get("token", "")).strip()), None)
    if first is None:
        return None
    pairs = [[one.get("token"), one.get("logprob")] for one in first.get("top_logprobs") or [first]]
    usable = [[t, v] for t, v in pairs if isinstance(t, str) and isinstance(v, (int, float)) and not math.isnan(v)]
    return usable or None
