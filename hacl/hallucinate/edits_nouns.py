"""Edits of noun phrases: exchange an object, or add one."""

from __future__ import annotations

import random
from collections.abc import Iterator

from hacl.hallucinate.context import Candidate, ImageContext
from hacl.hallucinate.edits_words import make
from hacl.hallucinate.english import DETERMINERS, FUNCTION_WORDS, Replacement, article, is_finite_singular, plural
from hacl.hallucinate.lexicon import Mention, ObjectKind
from hacl.hallucinate.noun_phrases import MANY_PEOPLE, PERSONAL_PRONOUNS, NounPhrase, ends_at, is_head, noun_phrase
from hacl.hallucinate.phrase_bank import last_place, preposition_at
from hacl.hallucinate.plausibility import keeps_medium, suits_scene

_GENDERED = PERSONAL_PRONOUNS - {"it", "its", "itself"} | frozenset(
    "beard bearded mustache dress bikini skirt bride groom wife husband bra makeup blouse shirtless".split()
)
_MIXED = frozenset(
    "people person group crowd couple family friends team kids children kid child adult adults others everyone someone "
    "players teenagers baby spectators audience".split()
)
_AGES = frozenset("young old elderly older younger adult baby male female".split())
_JOINABLE = frozenset(("", "with", "has", "have", "holding", "including", "near", "to", "beside", "by"))
_GOVERNORS = frozenset(
    "with has have holding including near beside by and on of behind under carrying containing".split()
)
_BESIDE = frozenset(("with", "near", "next to", "beside", "by", "behind", "in front of"))
# Words that name a kind of a kind, and nothing else.
_EXACT = frozenset(
    "hydrant airliner jet jetliner kitten kitty puppy poodle pony lamb bull calf stove muffin cupcake burger mug "
    "loveseat "
    "armchair stool monitor smartphone cellphone parasail parachute subway trolley van taxi suv jeep ship canoe kayak "
    "sailboat ferry motorbike moped scooter hotdog recliner goose duck pigeon seagull owl bowtie luggage "
    "computer".split()
)
_CONTINUES = frozenset("on in at near next by under beside behind sitting standing lying laying".split())
_LEAST_SHARE = 0.6  # of the things seen must suit an object that is added


def object_edits(context: ImageContext, draw: random.Random) -> Iterator[Candidate]:
    """One object becomes another that is absent but plausible."""
    for mention in context.mentions:
        phrase = noun_phrase(context, mention)
        if phrase is None:
            continue
        if mention.word in context.lexicon.word_swaps:
            yield from _word_swaps(context, phrase)
        elif mention.word in mention.kind.words or mention.word in _EXACT:
            yield from _swaps(context, phrase, draw)
    if context.bank is not None:
        yield from _last_things(context, draw)


def _swaps(context: ImageContext, phrase: NounPhrase, draw: random.Random) -> Iterator[Candidate]:
    mention, lexicon = phrase.mention, context.lexicon
    adjectives = {word.text for word in context.words[phrase.first : mention.first]}
    following = "" if ends_at(context, mention.stop) else context.words[mention.stop].text
    if adjectives & {"other", "another", "open", "closed", "full"} or not is_head(context, mention):
        return
    allowed = lexicon.selects.get(phrase.before)
    if following == "of":
        allowed = lexicon.selects.get("of:", frozenset())
    soon = {word.text for word in context.words[mention.stop : mention.stop + 3]}
    able = [lexicon.agents[word] for word in sorted(soon & lexicon.agents.keys())]
    for rank, name in enumerate(mention.kind.swaps):
        new = lexicon.objects[name]
        other_group = new.group != mention.kind.group
        if not new.countable or (allowed is not None and name not in allowed) or (other_group and adjectives & _AGES):
            continue
        if any(name not in names for names in able) or not keeps_medium(context, mention.kind.group, new.group):
            continue
        word = _word(new, draw)
        text = plural(word) if mention.plural else word
        yield _swap(context, mention, text, adds=lexicon.names_of(word), weight=context.suits(name) / (1 + rank))


def _last_things(context: ImageContext, draw: random.Random) -> Iterator[Candidate]:
    """ "next to a covered awning" -> "next to a bicycle": a thing without group that ends the caption."""
    words = context.words
    if (at := last_place(context)) is None:
        return
    length = preposition_at(context, at)
    if " ".join(word.text for word in words[at : at + length]) not in _BESIDE:
        return
    if context.lexicon.classes_of(words[-1].text) or any(m.stop == len(words) for m in context.mentions):
        return
    weights = _suiting(context)
    for name in _draw_some(weights, 4, draw):
        kind = context.lexicon.objects[name]
        word = _word(kind, draw)
        text = plural(word) if words[at + length].text not in ("a", "an", "the") else f"{article(word)} {word}"
        edit = Replacement(words[at + length].start, words[-1].end, text)
        yield make(context, "object", [edit], text, adds=context.lexicon.names_of(word), weight=weights[name])


def _suiting(context: ImageContext) -> dict[str, float]:
    """Absent things that suit the image -> how well."""
    lexicon = context.lexicon
    least = _LEAST_SHARE if context.bank is None else _LEAST_SHARE / 2
    return {
        name: context.suits(name)
        for name, kind in lexicon.objects.items()
        if kind.countable
        and name not in context.present
        and context.scene_share(name) >= least
        and suits_scene(context, kind.words)
    }


def _swap(context: ImageContext, mention: Mention, text: str, **fields) -> Candidate:
    start, end = context.words[mention.first].start, context.words[mention.stop - 1].end
    return make(context, "object", [Replacement(start, end, text)], text, **fields)


