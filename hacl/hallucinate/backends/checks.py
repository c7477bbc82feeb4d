"""Checks of a hallucinated caption written elsewhere: what changed, of which type, and why it must not be used."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from hacl.data.records import HALLUCINATION_TYPES, HallucinatedCaption
from hacl.hallucinate.context import ImageContext
from hacl.hallucinate.english import FUNCTION_WORDS, Word, same_text_key, singular, words_of
from hacl.hallucinate.filters import MAX_LENGTH_RATIO, MIN_LENGTH_RATIO

MOST_CHANGED = 0.6  # share of the words; more is another caption and no edit of this one


@dataclass(frozen=True)
class Change:
    """added, removed: words of the text and of the caption that the other lacks; span: characters of the text."""

    added: tuple[Word, ...]
    removed: tuple[Word, ...]
    span: tuple[int, int]


def change_of(text: str, caption: str) -> Change:
    """The words in which a text differs from a caption, aligned in order."""
    new, old = words_of(text), words_of(caption)
    added: list[Word] = []
    removed: list[Word] = []
    matcher = difflib.SequenceMatcher(None, [w.text for w in old], [w.text for w in new], autojunk=False)
    for tag, i, j, k, m in matcher.get_opcodes():
        if tag != "equal":
            removed += old[i:j]
            added += new[k:m]
    span = (added[0].start, added[-1].end) if added else (0, len(text))
    return Change(tuple(added), tuple(removed), span)


def check_text(
    context: ImageContext,
    text: str,
    source: str,
    *,
    kind: str | None = None,
    most_changed: float = MOST_CHANGED,
) -> HallucinatedCaption | str:
    """The hallucinated caption, or the reason that forbids it.

    Refused are texts equal to a caption, of another length, changed beyond `most_changed` of the words, that only leave
    something out (entailed) or only say it in other words (paraphrase), and whose every new content word is said by a
    caption or names what is annotated.
    """
    text = " ".join(text.split())
    if not text:
        return "empty"
    if any(same_text_key(text) == same_text_key(other) for other in context.texts):
        return "same as a caption"
    length = len(words_of(text)) / max(1, len(context.words))
    if not MIN_LENGTH_RATIO <= length <= MAX_LENGTH_RATIO:
        return "too long or too short"
    change = change_of(text, context.text)
    if max(len(change.added), len(change.removed)) > most_changed * max(4, len(context.words)):
        return "changes too much"
    content = [word for word in change.added if word.text not in FUNCTION_WORDS]
    if not content and not set(change.added) or not change.added:
        return "only leaves out"
    claimed = content or list(change.added)
    lexicon = context.lexicon
    gone = {form for word in change.removed for form in lexicon.same(word.text)}
    if content and all(word.text in gone or singular(word.text) in gone for word in content):
        return "paraphrase"
    named = lexicon.named(claimed) - lexicon.named(context.words)
    if named & context.present and not named - context.present:
        return "object is present"
    if all(lexicon.same(word.text) & context.said for word in content) and content:
        return "said by a caption"
    wanted = kind if kind in HALLUCINATION_TYPES else type_of(context, change)
    if wanted == "object" and lexicon.named(claimed) and lexicon.named(claimed) <= context.present:
        wanted = "attribute"  # the same kind of thing under another name: man, woman
    return HallucinatedCaption(text, wanted, change.span, source, context.index)


def type_of(context: ImageContext, change: Change) -> str:
    """The type of an edit, told from the words it exchanges."""
    lexicon = context.lexicon
    added, removed = ([word.text for word in words] for words in (change.added, change.removed))
    values = {word for values in lexicon.attributes for word in values.words}
    if len(added) > len(removed) + 1:
        return "insertion"
    numbers = lexicon.numbers.keys() | {"several", "many", "single", "one", "some", "few"}
    if any(word in numbers for word in added):
        return "number"
    if len(added) > 4:
        return "event"
    prepositions = {word for phrase in lexicon.prepositions for word in phrase.split()}
    for kind, words in (("attribute", values), ("relation", prepositions | FUNCTION_WORDS)):
        if all(word in words for word in added):
            return kind
    if any(word.endswith("ing") and len(word) > 4 for word in added) and any(w.endswith("ing") for w in removed):
        return "action"
    return "object" if lexicon.named(change.added) or any(map(lexicon.groups_of, added)) else "other"


def keep_different(made: Sequence[HallucinatedCaption], k: int) -> list[HallucinatedCaption]:
    """The first k of them that differ in more than case and punctuation."""
    seen: dict[tuple[str, ...], HallucinatedCaption] = {}
    for caption in made:
        seen.setdefault(same_text_key(caption.text), caption)
    return list(seen.values())[:k]
