"""Put another caption's words in a caption's place: what its subject does (event), what else is said
of it (other), where it ends (insertion)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence

from hacl.hallucinate.context import Candidate, ImageContext
from hacl.hallucinate.edits_verbs import implied
from hacl.hallucinate.edits_words import make
from hacl.hallucinate.english import Replacement, is_plural, words_of
from hacl.hallucinate.phrase_bank import Phrase, last_place, openings, verb_form
from hacl.hallucinate.plausibility import PERSON, ROLE, go_together

_TO_BE = {"finite": "is ", "base": "are "}
_LEAST_SHARE = 0.3  # of the things seen must suit what is added
_TRIES = 120  # phrases looked at for one place


def transplant_edits(context: ImageContext, draw: random.Random) -> Iterator[Candidate]:
    """Phrases of other captions that name something absent, of about the length of what they replace."""
    if context.bank is None:
        return
    events = context.bank.events
    for subject, form, at in openings(context):
        phrases = _said_of(events, subject, form)
        verbal = verb_form(context, at) or form in ("ed", "that", "which", "who", "base")
        kind = "event" if verbal and form != "place" else "other"
        yield from _replace(context, at, phrases, kind, draw, most=6, subject=subject)
        if (verb := _TO_BE.get(form)) is not None:  # "sits on a bed" -> "is reading a book"
            phrases = _said_of(events, subject, "ing")
            yield from _replace(context, at, phrases, kind, draw, most=4, subject=subject, verb=verb)
    if (at := last_place(context)) is not None:
        yield from _replace(context, at, context.bank.near, "insertion", draw, most=6, subject="")


def _said_of(events: Mapping[tuple[str, str], tuple[Phrase, ...]], subject: str, form: str) -> tuple[Phrase, ...]:
    """The phrases of a form about subjects of a class; people and people named by what they do share theirs."""
    who = next((name for name in (PERSON, ROLE) if subject.startswith(name)), None)
    if who is None:
        return events.get((subject, form), ())
    return tuple(phrase for name in (PERSON, ROLE) for phrase in events.get((subject.replace(who, name), form), ()))


def _replace(
    context: ImageContext,
    at: int,
    phrases: Sequence[Phrase],
    kind: str,
    draw: random.Random,
    most: int,
    subject: str,
    verb: str = "",
) -> Iterator[Candidate]:
    words = context.words
    length, made = len(words) - at, 0
    old = context.text[words[at].start : words[-1].end]
    for phrase in draw.sample(phrases, min(_TRIES, len(phrases))):
        absent = phrase.names - context.present
        known = context.present & phrase.names
        if made == most:
            break
        if abs(phrase.words - length) > 2 or phrase.text.lower() == old.lower():
            continue
        if "its" in phrase.said and is_plural(words[at - 1].text):
            continue
        claims = frozenset()
        if not absent or kind != "insertion" and not _surely(context, phrase):
            claims = _unsaid(context, phrase)
            if kind == "insertion" or not claims:
                continue
        if not go_together(subject, words[:at], phrase.said):
            continue
        if kind == "insertion" and any(context.scene_share(name) < _LEAST_SHARE for name in absent):
            continue
        made += 1
        new = verb + phrase.text[0].lower() + phrase.text[1:]
        edit = Replacement(words[at].start, words[-1].end, new)
        yield make(context, kind, [edit], new, adds=absent, claims=claims, weight=1.0 + len(known))


def _surely(context: ImageContext, phrase: Phrase) -> bool:
    """Whether a thing it surely names (and not only hints at) is absent."""
    named = {m.kind.name for m in context.lexicon.mentions(words_of(phrase.text)) if m.word in m.kind.words}
    return bool(named - context.present)


def _unsaid(context: ImageContext, phrase: Phrase) -> frozenset[str]:
    """Nouns of the phrase that no caption has or implies, with its verb; none where the verb itself may be true."""
    if not phrase.verb and "with" in phrase.text[:5].lower():  # one such thing may be there unsaid, hardly two
        absent = frozenset(noun for noun in phrase.places if not context.lexicon.same(noun) & context.said)
        return absent if len(absent) > 1 else frozenset()
    verbs = implied(context, phrase.verb) if phrase.verb else frozenset()
    if not verbs or verbs & context.said:
        return frozenset()
    places = frozenset(noun for noun in phrase.places if not context.lexicon.same(noun) & context.said)
    return places | verbs if places else frozenset()
