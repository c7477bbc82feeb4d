"""What can be said about a scene: captions built from claims, questions with answers, and the claims' truth.

A caption is kept as claims (:class:`Mention`, :class:`Relation`) until it is rendered, so that a hallucinated caption
is the same caption with one claim changed, and its truth is decided by the scene rather than by reading text back.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from hacl.pocket.scenes import Scene
from hacl.pocket.world import BY_NAME, COLOURS, KINDS, NUMBERS, PARTNER, RELATIONS, article

OPENERS = (
    "",
    "there is",
    "a picture of",
    "i can see",
    "this scene shows",
    "a drawing with",
    "here we have",
    "the image shows",
)
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


def _order(scene: Scene, rng: random.Random) -> list[str]:
    """All kinds of the scene in random order, partners side by side."""
    kinds = list(scene.counts)
    rng.shuffle(kinds)
    order: list[str] = []
    for kind in kinds:
        if kind not in order:
            order += [kind] + ([PARTNER[kind]] if PARTNER[kind] in scene.counts else [])
    return order


def _mention(scene: Scene, kind: str, coloured: float, rng: random.Random) -> Mention:
    return Mention(
        kind,
        scene.counts[kind],
        scene.colour_of(kind) if rng.random() < coloured else None,
        rng.randrange(len(BY_NAME[kind].words)) if rng.random() < 0.4 else 0,
    )


def describe(scene: Scene, rng: random.Random, *, relations: bool = True) -> Caption:
    """A true caption. Partners are told side by side; about half of the captions leave something out, as people do."""
    order = _order(scene, rng)
    told = len(order) if rng.random() < 0.55 else rng.randint(min(2, len(order)), len(order))
    mentions = tuple(_mention(scene, kind, 0.8, rng) for kind in order[:told])
    relation = _true_relation(scene, mentions, rng) if relations and rng.random() < 0.4 else None
    return Caption(rng.choice(OPENERS), mentions, relation)


def retell(scene: Scene, rng: random.Random) -> Caption:
    """A caption that leaves out no object and no colour: enough to answer questions about objects from text alone."""
    return Caption(rng.choice(OPENERS), tuple(_mention(scene, kind, 1.0, rng) for kind in _order(scene, rng)))


def questions(scene: Scene, count: int, rng: random.Random, *, relations: bool = True) -> list[tuple[str, str]]:
    """``count`` (question, "yes" | "no") pairs; each kind of question is answered yes half of the time.

    Two in three ask for the existence of an object, and half of the "no" among those ask for an absent partner.
    """
    asked = []
    for _ in range(count):
        yes = rng.random() < 0.5
        draw = rng.random()
        if draw < 0.66:
            asked.append(_existence(scene, yes, rng))
        elif draw < 0.8:
            asked.append(_attribute(scene, yes, rng))
        elif draw < 0.92:
            asked.append(_number(scene, yes, rng))
        else:
            asked.append((_relation(scene, yes, rng) if relations else None) or _existence(scene, yes, rng))
    return asked


def _answer(yes: bool) -> str:
    return "yes" if yes else "no"


def _existence(scene: Scene, yes: bool, rng: random.Random) -> tuple[str, str]:
    absent = [kind.name for kind in KINDS if kind.name not in scene.counts]
    partners = [PARTNER[kind] for kind in scene.counts if PARTNER[kind] in absent]
    pool = list(scene.counts) if yes else partners if partners and rng.random() < 0.5 else absent
    noun = rng.choice(BY_NAME[rng.choice(pool)].words)[0]
    tail = rng.choice((" in the image", " in the image", ""))
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
    return sorted(words)
