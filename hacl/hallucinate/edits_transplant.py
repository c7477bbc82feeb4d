"""Put another caption's words in a caption's place: what the subject does (event), where it ends (insertion)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from hacl.hallucinate.context import Candidate, ImageContext
from hacl.hallucinate.edits_words import make
from hacl.hallucinate.english import Replacement
from hacl.hallucinate.phrase_bank import Phrase, last_place, subject_and_verb, verb_form

_TRIES = 60  # phrases looked at for one place
_NEAR = ("next to", "near", "beside", "behind", "in front of", "by", "with", "close to")


def transplant_edits(context: ImageContext, draw: random.Random) -> Iterator[Candidate]:
    """Phrases of other captions that name something absent, of about the length of what they replace."""
    if context.bank is None:
        return
    if (found := subject_and_verb(context)) is not None:
        mention, at = found
        phrases = context.bank.events.get((mention.kind.group, verb_form(context, at)), ())
        yield from _replace(context, at, phrases, "event", draw, most=6)
    if (at := last_place(context)) is not None:
        near = [phrase for phrase in context.bank.places if phrase.text.lower().startswith(_NEAR)]
        yield from _replace(context, at, near, "insertion", draw, most=6)


def _replace(
    context: ImageContext, at: int, phrases: Sequence[Phrase], kind: str, draw: random.Random, most: int
) -> Iterator[Candidate]:
    words = context.words
    length, made = len(words) - at, 0
    old = context.text[words[at].start : words[-1].end]
    for phrase in draw.sample(phrases, min(_TRIES, len(phrases))):
        absent = phrase.names - context.present
        known = context.present & phrase.names
        if made == most or not absent or abs(phrase.words - length) > 1 or phrase.text.lower() == old.lower():
            continue
        if not absent <= context.lexicon.objects.keys() or (kind == "event" and not _surely(context, phrase)):
            continue
        made += 1
        new = phrase.text[0].lower() + phrase.text[1:]
        edit = Replacement(words[at].start, words[-1].end, new)
        yield make(context, kind, [edit], new, adds=absent, weight=1.0 + len(known))


def _surely(context: ImageContext, phrase: Phrase) -> bool:
    """Whether a thing it surely names (and not only hints at) is absent."""
    from hacl.hallucinate.english import words_of

    named = {m.kind.name for m in context.lexicon.mentions(words_of(phrase.text)) if m.word in m.kind.words}
    return bool(named - context.present)
