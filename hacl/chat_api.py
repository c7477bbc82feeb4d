"""A client for any OpenAI-compatible chat endpoint: many requests, each answered once, paid for once.

Requests run in threads; failures that may pass are tried again with growing pauses; replies are kept on disk by the
hash of model, messages and decoding, errors never. Text given to it leaves this machine for `base_url`; images do only
with `allow_images=True`. The key is read from the environment and goes into one request header, nowhere else.
"""

from __future__ import annotations

import hashlib
import json
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hacl.chat_api_cache import ReplyCache
from hacl.chat_api_cost import CostEstimate, Spending, dollars, message_tokens, text_tokens
from hacl.chat_api_http import ChatError, Endpoint, Pace, TryAgain, reply_text
from hacl.chat_api_types import ChatReply, ChatRequest, Decoding, first_token, image_part

__all__ = ["ChatClient", "ChatError", "ChatReply", "ChatRequest", "CostEstimate", "Decoding", "image_part"]

LONGEST_PAUSE_S = 60.0
LONGEST_ASKED_PAUSE_S = 600.0


class _Stopped(Exception):
    """The call this work belonged to has ended."""


class _Call:
    """State of one `complete_many`: when to stop, why, and how many requests in a row failed for good."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.reason: BaseException | None = None
        self.failed_in_a_row = 0


class ChatClient:
    """Asks `model` at `base_url` (the address that /chat/completions follows).

    cache: JSONL file of replies; made where absent. One process at a time.
    concurrency: requests under way at once. requests_per_minute: attempts started, retries included; None: no limit.
    timeout_s: seconds for one attempt. max_retries: further attempts of one request.
    give_up_after: requests in a row that failed for good before the run ends; refusals of content do not count.
    price_in, price_out: dollars per million tokens, for estimate and report.
    first_pause_s: pause before the first retry; it doubles up to a minute, with jitter. Retry-After wins if longer.

    Raises:
        ValueError: address, key, cache or a number cannot be used.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        cache: Path | str,
        api_key_env: str = "OPENAI_API_KEY",
        concurrency: int = 4,
        requests_per_minute: float | None = None,
        timeout_s: float = 60.0,
        max_retries: int = 6,
        price_in: float | None = None,
        price_out: float | None = None,
        allow_images: bool = False,
        first_pause_s: float = 1.0,
        give_up_after: int = 5,
    ):
        if concurrency < 1 or max_retries < 0 or timeout_s <= 0 or give_up_after < 1:
            raise ValueError("concurrency, timeout_s and give_up_after must be positive, max_retries not negative")
        if requests_per_minute is not None and requests_per_minute <= 0:
            raise ValueError(f"requests_per_minute={requests_per_minute}: must be positive")
        if not model:
            raise ValueError("model: name the model that the server offers")
        self.endpoint = Endpoint(base_url, api_key_env, timeout_s)
        self.model, self.concurrency, self.max_retries = model, concurrency, max_retries
        self.allow_images, self.first_pause_s, self.give_up_after = allow_images, first_pause_s, give_up_after
        self.spending = Spending(price_in=price_in, price_out=price_out)
        self.cache = ReplyCache(cache)
        self._pace = Pace(requests_per_minute)
        self._lock = threading.Lock()
        self._under_way: dict[str, Future[dict[str, Any]]] = {}
        self._jitter = random.Random()

    def __enter__(self) -> ChatClient:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the cache free for another process."""
        self.cache.close()

    def body(self, request: ChatRequest) -> dict[str, Any]:
        """The JSON object that would be sent."""
        return {"model": self.model, "messages": list(request.messages), **request.decoding.body()}

    def key(self, request: ChatRequest) -> str:
        """Sha256 of model, messages and decoding: equal requests have equal keys."""
        return hashlib.sha256(json.dumps(self.body(request), sort_keys=True).encode("ascii")).hexdigest()

    def estimate(self, requests: Sequence[ChatRequest]) -> CostEstimate:
        """What asking these would take now, without asking."""
        self._check(requests)
        fresh = {self.key(request): request for request in requests}
        distinct = len(fresh)
        fresh = {key: request for key, request in fresh.items() if self.cache.get(key) is None}
        prompt = sum(message_tokens(request.messages) for request in fresh.values())
        completion = sum(request.decoding.max_tokens for request in fresh.values())
        cost = dollars(prompt, completion, self.spending.price_in, self.spending.price_out)
        repeated = len(requests) - distinct
        return CostEstimate(len(requests), len(fresh), distinct - len(fresh), repeated, prompt, completion, cost)

    def complete_many(self, requests: Sequence[ChatRequest]) -> Iterator[ChatReply]:
        """Replies in the order of the requests. Equal requests are asked once, known ones not at all.

        Each reply is in the cache as soon as it arrives, also while an earlier one is awaited. Leaving the
        iteration, by an interrupt too, starts nothing more and waits for what is under way, which is kept.

        Raises:
            ValueError: a request holds an image without `allow_images`, or a malformed message.
            ChatError: the server refuses every request (key, model, address, quota), or many in a row failed.
        """
        self._check(requests)
        return self._replies(requests)

    def _replies(self, requests: Sequence[ChatRequest]) -> Iterator[ChatReply]:
        call = _Call()
        pool = ThreadPoolExecutor(max_workers=self.concurrency, thread_name_prefix="chat")
        try:
            keys = [self.key(request) for request in requests]
            work: dict[str, Future[ChatReply]] = {}
            for key, request in zip(keys, requests, strict=True):
                if key not in work and self.cache.get(key) is None:
                    work[key] = pool.submit(self._answer, key, request, call)
            for key, request in zip(keys, requests, strict=True):
                if (future := work.get(key)) is None:
                    yield self._known(key, request)
                    continue
                try:
                    reply = future.result()
                except _Stopped:
                    raise call.reason or ChatError("stopped") from None
                yield ChatReply(**{**vars(reply), "id": request.id})
        finally:
            call.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def _known(self, key: str, request: ChatRequest) -> ChatReply:
        with self._lock:
            self.spending.cached += 1
        return _reply(request, self.cache.get(key) or {}, cached=True)

    def _answer(self, key: str, request: ChatRequest, call: _Call) -> ChatReply:
        """One reply in a worker thread: from the cache, from whoever is asking the same, or from the server."""
        while not call.stop.is_set():
            with self._lock:
                row = self.cache.get(key)
                theirs = self._under_way.get(key)
                if row is None and theirs is None:
                    mine = self._under_way[key] = Future()
                    break
            if row is not None:
                return self._known(key, request)
            try:
                return _reply(request, theirs.result(), cached=True)
            except _Stopped:
                continue
            except ChatError as error:
                return ChatReply(request.id, "", error=str(error))
        else:
            raise _Stopped
        try:
            row = self._ask(request, call)
            self.cache.put(key, row)
            mine.set_result(row)
        except BaseException as error:  # whoever waits for this reply must hear of any end
            mine.set_exception(error)
            if isinstance(error, ChatError):
                return self._failed(request, error, call)
            if isinstance(error, _Stopped):
                raise
            call.reason = call.reason or error  # a full disk, for one
            call.stop.set()
            raise _Stopped from error
        finally:
            with self._lock:
                del self._under_way[key]
        call.failed_in_a_row = 0
        return _reply(request, row, cached=False)

    def _failed(self, request: ChatRequest, error: ChatError, call: _Call) -> ChatReply:
        with self._lock:
            self.spending.failed += 1
            call.failed_in_a_row += not error.about_content
            if error.ends_run or call.failed_in_a_row >= self.give_up_after:
                many = "" if error.ends_run else f"{call.failed_in_a_row} requests in a row failed, the last one: "
                call.reason = call.reason or ChatError(f"{self.endpoint.base_url}: {many}{error}", ends_run=True)
                call.stop.set()
        if call.reason is not None:
            raise _Stopped
        return ChatReply(request.id, "", error=str(error))

    def _ask(self, request: ChatRequest, call: _Call) -> dict[str, Any]:
        """The cache row of a fresh reply, after as many attempts as are allowed."""
        body = json.dumps(self.body(request)).encode("ascii")
        for attempt in range(self.max_retries + 1):
            if not self._pace.wait(call.stop):
                raise _Stopped
            with self._lock:
                self.spending.attempts += 1
            try:
                answer = self.endpoint.post(body)
                text, finish = reply_text(answer, request.decoding.max_tokens)
                return self._row(request, answer, text, finish)
            except TryAgain as failure:
                last = failure
            with self._lock:
                self.spending.failures[last.kind] += 1
                jitter = self._jitter.uniform(0.5, 1.0)
            if attempt == self.max_retries:
                break
            pause = min(LONGEST_PAUSE_S, self.first_pause_s * 2**attempt) * jitter
            if last.after is not None:
                if last.after > LONGEST_ASKED_PAUSE_S:
                    message = f"{last}; the server asks to wait {last.after:,.0f} s: run again then"
                    raise ChatError(message, ends_run=True)
                self._pace.hold(last.after)
                pause = max(pause, last.after)
            if call.stop.wait(pause):
                raise _Stopped
        raise ChatError(f"{self.max_retries + 1} attempts failed, the last one: {last}")

    def _row(self, request: ChatRequest, answer: Mapping[str, Any], text: str, finish: str) -> dict[str, Any]:
        counted = answer.get("usage") if isinstance(answer.get("usage"), Mapping) else {}
        usage = {name: counted.get(name) for name in ("prompt_tokens", "completion_tokens")}
        whole = all(isinstance(value, int) and value >= 0 for value in usage.values())
        with self._lock:
            self.spending.replies += 1
            self.spending.uncounted += not whole
            self.spending.prompt_tokens += usage["prompt_tokens"] if whole else message_tokens(request.messages)
            self.spending.completion_tokens += usage["completion_tokens"] if whole else text_tokens(text)
        return {
            "model": self.model,
            "base_url": self.endpoint.base_url,
            "decoding": request.decoding.body(),
            "text": text,
            "finish_reason": finish,
            "usage": usage if whole else None,
            "logprobs": first_token(answer["choices"][0]),
            "time": round(time.time(), 3),
        }

    def _check(self, requests: Sequence[ChatRequest]) -> None:
        for request in requests:
            for message in request.messages:
                content = message.get("content")
                if isinstance(content, str):
                    continue
                if not isinstance(content, list) or not all(isinstance(p, Mapping) and "type" in p for p in content):
                    raise ValueError(f"request {request.id!r}: content must be text or a list of typed parts")
                if not self.allow_images and any(part["type"] != "text" for part in content):
                    message = f"request {request.id!r} holds an image, which would go to {self.endpoint.base_url}"
                    raise ValueError(f"{message}; say so with allow_images=True (--allow-images)")


def _reply(request: ChatRequest, row: Mapping[str, Any], *, cached: bool) -> ChatReply:
    pairs = row.get("logprobs")
    logprobs = None if pairs is None else tuple((str(token), float(value)) for token, value in pairs)
    finish = row.get("finish_reason", "")
    return ChatReply(request.id, row["text"], finish, row.get("usage"), logprobs, cached)
