"""Typed access to the keys of one raw record; every refusal names place, record, key and fix."""

from __future__ import annotations

import difflib
from collections import Counter
from typing import Any

from hacl.data.schema import HALLUCINATION_TYPES, HallucinatedCaption, RecordError, Turn

IMAGE_KEYS = ("image", "images")
CAPTION_KEYS = ("captions", "caption", "text")
UPSTREAM_HALLUCINATED_KEYS = ("Hallucination caption", "Hallucination captions", "hallucination_caption")
KNOWN_KEYS = {
    "id", "image_id", "hallucinated", "conversations", "objects", *IMAGE_KEYS, *CAPTION_KEYS,
    *UPSTREAM_HALLUCINATED_KEYS,
}  # fmt: skip
LONGEST_TEXT = 1_000_000  # characters
LONGEST_NAME = 2_000  # of an id or a path
_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}


class Fields:
    """One raw record (a decoded JSON object) and where it was found ("file:line")."""

    def __init__(self, raw: dict[str, Any], where: str):
        self.raw = raw
        self.where = where

    def error(self, key: str, problem: str, fix: str) -> RecordError:
        name = self.raw.get("id")
        record = f" record {shown(name)}" if isinstance(name, (str, int)) else ""
        return RecordError(f"{self.where}:{record} key {shown(key)}: {problem}; {fix}")

    def identifier(self, key: str) -> str:
        value = self.raw.get(key)
        if value is None:
            return ""
        if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
            raise self.error(key, f"found {kind_of(value)}", "write a non-empty text or a whole number")
        if (value.bit_length() if isinstance(value, int) else len(value)) > LONGEST_NAME:
            raise self.error(key, f"longer than {LONGEST_NAME} characters", "shorten it")
        return self.text(key, str(value), strip=False)

    def text(self, key: str, value: Any, *, strip: bool = True) -> str:
        if not isinstance(value, str):
            raise self.error(key, f"expected text, found {kind_of(value)}", "write a JSON string")
        if not value.strip():
            raise self.error(key, "empty text", "fill it in or leave the key out")
        if len(value) > LONGEST_TEXT:
            raise self.error(key, f"{len(value):,} characters, the limit is {LONGEST_TEXT:,}", "shorten the text")
        if "\0" in value:
            raise self.error(key, "a NUL character in the text", "remove it")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.error(key, "half of a surrogate pair, which no UTF-8 file can hold", "mend the escape") from None
        return value.strip() if strip else value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.raw.get(key)
        if value is None:
            return ()
        if isinstance(value, list):
            return tuple(self.text(f"{key}[{index}]", item) for index, item in enumerate(value))
        return (self.text(key, value),)

    def images(self) -> tuple[str, ...]:
        """Paths under `image` or `images`, each a text or a list; where both are filled they must agree."""
        found = [paths for key in IMAGE_KEYS if (paths := self._image_paths(key))]
        if len(set(found)) > 1:
            raise self.error("images", "names other images than `image`", "keep one of the two keys")
        return found[0] if found else ()

    def _image_paths(self, key: str) -> tuple[str, ...]:
        value = self.raw.get(key)
        if value is None or value == []:
            return ()
        values = value if isinstance(value, list) else [value]
        paths = tuple(self.text(key, item, strip=False) for item in values)
        if any(len(path) > LONGEST_NAME for path in paths):
            raise self.error(key, f"a path of more than {LONGEST_NAME} characters", "shorten it")
        return paths

    def captions(self) -> tuple[str, ...]:
        for key in CAPTION_KEYS:
            if found := self.texts(key):
                return found
        return ()

    def upstream_hallucinated(self) -> tuple[str, ...]:
        return tuple(text for key in UPSTREAM_HALLUCINATED_KEYS for text in self.texts(key))

    def conversation(self) -> tuple[Turn, ...]:
        value = self.raw.get("conversations")
        if value is None:
            return ()
        if not isinstance(value, list):
            raise self.error("conversations", f"expected a list of turns, found {kind_of(value)}", "write a JSON list")
        turns = tuple(self._turn(f"conversations[{index}]", turn) for index, turn in enumerate(value))
        if turns and turns[0].role != "user":
            fix = "chat templates begin with the user: add a question or remove the turn"
            raise self.error("conversations[0]", "the first turn is the assistant's", fix)
        return turns

    def _turn(self, key: str, turn: Any) -> Turn:
        if not isinstance(turn, dict):
            raise self.error(key, f"expected a turn, found {kind_of(turn)}", 'write {"role": ..., "content": ...}')
        role = turn.get("role", turn.get("from"))
        if not isinstance(role, str) or role not in _ROLES:
            raise self.error(key, f"role {shown(role)} is unknown", f"use one of {', '.join(_ROLES)}")
        return Turn(_ROLES[role], self.text(key, turn.get("content", turn.get("value")), strip=False))

    def hallucinated(self, num_captions: int) -> tuple[HallucinatedCaption, ...]:
        value = self.raw.get("hallucinated")
        if value is None:
            return ()
        if not isinstance(value, list):
            raise self.error("hallucinated", f"expected a list, found {kind_of(value)}", "write a JSON list of objects")
        return tuple(self._hallucinated(f"hallucinated[{i}]", item, num_captions) for i, item in enumerate(value))

    def _hallucinated(self, key: str, item: Any, num_captions: int) -> HallucinatedCaption:
        if isinstance(item, str):
            item = {"text": item}
        if not isinstance(item, dict):
            raise self.error(key, f"expected an object, found {kind_of(item)}", 'write {"text": ..., "type": ...}')
        text = self.text(f"{key}.text", item.get("text"), strip=item.get("span") is None)
        kind = item.get("type", "other")
        if kind not in HALLUCINATION_TYPES:
            near = difflib.get_close_matches(str(kind)[:100], HALLUCINATION_TYPES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(HALLUCINATION_TYPES)}"
            raise self.error(f"{key}.type", f"{shown(kind)} is unknown", hint)
        span = item.get("span")
        if span is not None:
            if not (isinstance(span, (list, tuple)) and len(span) == 2 and all(type(edge) is int for edge in span)):
                raise self.error(f"{key}.span", f"found {shown(span)}", "write [start, end] as whole numbers")
            if not 0 <= span[0] <= span[1] <= len(text):
                raise self.error(
                    f"{key}.span", f"{shown(list(span))} leaves a text of {len(text)} characters", "mend it"
                )
            span = (span[0], span[1])
        of = item.get("of")
        if of is not None and not (type(of) is int and 0 <= of < num_captions):
            raise self.error(f"{key}.of", f"{shown(of)} is no index into {num_captions} caption(s)", "mend or drop it")
        source = item.get("source", "")
        if not isinstance(source, str):
            raise self.error(f"{key}.source", f"expected text, found {kind_of(source)}", "write a JSON string")
        return HallucinatedCaption(text, kind, span, source, of)

    def objects(self) -> dict[str, int] | None:
        """name -> count; in a list of names each occurrence counts one."""
        value = self.raw.get("objects")
        if value is None:
            return None
        if isinstance(value, list):
            return dict(Counter(self.text(f"objects[{index}]", name) for index, name in enumerate(value)))
        if not isinstance(value, dict):
            fix = 'write {"dog": 1, ...} or ["dog", ...], or null where the image is not annotated'
            raise self.error("objects", f"expected names with counts or a list, found {kind_of(value)}", fix)
        for name, count in value.items():
            self.text(f"objects.{name}", name)
            if type(count) is not int or not 1 <= count < 2**31:
                raise self.error(f"objects.{name}", f"count {shown(count)}", "write a number above 0, no absent ones")
        return dict(value)


def shown(value: Any) -> str:
    """`repr` for a message, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes out no integer of many thousand digits
        return kind_of(value)
    return text if len(text) <= 100 else text[:100] + "..."


def kind_of(value: Any) -> str:
    """The JSON word for a value, for messages."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true/false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