def _word_swaps(context: ImageContext, phrase: NounPhrase) -> Iterator[Candidate]:
    """man -> woman: only where one person is there and no other word would disagree."""
    mention, lexicon = phrase.mention, context.lexicon
    own = {word.text for word in context.words}
    count = context.count(mention.kind.name)
    many = count is not None and count > 1 or count is None and bool(context.said & MANY_PEOPLE)
    if own & _GENDERED:
        return
    if many or mention.plural:  # of several people all must be known to be alike
        if context.bank is None or context.said & _MIXED or len(context.record.captions) < 3:
            return
    agreeing = sum(bool(lexicon.same(mention.word) & said) for said in context.others_said)
    if len(context.record.captions) > 2 and agreeing < 2:
        return
    for new in lexicon.word_swaps[mention.word]:
        start, end = context.words[mention.first].start, context.words[mention.stop - 1].end
        text = plural(new) if mention.plural else new
        yield make(context, "attribute", [Replacement(start, end, text)], text, claims=frozenset({new}), weight=0.3)


def _word(kind: ObjectKind, draw: random.Random) -> str:
    return kind.words[0] if draw.random() < 0.7 else draw.choice(kind.words)


# Insertions


def insertion_edits(context: ImageContext, draw: random.Random) -> Iterator[Candidate]:
    """An absent object that suits the image, beside one that is there, or at the end."""
    lexicon = context.lexicon
    weights = _suiting(context)
    few_words = len(context.words) < 10
    for at, holder in _places(context):
        for name in _draw_some(weights, 4, draw):
            kind = lexicon.objects[name]
            word = _word(kind, draw)
            if few_words and kind.group == "person":
                continue
            np = plural(word) if few_words or draw.random() < 0.2 else f"{article(word)} {word}"
            if holder is None:
                patterns = lexicon.insertions.get(kind.group) or lexicon.insertions.get("default", ("near {np}",))
                pattern = draw.choice([p for p in patterns if len(p.split()) == 2 or not few_words] or patterns)
            elif _goes_with(kind, holder):
                pattern = "and {np}"
            else:
                continue
            edit = Replacement(at, at, " " + pattern.format(np=np))
            added = {"adds": lexicon.names_of(word), "weight": weights[name]}
            yield make(context, "insertion", [edit], edit.text, **added)
            for dropped in _droppable(context, at):
                yield make(context, "insertion", [edit, dropped], edit.text, **added)


def _droppable(context: ImageContext, at: int) -> Iterator[Replacement]:
    """Adjectives that may go, so that what is added does not make a caption longer than true ones."""
    if context.bank is None:
        return
    words, text = context.words, context.text
    for i in range(len(words) - 1):
        between = text[words[i].end : words[i + 1].start]
        if words[i].text not in context.lexicon.adjectives or between != " " or words[i + 1].end > at or i == 0:
            continue
        if words[i - 1].text in DETERMINERS and words[i + 1].text not in FUNCTION_WORDS:
            kept = text[words[i + 1].start : words[i + 1].end]
            yield Replacement(words[i].start, words[i + 1].end, kept)


def _goes_with(kind: ObjectKind, holder: ObjectKind) -> bool:
    """Whether "a <holder> and a <kind>" can share what the caption says next."""
    alive = ("person", "animal")
    if holder.group in alive or kind.group in alive:
        return holder.group == kind.group
    return True


def _places(context: ImageContext) -> Iterator[tuple[int, ObjectKind | None]]:
    """(character offset, object that "and" would join) of each place where an object can be added."""
    words, text = context.words, context.text
    if not words:
        return
    for mention in context.mentions:
        phrase = noun_phrase(context, mention)
        if phrase is None or phrase.determiner not in ("a", "an") or mention.word not in mention.kind.words:
            continue
        if mention.plural or phrase.before not in _JOINABLE:
            continue
        after, ends = words[mention.stop :], ends_at(context, mention.stop)
        listed = phrase.before in ("with", "has", "have", "holding", "including")
        continues = listed if ends else after[0].text in _CONTINUES
        if continues and not any(is_finite_singular(word.text) for word in after):
            yield words[mention.stop - 1].end, mention.kind
    if context.bank is not None:
        yield from _more_places(context)
    last = context.mentions[-1] if context.mentions else None
    named = last is not None and last.stop == len(words)
    if context.bank is not None:
        named = named or words[-1].text in context.bank.nouns
    if text[words[-1].end :].strip() in ("", ".") and (named or words[-1].text in context.lexicon.end_nouns):
        yield words[-1].end, None


def _more_places(context: ImageContext) -> Iterator[tuple[int, ObjectKind | None]]:
    """After governed things before a preposition: "with a sink and television [and a lamp] in it"."""
    words = context.words
    for mention in context.mentions:
        phrase = noun_phrase(context, mention)
        governed = phrase is not None and phrase.before in _GOVERNORS and mention.word in mention.kind.words
        if not governed or ends_at(context, mention.stop) or words[mention.stop].text not in ("on", "in", "near", "by"):
            continue
        if not any(is_finite_singular(word.text) for word in words[mention.stop :]):
            yield words[mention.stop - 1].end, mention.kind


def _draw_some(weights: dict[str, float], count: int, draw: random.Random) -> list[str]:
    """Up to `count` different names, the heavier the likelier."""
    return sorted(weights, key=lambda name: -(draw.random() ** (1 / weights[name])))[:count]
