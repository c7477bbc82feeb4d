"""One POST to an OpenAI-compatible server: what came back, or why it may be tried again, or why it must not.

Only the standard library is used. The key goes into one header and nowhere else: texts of the server pass through
`Endpoint.redacted` before they reach an exception, and redirects are refused because they would carry the header along.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

MAX_REPLY_BYTES = 32 << 20
READ_BYTES = 1 << 16
EXCERPT = 300
SECRET_LENGTH = 16  # shorter "keys" are placeholders such as EMPTY, whose letters may occur in honest replies
RETRIED = {408, 409, 425, 429}
ENDS_THE_RUN = {401, 402, 403, 404, 405}
# Error codes of providers that speak of one request's content.
CONTENT_CODES = ("content_filter", "content_policy", "context_length_exceeded", "string_above_max_length")
LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class TryAgain(Exception):
    """A failure that may pass. `kind` is a short name for counting, `after` the seconds the server asks to wait."""

    def __init__(self, kind: str, message: str, after: float | None = None):
        super().__init__(message)
        self.kind, self.after = kind, after


class ChatError(RuntimeError):
    """A failure that asking again does not cure.

    ends_run: it would hit every other request as well. about_content: it comes from what this one says (a filter, its
    length) and tells nothing about the others, however many fail.
    """

    def __init__(self, message: str, *, ends_run: bool = False, about_content: bool = False):
        super().__init__(message)
        self.ends_run, self.about_content = ends_run, about_content


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_args, **_kwargs):
        return None


class Endpoint:
    """`base_url`/chat/completions with a key from the environment variable `key_name` (unset or empty: no key).

    timeout_s: seconds for the whole of one attempt, connection and body included.

    Raises:
        ValueError: the address or the variable's content cannot be used.
    """

    def __init__(self, base_url: str, key_name: str, timeout_s: float):
        self.base_url = usable_url(base_url)
        self.url = self.base_url + "/chat/completions"
        self.key_name = key_name
        self.timeout_s = timeout_s
        self._key = os.environ.get(key_name, "").strip() if key_name else ""
        if not self._key.isascii() or not self._key.isprintable() or " " in self._key:
            raise ValueError(f"environment variable {key_name}: holds characters that no key has; set it again")
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
        if urlsplit(self.base_url).hostname in LOOPBACK:
            handlers.append(urllib.request.ProxyHandler({}))  # a proxy of the environment cannot reach this machine
        self._opener = urllib.request.build_opener(*handlers)

    @property
    def has_key(self) -> bool:
        return bool(self._key)

    @property
    def sends_key_in_clear(self) -> bool:
        """Whether the key would cross a network unencrypted."""
        parts = urlsplit(self.base_url)
        return self.has_key and parts.scheme == "http" and parts.hostname not in LOOPBACK

    def redacted(self, text: str) -> str:
        """`text` without the key."""
        return text.replace(self._key, "[key]") if self._key else text

    def post(self, body: bytes) -> dict[str, Any]:
        """The server's JSON object.

        Raises:
            TryAgain: time-out, broken connection, HTTP 408, 409, 425, 429 or 5xx, cut or malformed JSON.
            ChatError: any other answer.
        """
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "hacl"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.url, data=body, headers=headers, method="POST")
        deadline = time.monotonic() + self.timeout_s
        try:
            with self._opener.open(request, timeout=self.timeout_s) as response:
                content = self._read(response, deadline)
        except urllib.error.HTTPError as error:
            with error:
                self._refuse(error, deadline)
        except ssl.SSLCertVerificationError as error:
            raise ChatError(f"{self.url}: certificate not accepted ({error.verify_message})", ends_run=True) from None
        except TimeoutError:
            raise TryAgain("timeout", f"no reply within {self.timeout_s:g} s") from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                message = f"{self.url}: certificate not accepted ({error.reason.verify_message})"
                raise ChatError(message, ends_run=True) from None
            kind = "timeout" if isinstance(error.reason, TimeoutError) else "connection"
            raise TryAgain(kind, f"{self.url}: {self.redacted(str(error.reason))}") from None
        except (http.client.HTTPException, OSError) as error:
            raise TryAgain("connection", f"connection broke ({type(error).__name__})") from None
        text = content.decode("utf-8", errors="replace")
        if len(self._key) >= SECRET_LENGTH:
            text = self.redacted(text)
        try:
            parsed = json.loads(text)
        except (json.JSONDecodeError, RecursionError):
            raise TryAgain("malformed", f"reply is not JSON: {text[:EXCERPT]!r}") from None
        if not isinstance(parsed, dict):
            raise TryAgain("malformed", f"reply is JSON but no object: {text[:EXCERPT]!r}")
        return parsed

    def _read(self, response: http.client.HTTPResponse, deadline: float) -> bytes:
        """The whole body before the deadline; a body shorter than announced is a failure that may pass."""
        content = bytearray()
        while chunk := response.read1(READ_BYTES):
            content += chunk
            if len(content) > MAX_REPLY_BYTES:
                raise ChatError(f"{self.url}: reply exceeds {MAX_REPLY_BYTES >> 20} MiB")
            if time.monotonic() > deadline:
                raise TimeoutError
        announced = response.headers.get("Content-Length", "")
        if announced.isdigit() and len(content) < int(announced):
            raise TryAgain("malformed", f"reply cut off after {len(content)} of {announced} bytes")
        return bytes(content)

    def _refuse(self, error: urllib.error.HTTPError, deadline: float) -> None:
        """Raise what an HTTP status means."""
        try:
            body = self._read(error, deadline).decode("utf-8", errors="replace")
        except (TryAgain, ChatError, http.client.HTTPException, OSError):
            body = ""
        said = self.redacted(body[: 4 * EXCERPT])[:EXCERPT].strip()
        message = f"HTTP {error.code}: {said or 'no explanation'}"
        if 300 <= error.code < 400:
            message += "; redirects are not followed: give the address it points to as base URL"
            raise ChatError(message, ends_run=True)
        if error.code == 429 and "insufficient_quota" in body:
            raise ChatError(message, ends_run=True)
        if error.code in RETRIED or error.code >= 500:
            raise TryAgain(f"http_{error.code}", message, retry_after(error.headers.get("Retry-After")))
        if error.code in (401, 403):
            held = "is set but was not accepted" if self.has_key else "is not set"
            message += f"; the key is read from environment variable {self.key_name!r}, which {held}"
        if error.code in (404, 405):
            message += f"; asked {self.url}: check the model name, and that the base URL ends where /chat/completions "
            message += "follows, usually in /v1"
        about_content = error.code == 413 or any(word in body for word in CONTENT_CODES)
        raise ChatError(message, ends_run=error.code in ENDS_THE_RUN, about_content=about_content)


def usable_url(base_url: str) -> str:
    """`base_url` without a trailing slash or /chat/completions.

    Raises:
        ValueError: not http(s), no host, or with credentials or a query, which would end in caches and reports.
    """
    url = base_url.strip().rstrip("/").removesuffix("/chat/completions").rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"base URL {base_url!r}: give http://HOST:PORT/v1 or https://HOST/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("base URL: user, password or query do not belong there; keys come from the environment")
    return url


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header (RFC 9110, 10.2.3): a number or a date; None where it says nothing usable."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


class Pace:
    """When the next request may start: evenly spaced, and not before the moment a server asked to wait for."""

    def __init__(self, requests_per_minute: float | None):
        self._gap = 60 / requests_per_minute if requests_per_minute else 0.0
        self._lock = threading.Lock()
        self._next = 0.0

    def wait(self, stop: threading.Event) -> bool:
        """Take the next slot and sleep until it comes. False if `stop` was set meanwhile."""
        with self._lock:
            start = max(self._next, time.monotonic())
            self._next = start + self._gap
        return not stop.wait(max(0.0, start - time.monotonic()))

    def hold(self, seconds: float) -> None:
        """Nobody starts for so many seconds."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


