"""Word tokens of lower-cased captions as ``nltk.word_tokenize`` gives them, without nltk and without its data.

Two steps. Sentences are found as Punkt does with NLTK's English parameters (Kiss and Strunk, 2006, sections 3-4). Of
these parameters only the abbreviations can matter in lower case: what its orthographic step asks for is a capital.
Words are split by the Penn Treebank conventions as NLTKWordTokenizer extends them (nltk 3.9, Apache-2.0).

Most captions need none of the rules: a piece between blanks without quotes or brackets splits the same way in every
sentence, so pieces are split once and remembered.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# NLTK's English Punkt model (J. Strunk, trained on Wall Street Journal text), words that may end in a full stop.
ABBREVIATIONS = frozenset(
    (
        "a.a a.c a.d a.g a.h a.m a.m.e a.s a.t adm ala ariz aug ave b.f b.v bros c c.i.t c.o.m.b c.v calif chg "
        "cie co col colo conn corp cos ct d d.c d.h d.w dec dr e e.f e.h e.l e.m f f.g f.j feb fla fri ft g g.d "
        "g.f g.k ga gen h h.c h.f h.m i.m.s ill inc j.b j.c j.j j.k j.p j.r jan jr k kan ky l l.a l.f l.p lt ltd "
        "m m.b.a m.d.c m.j maj messrs mg mich minn mr mrs ms n n.c n.d n.h n.j n.m n.v n.y nev nov oct ok okla "
        "ore p p.a.m p.m pa ph.d prof r r.a r.h r.i r.j r.k r.t rep reps s s.a s.a.y s.c s.g s.p.a s.s sen sep "
        "sept sr st sw t t.j tenn tues u.k u.n u.s u.s.a u.s.s.r v va vs vt w w.c w.r w.va w.w wash wed wis yr"
    ).split()
) | {". . "}
_NOT_IN_WORDS = r"[)\";}\]*:@'({\[?!]"
_STOP = re.compile(rf"[.?!](?=(?P<after>{_NOT_IN_WORDS}|\s+(?P<next>\S+)))")
_DOTS = r"(?:-{2,}|\.{2,}|(?:\.\s){2,}\.)"
_CONTEXT_TOKEN = re.compile(
    rf"{_DOTS}|(?=[^(\"`{{\[:;&#*@)}}\]\-,])\S+?(?=\s|$|{_NOT_IN_WORDS}|{_DOTS}|,(?=$|\s|{_NOT_IN_WORDS}|{_DOTS}))|\S"
)
_NUMBER = re.compile(r"-?[.,]?\d[\d,.\-]*\.?$")
_CLOSERS = re.compile(r"[\"')\]}]+?(?:\s+|(?=--)|$)", re.MULTILINE)
_PLAIN_WORD = re.compile(r"[a-z]{2,}$")
_BLANKS = " \n\t\r\v\f"
_LONG_BLANK = re.compile(r"\s{64,}")

# Rules in order. The first group is applied to the sentence, the second to the result with a blank on either side.
_OPENING = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"([«“‘„]|`+)", r" \1 "),
        (r'^"', "``"),
        (r"``", " `` "),
        (r"([ (\[{<])(?:\"|'{2})", r"\1 `` "),
        (r"'(?!re|ve|ll|m|t|s|d|n)(\w)\b", r"' \1"),
        (r"([^.])\.([\])}>\"'»”’ ]*)\s*$", r"\1 . \2 "),  # only the last full stop of a sentence is a token
        (r"([:,])(\D|$)", r" \1 \2"),
        (r"(\.{2,}|[;@#$%&?!*])", r" \1 "),
        (r"([^'])' ", r"\1 ' "),
        (r"([\[\](){}<>]|--)", r" \1 "),
    )
)
_CLOSING = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"([»”’])", r" \1 "),
        (r"''|\"", " '' "),
        (r"\s+", " "),
        (r"([^' ])('[smd]?) ", r"\1 \2 "),
        (r"([^' ])('ll|'re|'ve|n't) ", r"\1 \2 "),
        (r"\b(can)(not)\b", r" \1 \2 "),
        (r"\b(d)('ye)\b", r" \1 \2 "),
        (r"\b(gim|lem)(me)\b", r" \1 \2 "),
        (r"\b(gon)(na)\b", r" \1 \2 "),
        (r"\b(got)(ta)\b", r" \1 \2 "),
        (r"\b(more)('n)\b", r" \1 \2 "),
        (r"\b(wan)(na)(?=\s)", r" \1 \2 "),
        (r" ('t)(is|was)\b", r" \1 \2 "),
    )
)
# What makes the split of a piece depend on its neighbours: quotes, brackets, a lone apostrophe at the end.
_NOT_LOCAL = re.compile(r"[^\w\s,.;:!?'&%$#@*/+=~^|\\-]|''")
_CACHE_ENTRIES, _CACHE_LENGTH = 200_000, 40


def sentences(text: str) -> Iterator[str]:
    """The sentences of a lower-cased text, without the blanks between them."""
    pieces = list(_pieces(text))
    taken = 0
    for number, (start, end) in enumerate(pieces):
        start += taken
        taken = 0
        if number + 1 < len(pieces):
            # A quote or bracket that closes after the full stop belongs to the sentence before.
            next_start, next_end = pieces[number + 1]
            closing = _CLOSERS.match(text[next_start:next_end])
            if closing:
                end, taken = next_start + len(closing.group().rstrip()), closing.end()
        if start < end:
            yield text[start:end]


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for stop, word_start in _stops(text):
        word, after = text[word_start : stop.start()], stop.group("after")
        if _ends_sentence(word, stop.group(), after):
            yield start, stop.end()
            start = stop.start("next") if stop.group("next") else stop.end()
    yield start, len(text.rstrip())


def _stops(text: str) -> Iterator[tuple[re.Match[str], int]]:
    """Places where a sentence may end, each with the start of its word; of several in one word only the last."""
    before: tuple[re.Match[str], int] | None = None
    word_start = word_end = 0
    for stop in _STOP.finditer(text):
        gap = text[word_end : stop.start()]
        blank = max(map(gap.rfind, _BLANKS))
        word_start = word_end + blank + 1 if blank > 0 else word_start
        if before is not None and word_end <= word_start:
            yield before
        before, word_end = (stop, word_start), stop.start()
    if before is not None:
        yield before


def _ends_sentence(word: str, mark: str, after: str) -> bool:
    if mark == "." and _PLAIN_WORD.match(word) and word not in ABBREVIATIONS:
        return True
    tokens = _CONTEXT_TOKEN.findall(word + mark + after)
    return any(map(_breaks, tokens, tokens[1:]))


def _breaks(token: str, following: str) -> bool:
    if token in (".", "?", "!"):
        return True
    if not token.endswith(".") or token.endswith(".."):
        return False
    bare = token[:-1]
    if bare in ABBREVIATIONS or bare.split("-")[-1] in ABBREVIATIONS:
        return False
    if (len(bare) == 1 and bare.isalpha()) or _NUMBER.match(token):
        # An initial or an ordinal ends a sentence only if what follows is neither punctuation nor in lower case.
        return following not in (";", ":", ",", ".", "!", "?") and not following[0].islower()
    return True


def split_sentence(sentence: str) -> list[str]:
    """Treebank tokens of one sentence: every rule applied to the whole of it."""
    for pattern, new in _OPENING:
        sentence = pattern.sub(new, sentence)
    sentence = f" {sentence} "
    for pattern, new in _CLOSING:
        sentence = pattern.sub(new, sentence)
    return sentence.split()


def _short_blank(run: re.Match[str]) -> str:
    blank = run.group()
    return blank[0] + ("\n" if blank.strip(" ") else " ") + blank[-1]


class Tokenizer:
    """Tokens of captions; remembers how the pieces between blanks split."""

    def __init__(self) -> None:
        self._inside: dict[str, tuple[str, ...]] = {}
        self._last: dict[str, tuple[str, ...]] = {}

    def tokens(self, text: str) -> list[str]:
        """Tokens of a text in lower case, ``nltk.word_tokenize(text)``."""
        # Rules that try every length of a run of blanks would take quadratic time; no rule needs more than three.
        text = _LONG_BLANK.sub(_short_blank, text)
        found: list[str] = []
        for sentence in sentences(text):
            pieces = sentence.split()
            if not pieces:
                continue
            last = pieces.pop()
            if _NOT_LOCAL.search(sentence) or last == "'":
                found.extend(split_sentence(sentence))
                continue
            for piece in pieces:
                found.extend(self._inside.get(piece) or self._split(self._inside, piece, " w"))
            found.extend(self._last.get(last) or self._split(self._last, last, ""))
        return found

    @staticmethod
    def _split(cache: dict[str, tuple[str, ...]], piece: str, right: str) -> tuple[str, ...]:
        tokens = split_sentence(f"w {piece}{right}")
        split = tuple(tokens[1:-1] if right else tokens[1:])
        if len(piece) <= _CACHE_LENGTH:
            if len(cache) >= _CACHE_ENTRIES:
                cache.clear()
            cache[piece] = split
        return split
