"""What can be said about a scene: captions built from claims, questions with answers, and the claims' truth.

A caption is kept as claims (:class:`Mention`, :class:`Relation`) until it is rendered, so that a hallucinated caption
is the same caption with one claim changed, and its truth is decided by the scene rather than by reading text back.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from hacl.pocket.scenes import GRID, Scene
from hacl.pocket.world import BY_NAME, COLOURS, KINDS, NUMBERS, PARTNER, RELATIONS, article

OPENERS = ("there is", "a picture of", "i can see", "this scene shows")
PROMPTS = (
    "describe the scene .",
    "describe this image .",
    "what is in the image ?",
    "please describe this image in detail .",
)


@dataclass(frozen=True)
class Mention:
    """``count`` things of ``kind`` by its ``word``-th name, in ``colour`` if one is said."""

    kind: str
    count: int
    colour: str | None = None
    word: int = 0

    def render(self) -> str:
        singular, plural = BY_NAME[self.kind].words[self.word]
        first = self.colour or singular
        number = article(first) if self.count == 1 else NUMBERS[self.count]
        return " ".join(part for part in (number, self.colour, singular if self.count == 1 else plural) if part)

    def true_of(self, scene: Scene) -> bool:
        if scene.counts.get(self.kind, 0) != self.count:
            return False
        return self.colour is None or scene.colour_of(self.kind) == self.colour


@dataclass(frozen=True)
class Relation:
    """The one ``subject`` stands in ``relation`` to the one ``other``; words are synonym indices."""

    subject: str
    relation: str
    other: str
    words: tuple[int, int] = (0, 0)

    def render(self) -> str:
        subject, other = (BY_NAME[k].words[w][0] for k, w in zip((self.subject, self.other), self.words, strict=True))
        return f"the {subject} is {self.relation} the {other}"

    def true_of(self, scene: Scene) -> bool:
        counts = scene.counts
        if counts.get(self.subject) != 1 or counts.get(self.other) != 1:
            return False
        return scene.holds(self.subject, self.relation, self.other)


@dataclass(frozen=True)
class Caption:
    """An opener, mentions in order, and at most one relation."""

    opener: str
    mentions: tuple[Mention, ...]
    relation: Relation | None = None

    def render(self) -> str:
        """Lower-case words separated by single spaces, full stops included, as the pocket tokenizer reads them."""
        phrases = [mention.render() for mention in self.mentions]
        listed = phrases[0] if len(phrases) == 1 else " , ".join(phrases[:-1]) + " and " + phrases[-1]
        opener = self.opener
        if opener == "there is" and self.mentions[0].count > 1:
            opener = "there are"
        text = f"{opener} {listed} .".strip()
        return f"{text} {self.relation.render()} ." if self.relation else text

    def true_of(self, scene: Scene) -> bool:
        claims = (*self.mentions, *([self.relation] if self.relation else ()))
        return all(claim.true_of(scene) for claim in claims)

    def with_mention(self, index: int, mention: Mention) -> Caption:
        return replace(self, mentions=(*self.mentions[:index], mention, *self.mentions[index + 1 :]))


def _true_relation(scene: Scene, mentions: tuple[Mention, ...], rng: random.Random) -> Relation | None:
    single = [mention for mention in mentions if mention.count == 1]
    if len(single) < 2:
        return None
    first, second = rng.sample(single, 2)
    true = [name for name in RELATIONS if scene.holds(first.kind, name, second.kind)]
    return Relation(first.kind, rng.choice(true), second.kind, (first.word, second.word)) if true else None


def _order(scene: Scene) -> list[str]:
    """All kinds in reading order (rows, then columns) of their first thing, each followed by its partner if there."""
    placed = sorted(scene.things, key=lambda thing: (thing.row, thing.column))
    order: list[str] = []
    for kind in dict.fromkeys(thing.kind for thing in placed):
        if kind not in order:
            order += [kind] + ([PARTNER[kind]] if PARTNER[kind] in scene.counts else [])
    return order


def _mention(scene: Scene, kind: str, coloured: float, rng: random.Random) -> Mention:
    return Mention(
        kind,
        scene.counts[kind],
        scene.colour_of(kind) if rng.random() < coloured else None,
        rng.randrange(len(BY_NAME[kind].words)) if rng.random() < 0.25 else 0,
    )


def describe(
    scene: Scene, rng: random.Random, *, relations: bool = True, coloured: float = 0.8, placed: float = 0.4
) -> Caption:
    """A true caption. Partners are told side by side; about half of the captions leave something out, as people do.

    coloured: chance that a mention names its colour; placed: chance of a sentence on where two things stand.
    """
    order = _order(scene)
    told = len(order) if rng.random() < 0.55 else rng.randint(min(2, len(order)), len(order))
    mentions = tuple(_mention(scene, kind, coloured, rng) for kind in order[:told])
    relation = _true_relation(scene, mentions, rng) if relations and rng.random() < placed else None
    return Caption(rng.choice(OPENERS), mentions, relation)


def retell(scene: Scene, rng: random.Random) -> Caption:
    """A caption that leaves out no object and no colour: enough to answer questions about objects from text alone."""
    return Caption(rng.choice(OPENERS), tuple(_mention(scene, kind, 1.0, rng) for kind in _order(scene)))


GRID_PROMPT = "read the grid ."


def read_grid(scene: Scene) -> str:
    """What stands in every cell, row by row: a dense caption that ties each image feature to its words."""
    cells = {(thing.row, thing.column): f"{thing.colour} {thing.kind}" for thing in scene.things}
    return " ".join(cells.get((row, column), "nothing") for row in range(GRID) for column in range(GRID))


def questions(scene: Scene, count: int, rng: random.Random, *, relations: bool = True) -> list[tuple[str, str]]:
    """``count`` (question, answer) pairs: about two in three yes/no questions, the rest ask for a name, colour or
    number.

    Each kind of yes/no question is answered yes half of the time. Most ask for the existence of an object, and half of
    the "no" among those ask for an absent partner.
    """
    asked = []
    for _ in range(count):
        yes = rng.random() < 0.5
        draw = rng.random()
        if draw < 0.45:
            asked.append(_existence(scene, yes, rng))
        elif draw < 0.65:
            asked.append(_one_or_the_other(scene, rng))
        elif draw < 0.75:
            asked.append(_which_colour(scene, rng))
        elif draw < 0.82:
            asked.append(_how_many(scene, yes, rng))
        elif draw < 0.89:
            asked.append(_attribute(scene, yes, rng))
        elif draw < 0.95:
            asked.append(_number(scene, yes, rng))
        else:
            asked.append((_relation(scene, yes, rng) if relations else None) or _existence(scene, yes, rng))
    return asked


def _one_or_the_other(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """Which of two things is there. Yes/no answers alone give a small model no first hold on matching; this does."""
    present = rng.choice(list(scene.counts))
    absent = rng.choice([kind.name for kind in KINDS if kind.name not in scene.counts])
    first, second = rng.sample((present, absent), 2)
    return f"is there {article(first)} {first} or {article(second)} {second} ?", present


def _which_colour(scene: Scene, rng: random.Random) -> tuple[str, str]:
    kind = rng.choice(list(scene.counts))
    singular, plural = BY_NAME[kind].words[0]
    asked = f"what color is the {singular} ?" if scene.counts[kind] == 1 else f"what color are the {plural} ?"
    return asked, scene.colour_of(kind)


def _how_many(scene: Scene, present: bool, rng: random.Random) -> tuple[str, str]:
    pool = list(scene.counts) if present else [kind.name for kind in KINDS if kind.name not in scene.counts]
    kind = rng.choice(pool)
    return f"how many {BY_NAME[kind].words[0][1]} are there ?", NUMBERS[scene.counts.get(kind, 0)]


def _answer(yes: bool) -> str:
    return "yes" if yes else "no"


def _existence(scene: Scene, yes: bool, rng: random.Random) -> tuple[str, str]:
    absent = [kind.name for kind in KINDS if kind.name not in scene.counts]
    partners = [PARTNER[kind] for kind in scene.counts if PARTNER[kind] in absent]
    pool = list(scene.counts) if yes else partners if partners and rng.random() < 0.5 else absent
    noun = rng.choice(BY_NAME[rng.choice(pool)].words)[0]
    tail = rng.choice((" in the image", ""))
    return f"is there {article(noun)} {noun}{tail} ?", _answer(yes)


def _attribute(scene: Scene, yes: bool, rng: random.Random) -> tuple[str, str]:
    single = [kind for kind, count in scene.counts.items() if count == 1]
    kind = rng.choice(single or list(scene.counts))
    true = scene.colour_of(kind)
    colour = true if yes else rng.choice([name for name in COLOURS if name != true])
    singular, plural = BY_NAME[kind].words[0]
    return (f"is the {singular} {colour} ?" if kind in single else f"are the {plural} {colour} ?"), _answer(yes)


def _number(scene: Scene, yes: bool, rng: random.Random) -> tuple[str, str]:
    kind = rng.choice(list(scene.counts))
    true = scene.counts[kind]
    count = true if yes else rng.choice([number for number in (1, 2, 3) if number != true])
    singular, plural = BY_NAME[kind].words[0]
    return (f"is there one {singular} ?" if count == 1 else f"are there {NUMBERS[count]} {plural} ?"), _answer(yes)


def _relation(scene: Scene, yes: bool, rng: random.Random) -> tuple[str, str] | None:
    mentions = tuple(Mention(kind, count) for kind, count in scene.counts.items())
    relation = _true_relation(scene, mentions, rng)
    if relation is None:
        return None
    if not yes:
        false = [name for name in RELATIONS if not scene.holds(relation.subject, name, relation.other)]
        relation = replace(relation, relation=rng.choice(false))
    return f"is the {relation.subject} {relation.relation} the {relation.other} ?", _answer(yes)


def all_words() -> list[str]:
    """Every word this world can utter, sorted: the tokenizer's vocabulary."""
    words = {word for kind in KINDS for pair in kind.words for word in pair}
    words |= set(COLOURS) | set(NUMBERS) | {"a", "an", "and", "the", "is", "are", "there", "yes", "no", ",", ".", "?"}
    for text in (*OPENERS, *PROMPTS, *RELATIONS):
        words |= set(text.split())
    # Words of common evaluation prompts, so that they are read rather than unknown.
    words |= set("in of to answer with or photo photograph caption one word only question do you see not".split())
    words |= {"what", "how", "many", "color", "nothing", *GRID_PROMPT.split()}
    return sorted(words)
