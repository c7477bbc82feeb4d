"""Phrases and pairs of words as a collection's own captions have them, for edits that read like true captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from hacl.data.records import Record
from hacl.hallucinate.context import ImageContext
from hacl.hallucinate.edits_words import head_noun
from hacl.hallucinate.english import (
    DETERMINERS,
    FUNCTION_WORDS,
    apart,
    article,
    is_base,
    is_finite_singular,
    is_plural,
    noun_run,
)
from hacl.hallucinate.lexicon import Lexicon, Mention
from hacl.hallucinate.noun_phrases import ends_at, noun_phrase
from hacl.hallucinate.plausibility import PERSON, PICTURE, ROLE, WORD, subject_class
from hacl.hallucinate.tagger import VERBS, SpacyTagger

PREPOSITIONS = tuple(
    tuple(phrase.split())
    for phrase in (
        "in front of;on top of;on the side of;in the middle of;next to;close to;far from;away from;inside of;outside "
        "of;out of;on;in;at;near;by;under;beside;behind;with;without;over;above;below;beneath;underneath;inside;"
        "outside;against;through;across;along;around;into;onto;from;down;up;past;between;towards;toward;to;off;atop"
    ).split(";")
)
_BY_FIRST_WORD = {
    first: tuple(phrase for phrase in PREPOSITIONS if phrase[0] == first) for first in {p[0] for p in PREPOSITIONS}
}
_NOT_BEFORE_SUBJECTS = FUNCTION_WORDS - DETERMINERS - {"there", "of"}
_BESIDE = frozenset(("on", "near", "next to", "behind", "under", "beside", "by", "in front of", "on top of"))
_NEAR = ("next to", "near", "beside", "behind", "in front of", "by", "close to")
_AUXILIARIES = frozenset("that which who is are was were".split())
_PICTURES = frozenset("photo photograph picture image view shot close-up closeup up painting scene".split())
_UNFIT = frozenset(
    "he she his her hers him they their them each other one another who which that himself herself themselves together "
    "both all row line pair group these this those like as dress bikini skirt beard bra".split()
)


@dataclass(frozen=True)
class Phrase:
    """text: as written; names: objects it names; words: how many; said: which; places: of them, the nouns that
    other nouns may replace; verb: the -ing verb it begins with; ends: whether its last
    word names a thing."""

    text: str
    names: frozenset[str]
    words: int
    said: frozenset[str] = frozenset()
    places: frozenset[str] = frozenset()
    verb: str = ""
    ends: bool = False


@dataclass(frozen=True)
class PhraseBank:
    """events: (class of the subject, what the phrase begins with) -> what is said of such subjects; places: what
    captions end in, from a preposition on; pairs: (preposition or verb, head noun after it, or a class of it) -> how
    often; doers: (group, verb) -> how often; bigrams: (word, word) -> how often."""

    events: Mapping[tuple[str, str], tuple[Phrase, ...]] = field(default_factory=dict)
    places: tuple[Phrase, ...] = ()
    pairs: Mapping[tuple[str, str], int] = field(default_factory=dict)
    doers: Mapping[tuple[str, str], int] = field(default_factory=dict)
    bigrams: Mapping[tuple[str, str], int] = field(default_factory=dict)

    @cached_property
    def near(self) -> tuple[Phrase, ...]:
        """The places that tell what something is near to, and end in it."""
        return tuple(phrase for phrase in self.places if phrase.ends and phrase.text.lower().startswith(_NEAR))

    @cached_property
    def landmarks(self) -> frozenset[str]:
        """Nouns that things are said to be beside or on."""
        return frozenset(head for governor, head in self.pairs if governor in _BESIDE and not head.startswith("#"))

    @cached_property
    def nouns(self) -> frozenset[str]:
        """Last words of the noun phrases after prepositions and verbs."""
        return frozenset(head.split()[-1] for _, head in self.pairs)


def phrase_bank(records: Iterable[Record], lexicon: Lexicon, tagger: SpacyTagger | None = None) -> PhraseBank:
    """Count over every caption of some records."""
    events: dict[tuple[str, str], list[Phrase]] = {}
    places: list[Phrase] = []
    pairs: Counter[tuple[str, str]] = Counter()
    doers: Counter[tuple[str, str]] = Counter()
    bigrams: Counter[tuple[str, str]] = Counter()
    for record in records:
        for index in range(len(record.captions)):
            context = ImageContext(record, index, lexicon, tagger=tagger)
            words = [word.text for word in context.words]
            bigrams.update(zip(words, words[1:], strict=False))
            for at in range(len(words)):
                length = preposition_at(context, at) or _is_verb(words[at]) or words[at] in ("of", "and", "or")
                if length and (head := head_noun(context, at + length)):
                    governor = " ".join(words[at : at + length])
                    if _is_verb(governor):
                        governor = lexicon.doing(governor)
                    pairs.update((governor, noun) for noun in (head, *lexicon.classes_of(head)))
            if (found := subject_and_verb(context)) is not None:
                mention, at = found
                doers[mention.kind.group, lexicon.doing(words[at])] += 1
            for subject, form, at in openings(context):
                if (phrase := _rest(context, at)) and _is_apt(phrase, subject):
                    events.setdefault((subject, form), []).append(phrase)
            if (at := last_place(context)) and (phrase := _rest(context, at)):
                places.append(phrase)
    return PhraseBank({key: tuple(value) for key, value in events.items()}, tuple(places), pairs, doers, bigrams)


def preposition_at(context: ImageContext, at: int) -> int:
    """Number of words of the preposition that starts at word `at`, 0 where there is none."""
    words = context.words
    for phrase in _BY_FIRST_WORD.get(words[at].text, ()):
        if all(at + i < len(words) and words[at + i].text == part for i, part in enumerate(phrase)):
            return len(phrase)
    return 0


def _is_verb(word: str) -> bool:
    return len(word) > 4 and word.endswith("ing") and word != "during" or is_finite_singular(word)


def verb_form(context: ImageContext, at: int) -> str:
    """What kind of predicate starts at word `at`: "ing", "is", "are", "finite" (sits), or "" for none of these."""
    word = context.words[at].text
    if context.is_tagged(at, VERBS) is False:
        return ""
    if word in ("is", "are", "has", "have"):
        return word
    if len(word) > 4 and word.endswith("ing") and word != "during":
        return "ing"
    return "finite" if is_finite_singular(word) else ""


def subject_and_verb(context: ImageContext) -> tuple[Mention, int] | None:
    """The first thing of a caption and the word at which what it does begins."""
    for mention in context.mentions:
        before = {word.text for word in context.words[: mention.first]}
        if before & _NOT_BEFORE_SUBJECTS or any(_is_verb(word) for word in before):
            return None
        if mention.stop == len(context.words) or ends_at(context, mention.stop):
            continue
        if noun_phrase(context, mention) is None:
            continue
        return (mention, mention.stop) if verb_form(context, mention.stop) else None
    return None


def openings(context: ImageContext) -> list[tuple[str, str, int]]:
    """(class of the subject, form, word at which what is said of it begins) for each such beginning: of the subject,
    and of a picture or of "there is"."""
    return [*_predicates(context), *_shown(context)]


def _shown(context: ImageContext) -> Iterator[tuple[str, str, int]]:
    """ "a photo of [a bus]", "there are [two men]": what is shown may be anything of the same number."""
    words = context.words
    at = 2 if words and words[0].text == "there" and words[1:2] and words[1].text in ("is", "are") else 0
    for i in range(1, min(len(words) - 2, 9)):
        if not at and words[i].text == "of" and words[i - 1].text in _PICTURES:
            at = i + 1
    if at and at < len(words) - 1:
        first = words[at].text
        counted = first in context.lexicon.numbers or first in ("several", "many")
        yield PICTURE, "one" if first in ("a", "an") else "many" if counted else "any", at


def _predicates(context: ImageContext) -> list[tuple[str, str, int]]:
    """Of the subject of a caption.

    The first preposition or verb after the caption's first noun begins it, and so does each -ing verb soon after. After
    a verb of the subject the next preposition begins the form "place", of the class "subject verb".
    """
    words, found = context.words, []
    for at in range(1, min(len(words) - 1, 10)):
        before = words[at - 1].text
        if before in FUNCTION_WORDS or apart(context.text, words[at - 1], words[at]):
            continue
        form = form_at(context, at)
        if not form and not found and is_plural(before) and is_base(words[at].text):
            form = "base"
        if not form or _is_verb(before) or found and form != "ing":
            continue
        subject = subject_class(context, at)
        if not subject:
            if found:
                continue
            return []
        found.append((subject, form, at))
        verb = at
        while verb < len(words) - 2 and words[verb].text in _AUXILIARIES:
            verb += 1
        if verb > at and verb_form(context, verb) == "ing":
            found.append((subject, "ing", verb))
        if verb_form(context, verb) in ("ing", "finite") and preposition_at(context, verb + 1):
            doing = context.lexicon.doing(words[verb].text)
            found.append((f"{subject} {doing}", "place", verb + 1))
    return found


def form_at(context: ImageContext, at: int) -> str:
    """The preposition that begins at word `at`, or the form of the verb there, "" for neither."""
    if length := preposition_at(context, at):
        return " ".join(word.text for word in context.words[at : at + length])
    word = context.words[at].text
    if word in ("that", "which", "who", "full"):
        return word
    return verb_form(context, at) or ("ed" if len(word) > 4 and word.endswith("ed") else "")


def last_place(context: ImageContext) -> int | None:
    """The word at which the prepositional phrase that ends the caption begins."""
    words = context.words
    for at in range(len(words) - 2, 1, -1):
        length = preposition_at(context, at)
        if not length:
            continue
        for start in range(max(2, at - 3), at):  # "in front of" begins before its "of"-less parts
            if start + preposition_at(context, start) == at + length:
                at, length = start, at + length - start
                break
        noun = at + length
        if noun < len(words) and words[noun].text in DETERMINERS | context.lexicon.numbers.keys():
            noun += 1
        first, stop = noun_run(context.text, words, noun)
        whole = first < stop == len(words) and not any(
            apart(context.text, words[i], words[i + 1]) for i in range(at, stop - 1)
        )
        return at if whole and words[at - 1].text not in FUNCTION_WORDS else None
    return None


def _is_apt(phrase: Phrase, name: str) -> bool:
    """Whether a phrase about a thing may be said of a class of subjects: persons are no "it"."""
    return not name.startswith((PERSON, ROLE, WORD)) or not {"it", "its"} & set(phrase.text.lower().split())


def _rest(context: ImageContext, at: int) -> Phrase | None:
    """The caption from word `at` on, None where it would not stand behind another beginning."""
    words = context.words[at:]
    text = context.text[words[0].start : words[-1].end]
    if {word.text for word in words} & _UNFIT or any(mark in text for mark in '.!?;:"()') or text.isupper():
        return None
    if any(a.text in ("a", "an") and a.text != article(b.text) for a, b in zip(words, words[1:], strict=False)):
        return None
    said = frozenset(word.text for word in words)
    places = frozenset(word for word in said if context.lexicon.groups_of(word))
    ends = any(m.stop == len(context.words) and m.word in m.kind.words for m in context.mentions)
    verb = next((word.text for word in words[:2] if verb_form(context, words.index(word) + at) == "ing"), "")
    return Phrase(text, frozenset(context.lexicon.named(words)), len(words), said, places, verb, ends)
