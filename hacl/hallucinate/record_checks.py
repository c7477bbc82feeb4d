"""What is wrong with one record by its texts alone, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from hacl.data.images import check_relative
from hacl.data.records import HallucinatedCaption, Record
from hacl.hallucinate.english import same_text_key, words_of
from hacl.hallucinate.lexicon import Lexicon


def record_problems(record: Record, lexicon: Lexicon) -> Iterator[tuple[str, str]]:
    """(kind, message) of each problem. lexicon: recognises objects in hallucinated captions."""
    yield from _text_problems(record, lexicon)
    for image in record.images:
        try:
            check_relative(image)
        except ValueError as error:
            yield "image path", str(error)


def _text_problems(record: Record, lexicon: Lexicon) -> Iterator[tuple[str, str]]:
    captions = {same_text_key(text): index for index, text in reversed(list(enumerate(record.captions)))}
    if len(captions) < len(record.captions):
        yield "duplicate caption", "two captions are the same; keep one"
    seen: dict[tuple[str, ...], int] = {}
    for index, caption in enumerate(record.hallucinated):
        key = same_text_key(caption.text)
        if key in captions:
            same = f"captions[{captions[key]}]"
            yield "hallucinated is true", f"hallucinated[{index}] says the same as {same}; remove or rewrite it"
        if key in seen:
            yield "duplicate hallucinated", f"hallucinated[{index}] repeats hallucinated[{seen[key]}]; remove one"
        seen.setdefault(key, index)
        if names := _present(caption, record, lexicon):
            what = ", ".join(names)
            yield "object is present", f"hallucinated[{index}] adds {what}, which `objects` says is there; rewrite it"
    yield from _conversation_problems(record)


def _conversation_problems(record: Record) -> Iterator[tuple[str, str]]:
    """What a chat template cannot render, or renders without anything to learn from."""
    roles = [turn.role for turn in record.conversation]
    if roles and "assistant" not in roles:
        yield "no answer", "no turn of the assistant, so the conversation gives no label; add an answer or remove it"
    for index, (before, role) in enumerate(pairwise(roles), start=1):
        if before == role:
            yield "turns", f"conversations[{index}] is a second turn of the {role} in a row; join the two"
    marks = sum(turn.text.count("<image>") for turn in record.conversation if turn.role == "user")
    if record.conversation and marks != len(record.images):
        yield "image marks", f"{len(record.images)} image(s) but {marks} <image> mark(s); write one mark per image"
    if not record.conversation and len(record.images) > 1:
        yield "image marks", f"{len(record.images)} images without a conversation that places them; write one"


def _present(caption: HallucinatedCaption, record: Record, lexicon: Lexicon) -> list[str]:
    """Objects of the edited words that are annotated in the image, for edits that should add an absent one."""
    if caption.type not in ("object", "insertion") or caption.span is None or not record.objects or caption.of is None:
        return []
    before = {mention.kind.name for mention in lexicon.mentions(words_of(record.captions[caption.of]))}
    inside = lexicon.mentions(words_of(caption.text[slice(*caption.span)]))
    added = {mention.kind.name for mention in inside if mention.word in mention.kind.words}
    return sorted((added - before) & record.objects.keys())
