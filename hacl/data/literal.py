"""Keep what data says apart from what a chat template writes: a special token in a text is encoded as the text it is.

A record's text that holds `</s>`, `<|im_start|>` or a family's image token would otherwise end a turn, open one of
another role or stand for an image, because a tokenizer reads rendered text and not who wrote it. Texts are marked
before the template renders them (`LiteralText.mark`), and marked stretches are encoded without special tokens.
Role names that are plain words ("USER:") cannot be told from text by any tokenizer and stay what they are.
"""

from __future__ import annotations

import re

OPEN, CLOSE = "\U000f0000", "\U000f0001"  # of a private-use plane: no tokenizer has them, no template writes them
_MARKED = re.compile(f"{OPEN}([^{OPEN}{CLOSE}]*){CLOSE}|[{OPEN}{CLOSE}]")

Places = list[tuple[int, int]]


class LiteralText:
    """Marks and encodes texts for one tokenizer."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        longest_first = sorted(special, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def mark(self, text: str) -> str:
        """The text with marks around each special token it holds, and without marks of its own."""
        return self._special.sub(f"{OPEN}\\g<0>{CLOSE}", _unmarked(text))

    def count(self, text: str) -> int:
        """How many special tokens a text holds."""
        return sum(1 for _ in self._special.finditer(text))

    def ids(self, text: str) -> list[int]:
        """Token ids of a text that is all data; none of them is a special token."""
        return self._encode(_unmarked(text), literal=True)[0]

    def encode(self, rendered: str) -> tuple[list[int], Places]:
        """Token ids of a rendering, and the characters of it that each stands for, [start, end)."""
        ids: list[int] = []
        places: Places = []
        start = 0
        for found in _MARKED.finditer(rendered):
            self._add(ids, places, rendered[start : found.start()], start)
            if found[1]:
                self._add(ids, places, found[1], found.start(1), literal=True)
            start = found.end()
        self._add(ids, places, rendered[start:], start)
        return ids, places

    def _add(self, ids: list[int], places: Places, piece: str, offset: int, literal: bool = False) -> None:
        if not piece:
            return
        # After a line break, which is taken away again: some tokenizers put a blank before the first word of a text.
        added, found = self._encode(f"\n{piece}" if ids else piece, literal)
        if ids and any(start < 1 < end for start, end in found):  # the line break is part of a longer token
            added, found = self._encode(piece, literal)
        elif ids:
            kept = [number for number, (_, end) in enumerate(found) if end > 1]
            added = [added[number] for number in kept]
            found = [(max(found[number][0] - 1, 0), found[number][1] - 1) for number in kept]
        ids += added
        places += [(offset + start, offset + end) for start, end in found]

    def _encode(self, text: str, literal: bool = False) -> tuple[list[int], Places]:
        found = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=literal
        )
        return found["input_ids"], found["offset_mapping"]


def _unmarked(text: str) -> str:
    return text.replace(OPEN, "").replace(CLOSE, "")
