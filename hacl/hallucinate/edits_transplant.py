"""Put another caption's words in a caption's place: what its subject does (event), what else is said
of it (other), where it ends (insertion)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from hacl.hallucinate.context import Candidate, ImageContext
from hacl.hallucinate.edits_words import make
from hacl.hallucinate.english import Replacement, words_of
from hacl.hallucinate.phrase_bank import Phrase, form_at, last_place, openings, verb_form

_TRIES = 120  # phrases looked at for one place


def transplant_edits(context: ImageContext, draw: random.Random) -> Iterator[Candidate]:
    """Phrases of other captions that name something absent, of about the length of what they replace."""
    if context.bank is None:
        return
    for classes, at in openings(context):
        form = form_at(context, at)
        events = context.bank.events
        phrases = [phrase for name in classes[:-1] for phrase in events.get((name, form), ())]
        if len(phrases) < 40 and not form_is_of_persons(form):
            phrases += events.get((classes[-1], form), ())
        kind = "event" if verb_form(context, at) or form in ("ed", "that", "which", "who") else "other"
        yield from _replace(context, at, phrases, kind, draw, most=6)
    if (at := last_place(context)) is not None:
        yield from _replace(context, at, context.bank.near, "insertion", draw, most=6)


def form_is_of_persons(form: str) -> bool:
    """Whether what begins so tells what somebody does, which not every subject can do."""
    return form in ("ing", "finite", "who")


def _replace(
    context: ImageContext, at: int, phrases: Sequence[Phrase], kind: str, draw: random.Random, most: int
) -> Iterator[Candidate]:
    words = context.words
    length, made = len(words) - at, 0
    old = context.text[words[at].start : words[-1].end]
    for phrase in draw.sample(phrases, min(_TRIES, len(phrases))):
        absent = phrase.names - context.present
        known = context.present & phrase.names
        if made == most or not absent or abs(phrase.words - length) > 2 or phrase.text.lower() == old.lower():
            continue
        if not absent <= context.lexicon.objects.keys() or (kind != "insertion" and not _surely(context, phrase)):
            continue
        made += 1
        new = phrase.text[0].lower() + phrase.text[1:]
        edit = Replacement(words[at].start, words[-1].end, new)
        yield make(context, kind, [edit], new, adds=absent, weight=1.0 + len(known))


def _surely(context: ImageContext, phrase: Phrase) -> bool:
    """Whether a thing it surely names (and not only hints at) is absent."""
    named = {m.kind.name for m in context.lexicon.mentions(words_of(phrase.text)) if m.word in m.kind.words}
    return bool(named - context.present)
