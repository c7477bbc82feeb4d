"""A chat model behind any OpenAI-compatible endpoint writes hallucinated captions: it lists what a caption names, then
rewrites it.

Captions leave this machine for the endpoint; images never do. The two steps (list objects and attributes, then rewrite)
are those of HACL (arXiv 2312.06968, section 3.2); the words of the prompt are ours.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

from hacl.chat_api import ChatClient, ChatReply, ChatRequest, CostEstimate, Decoding
from hacl.data.records import HallucinatedCaption
from hacl.hallucinate.backends.base import BackendOption, Item, caption_of, checked_types
from hacl.hallucinate.backends.checks import check_text, keep_different
from hacl.hallucinate.context import ImageContext
from hacl.hallucinate.lexicon import Lexicon
from hacl.hallucinate.survey import Survey
from hacl.hallucinate.vocabulary import default_lexicon

PROMPT_VERSION = 1
PER_REQUEST = 8  # hallucinated captions asked for at once
_WHAT = {
    "object": "one thing is exchanged for another thing that the photo does not show",
    "attribute": "a colour, size, age, material or state is wrong",
    "number": "there are more or fewer of something",
    "relation": "where things are to each other is wrong",
    "action": "somebody or something does another thing",
    "event": "another thing happens as a whole",
    "insertion": "something that is not there is mentioned as well",
}
_SYSTEM = (
    "You help to test whether image captioning models look at the image. You get a true caption of a photo and write "
    "captions that a careless model might have written: nearly the same, but wrong about the photo. Answer with JSON "
    "only."
)
_TASK = """Caption: {caption}
{known}
First step: list what the caption names, as things with their attributes, numbers, places and actions.
Second step: write {count} wrong captions. In each, change one or two of the listed points so that anyone who sees the \
photo can tell that it is wrong. Keep the other words, the style, the grammar and about the length of the caption. \
Choose changes that are likely in such a scene and use everyday words; do not write "not" or "without", and nothing \
that may be true as well. Vary the kinds:
{kinds}

Answer: {{"named": ["..."], "captions": [{{"kind": "...", "text": "..."}}]}}"""


class ChatBackend:
    """base_url, model: of the endpoint; cache: JSONL of replies: nothing is paid for twice; see `ChatClient`."""

    name = "openai"
    is_local_cpu = False
    options: ClassVar[tuple[BackendOption, ...]] = (
        BackendOption("base_url", "address that /chat/completions follows (required)"),
        BackendOption("model", "name of the model at the endpoint (required)"),
        BackendOption("cache", "JSONL file of replies (required)"),
        BackendOption("api_key_env", "environment variable that holds the key", "OPENAI_API_KEY"),
        BackendOption("concurrency", "requests under way at once", 4, int),
        BackendOption("requests_per_minute", "at most so many attempts a minute", None, float),
        BackendOption("timeout_s", "seconds for one attempt", 60.0, float),
        BackendOption("max_retries", "further attempts of one request", 6, int),
        BackendOption("temperature", "of the sampling", 0.9, float),
        BackendOption("price_in", "dollars per million tokens sent", None, float),
        BackendOption("price_out", "dollars per million tokens received", None, float),
    )

    def __init__(
        self,
        *,
        base_url: str | None = None,
        model: str | None = None,
        cache: str | None = None,
        seed: int = 0,
        types: Sequence[str] | None = None,
        survey: Survey | None = None,
        temperature: float = 0.9,
        lexicon: Lexicon | None = None,
        **client_options: Any,
    ):
        if not base_url or not model or not cache:
            raise ValueError("backend openai: give base_url, model and cache")
        self.client = ChatClient(base_url, model, cache=cache, **client_options)
        self.seed, self.temperature = seed, temperature
        self.types = tuple(kind for kind in _WHAT if kind in checked_types(types))
        self.lexicon = default_lexicon() if lexicon is None else lexicon
        self.rejections: Counter[str] = Counter()

    def settings(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "types": sorted(self.types),
            "model": self.client.model,
            "temperature": self.temperature,
            "prompt_version": PROMPT_VERSION,
        }

    def requests(self, item: Item, k: int) -> list[ChatRequest]:
        """What is asked for one item: `PER_REQUEST` captions at a time, each time with another seed."""
        record, index = item
        caption = caption_of(item)
        others = [text for at, text in enumerate(record.captions) if at != index]
        known = "Other true captions of the photo: " + " | ".join(others) + "\n" if others else ""
        if record.objects:
            known += "The photo shows: " + ", ".join(sorted(record.objects)) + "\n"
        kinds = "\n".join(f"- {kind}: {_WHAT[kind]}" for kind in self.types)
        asked = []
        for part in range(math.ceil(k / PER_REQUEST)):
            count = min(PER_REQUEST, k - part * PER_REQUEST)
            task = _TASK.format(caption=caption, known=known, count=count, kinds=kinds)
            messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": task}]
            decoding = Decoding(max_tokens=120 + 60 * count, temperature=self.temperature, seed=self.seed + part)
            asked.append(ChatRequest(f"{record.id}/{index}/{part}", messages, decoding))
        return asked

    def estimate(self, items: Sequence[Item], k: int) -> CostEstimate:
        """What asking for these would take, without asking."""
        return self.client.estimate([request for item in items for request in self.requests(item, k)])

    def cost_report(self) -> str:
        """What was asked and what it cost so far."""
        return str(self.client.spending)

    def propose_batch(self, items: Sequence[Item], k: int) -> list[list[HallucinatedCaption]]:
        """See `Backend`. A request that fails for good counts as a rejection; the others of its item are used."""
        asked = [self.requests(item, k) for item in items]
        replies = self.client.complete_many([request for some in asked for request in some])
        results = []
        for item, some in zip(items, asked, strict=True):
            made = [caption for _ in some for caption in self._read(item, next(replies))]
            results.append(keep_different(made, k))
        return results

    def _read(self, item: Item, reply: ChatReply) -> list[HallucinatedCaption]:
        if reply.error is not None:
            self.rejections["no reply"] += 1
            return []
        rows = read_captions(reply.text)
        if rows is None:
            self.rejections["reply is not the JSON asked for"] += 1
            return []
        record, index = item
        context = ImageContext(record, index, self.lexicon)
        found = []
        for kind, text in rows:
            checked = check_text(context, text, f"{self.name}:{self.client.model}", kind=kind)
            if isinstance(checked, str):
                self.rejections[checked] += 1
            elif checked.type not in self.types:
                self.rejections["another type"] += 1
            else:
                found.append(checked)
        return found


def read_captions(text: str) -> list[tuple[str, str]] | None:
    """(kind, text) of each caption of a reply, None where there is no such JSON; what stands around it is ignored."""
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        return None
    try:
        content = json.loads(text[start : end + 1])
    except (json.JSONDecodeError, RecursionError):
        return None
    rows = content.get("captions")
    if not isinstance(rows, list):
        return None
    good = [row for row in rows if isinstance(row, dict) and isinstance(row.get("text"), str)]
    return [(str(row.get("kind", "")).strip().lower(), row["text"]) for row in good]
