"""Which subjects may share what captions say of them, and which words do not go together in one photograph."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from hacl.hallucinate.context import ImageContext
from hacl.hallucinate.english import Word, plural, singular

PERSON, ROLE, PICTURE, WORD = "#person", "#role", "#picture", "?"

# Kinds of one line do and have the same things done to them; any other kind is alone.
_ALIKE_KINDS = """
cat dog
horse cow sheep
zebra giraffe elephant
car truck bus
bicycle motorcycle
banana apple orange
pizza sandwich
donut cake
couch chair bench
cup bottle
fork spoon knife
backpack handbag suitcase
oven microwave
plate tray platter
street road highway
table desk counter
building house
field pasture meadow
hill slope mountain
"""
_PEOPLE = frozenset(
    "man woman person people boy girl child kid lady guy gentleman adult teen teenager human tourist couple family "
    "crowd friend student brother sister father mother son daughter mom dad".split()
)
_ROLES = frozenset(
    "visitor shopper diner traveler customer performer dancer singer musician artist guest owner hitter golfer runner "
    "jogger baker butcher businessman businesswoman photographer spectator onlooker individual trainer herder".split()
)
_BABIES = frozenset("baby babies toddler toddlers infant infants fetus".split())
_SPORTS = frozenset(
    "skateboard skateboarding skateboarder surfboard surfing surf wave waves snowboard snowboarding ski skis skiing "
    "slope tennis racket racquet baseball bat pitch pitcher batter batting umpire catcher base soccer football "
    "basketball volleyball frisbee kite kites ramp trick tricks rail wetsuit helmet motorcycle motorcycles horse "
    "horses "
    "bicycle bike game match court field".split()
)
_INDOORS = frozenset(
    "kitchen bathroom bedroom room office couch sofa bed oven stove refrigerator fridge microwave toaster toilet sink "
    "tv television desk laptop computer monitor keyboard cabinet cabinets counter countertop shower bathtub tub lamp "
    "carpet rug dresser bookshelf fireplace restaurant cafe library classroom hallway museum store shelf shelves "
    "indoors dining ceiling toothbrush wii remote plate plates bowl fork spoon pillow pillows blanket".split()
)
_OUTDOORS = frozenset(
    "street road beach field snow snowy wave waves ocean sea lake river grass grassy park court slope slopes mountain "
    "mountains hill hillside forest woods sidewalk highway runway tarmac track tracks desert sand sandy pasture meadow "
    "zoo savannah yard sky outdoors outside skis skiing snowboard surfboard surfing skateboard skateboarding traffic "
    "airport harbor dock pier hydrant zebra zebras giraffe giraffes elephant elephants sheep cow cows horse horses "
    "kite kites frisbee baseball tennis soccer bus buses train trains airplane airplanes plane planes boat boats "
    "motorcycle motorcycles truck trucks trees savanna ramp".split()
)
# Words that say what a thing moves on: group of the thing -> words.
_MEDIA = {
    "vessel": "water ocean sea lake river harbor dock docked bay pier sail sails sailing wave waves floating shore",
    "aircraft": "sky air flying flies fly runway tarmac airport wing wings landing taking terminal",
    "vehicle": "street road highway intersection tracks track rails station lane driveway traffic parking bridge",
    "bike": "street road highway intersection lane driveway traffic parking bridge",
}
_MOVED_ON = {group: frozenset(words.split()) for group, words in _MEDIA.items()}
_CONTAINERS = frozenset(
    "bowl box basket bag suitcase cup vase sink bathtub tub drawer cabinet refrigerator fridge oven microwave car "
    "truck "
    "bus train boat van cart pot pan jar bucket case crate building house tent bin container glass luggage".split()
)
_INSIDE = frozenset(("in", "inside", "inside of"))
_ATOP = frozenset(("on", "on top of", "above", "over", "atop"))
_PLACES = frozenset(
    "street beach field park sidewalk forest yard hill mountain river lake ocean desert runway driveway playground zoo "
    "city farm road highway court town valley village grass snow sand water dirt mud ice gravel sea air sky shore "
    "pasture slope kitchen bathroom bedroom room office restaurant area lot track wave meadow".split()
)
_CLOTHES = frozenset("shirt jacket dress suit uniform hat tie outfit coat wetsuit hands hand".split())
_ROOMS = frozenset("kitchen bathroom bedroom room office restaurant".split())
_KEYS = {name: f"#{line.split()[0]}" for line in _ALIKE_KINDS.strip().splitlines() for name in line.split()}
_LIGHT = frozenset("a an the of and is are it its has have there".split())


def subject_class(context: ImageContext, stop: int) -> str:
    """The class of the thing whose name ends before word `stop`; what is said of one of a class suits the others.

    A word that is in no list is a class of its own, "" is what may have nothing said of it but its own.
    """
    word = context.words[stop - 1].text
    if word in _BABIES:
        return ""
    if singular(word) in _PEOPLE or word in _PEOPLE:
        return PERSON
    mention = next((m for m in context.mentions if m.stop == stop), None)
    if mention is not None and mention.kind.group == "person" or singular(word) in _ROLES:
        return ROLE
    if mention is not None and (mention.word in mention.kind.words or mention.kind.group == "animal"):
        return _KEYS.get(mention.kind.name, f"#{mention.kind.name}")
    noun = singular(word)
    if stop > 1 and context.lexicon.groups_of(f"{context.words[stop - 2].text} {word}"):
        return f"{context.words[stop - 2].text} {noun}"
    if not context.lexicon.groups_of(word):
        plain = mention is None and word not in context.lexicon.adjectives and word not in context.lexicon.numbers
        return f"{WORD}{word}" if plain else ""
    return _KEYS.get(noun, noun)


def go_together(subject: str, before: Collection[Word], new: frozenset[str]) -> bool:
    """Whether a phrase of the words `new` suits a subject and the words already said of it.

    Not a second place of the other sort, indoors or outdoors, nothing said twice, and no sport and nothing indoors for
    people who are named by what they do.
    """
    old = {word.text for word in before}
    if old & _INDOORS and new & _OUTDOORS or old & _OUTDOORS and new & _INDOORS:
        return False
    if subject.startswith(ROLE) and new & (_SPORTS | _INDOORS) or subject not in ("", PICTURE) and "and" in old:
        return False
    return not (old & new) - _LIGHT - {"in", "on", "at", "to", "with"}


def keeps_medium(context: ImageContext, old: str, new: str) -> bool:
    """Whether a thing of group `new` can be where one of group `old` is said to move: no truck on the lake."""
    said = {word.text for word in context.words}
    if old == new or old not in _MOVED_ON or new not in _MOVED_ON:
        return True
    return bool(said & _MOVED_ON[old]) == bool(said & _MOVED_ON[new])


def is_place(noun: str) -> bool:
    """Whether a noun (any number) is a place, which few prepositions and verbs suit."""
    return noun in _PLACES or singular(noun) in _PLACES


def is_plural_here(context: ImageContext, at: int) -> bool:
    """Whether word `at`, of one form for one and many ("sheep"), stands for many: no "a" before its adjectives."""
    word = context.words[at].text
    if plural(word) != word:
        return False
    while at > 0 and context.words[at - 1].text in context.lexicon.adjectives:
        at -= 1
    return at == 0 or context.words[at - 1].text not in ("a", "an", "one", "this", "that", "single")


def can_relate(old: str, new: str, noun: str) -> bool:
    """Whether `new` in place of the preposition `old` says something else and possible of that noun.

    In the grass is on the grass; behind the street is nowhere.
    """
    noun = singular(noun.split()[-1]) if noun else ""
    if noun in _PLACES and old in _INSIDE | _ATOP | {"at"}:
        return new in ("next to", "beside", "near") or new == "outside" and noun in _ROOMS
    if noun in _PLACES and new in ("under", "above", "over", "without", "behind", "in front of"):
        return False
    if noun in _CLOTHES:
        return False
    mixes = old in _INSIDE and new in _ATOP or old in _ATOP and new in _INSIDE
    return not mixes or noun in _CONTAINERS


def suits_scene(context: ImageContext, words: Iterable[str]) -> bool:
    """Whether a caption that speaks of one sort of place can name a thing: none of the other sort."""
    said = {word.text for word in context.words}
    return not (said & _INDOORS and _OUTDOORS.intersection(words) or said & _OUTDOORS and _INDOORS.intersection(words))