def reply_text(answer: Mapping[str, Any], max_tokens: int | None) -> tuple[str, str]:
    """Text and finish reason of the first choice.

    Raises:
        TryAgain: no choices, no text, text of a wrong type, an error object under HTTP 200.
        ChatError: the model refused, a filter cut in, or all tokens were used without any text.
    """
    if answer.get("error"):
        raise TryAgain("malformed", f"error under HTTP 200: {str(answer['error'])[:EXCERPT]}")
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        raise TryAgain("malformed", "reply has no choices")
    message = choices[0].get("message")
    finish = str(choices[0].get("finish_reason") or "")
    if not isinstance(message, Mapping):
        raise TryAgain("malformed", "first choice has no message")
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
        content = "".join(part for part in parts if isinstance(part, str))
    if finish == "content_filter":
        raise ChatError("the server's content filter cut the reply", about_content=True)
    if not content and isinstance(message.get("refusal"), str):
        raise ChatError(f"the model refused: {message['refusal'][:EXCERPT]}", about_content=True)
    if content is not None and not isinstance(content, str):
        raise TryAgain("malformed", f"content is a {type(content).__name__}, not text")
    if not content or not content.strip():
        if finish == "length":
            raise ChatError(f"no text within {max_tokens} tokens: allow more", about_content=True)
        raise TryAgain("malformed", "reply has no text")
    return content, finish
