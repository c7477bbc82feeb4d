"""Hallucinated captions of a scene: the true caption with one claim changed, false by the scene's ground truth."""

from __future__ import annotations

import random
from dataclasses import replace

from hacl.data.records import HallucinatedCaption
from hacl.pocket.language import Caption, Mention
from hacl.pocket.scenes import Scene
from hacl.pocket.world import BY_NAME, COLOURS, KINDS, OPPOSITE, PARTNER

TYPES = ("object", "attribute", "number", "relation", "insertion")


def hallucinate(
    scene: Scene, caption: Caption, kind: str, rng: random.Random, of: int = 0
) -> HallucinatedCaption | None:
    """``caption`` with one false claim of type ``kind``, or None where the caption offers no place for one.

    object: one mention becomes the absent partner of something in the scene (the adversarial choice) or, where none
    is absent, another absent kind. insertion: such a mention is added. attribute, number, relation: another colour,
    count or the opposite direction. The span covers the changed words.
    """
    edited = _EDITS[kind](scene, caption, rng)
    if edited is None:
        return None
    changed, phrase = edited
    text = changed.render()
    start = _where(text, phrase, changed, kind)
    return HallucinatedCaption(text, kind, (start, start + len(phrase)), "scene", of)


def hallucinations(
    scene: Scene, caption: Caption, types: tuple[str, ...], rng: random.Random, of: int = 0
) -> list[HallucinatedCaption]:
    """One hallucinated caption of each type that the caption allows, in the order of ``types``, without duplicates."""
    found: list[HallucinatedCaption] = []
    for kind in types:
        made = hallucinate(scene, caption, kind, rng, of)
        if made is not None and made.text not in {other.text for other in found}:
            found.append(made)
    return found


def _where(text: str, phrase: str, caption: Caption, kind: str) -> int:
    """Character offset of the edited phrase: whole words, in the relation sentence or in the list before it."""
    padded, needle = f" {text} ", f" {phrase} "
    at = padded.rfind(needle) if kind == "relation" else padded.find(needle)
    assert at >= 0, (text, phrase)
    return at


def _absent_kind(scene: Scene, beside: list[str], rng: random.Random) -> str:
    """The absent partner of one of ``beside``, else of anything in the scene, else any absent kind."""
    for near in (beside, list(scene.counts)):
        partners = [PARTNER[kind] for kind in near if PARTNER[kind] not in scene.counts]
        if partners:
            return rng.choice(partners)
    return rng.choice([kind.name for kind in KINDS if kind.name not in scene.counts])


def _invented(scene: Scene, caption: Caption, beside: list[str], rng: random.Random) -> Mention:
    coloured = any(mention.colour for mention in caption.mentions)
    kind = _absent_kind(scene, beside, rng)
    word = rng.randrange(len(BY_NAME[kind].words)) if rng.random() < 0.25 else 0
    return Mention(kind, 1, rng.choice(list(COLOURS)) if coloured else None, word)


def _free(caption: Caption) -> list[int]:
    """Mentions the relation does not speak about, so that one edit changes one claim; all where none is said."""
    bound = {caption.relation.subject, caption.relation.other} if caption.relation else set()
    free = [index for index, mention in enumerate(caption.mentions) if mention.kind not in bound]
    return free or ([] if caption.relation else list(range(len(caption.mentions))))


def _object(scene: Scene, caption: Caption, rng: random.Random) -> tuple[Caption, str]:
    index = rng.randrange(len(caption.mentions))
    others = [mention.kind for position, mention in enumerate(caption.mentions) if position != index]
    old = caption.mentions[index]
    new = _invented(scene, caption, others, rng)
    new = replace(new, count=old.count, colour=old.colour)
    relation = caption.relation
    if relation and old.kind in (relation.subject, relation.other):
        # The swapped thing keeps its name in the relation sentence.
        if relation.subject == old.kind:
            relation = replace(relation, subject=new.kind, words=(new.word, relation.words[1]))
        else:
            relation = replace(relation, other=new.kind, words=(relation.words[0], new.word))
    return replace(caption.with_mention(index, new), relation=relation), new.render()


def _insertion(scene: Scene, caption: Caption, rng: random.Random) -> tuple[Caption, str]:
    new = _invented(scene, caption, [mention.kind for mention in caption.mentions], rng)
    beside = [i for i, mention in enumerate(caption.mentions) if mention.kind == PARTNER[new.kind]]
    at = beside[0] + 1 if beside else rng.randint(1, len(caption.mentions))
    return replace(caption, mentions=(*caption.mentions[:at], new, *caption.mentions[at:])), new.render()


def _attribute(scene: Scene, caption: Caption, rng: random.Random) -> tuple[Caption, str] | None:
    coloured = [index for index, mention in enumerate(caption.mentions) if mention.colour]
    if not coloured:
        return None
    index = rng.choice(coloured)
    old = caption.mentions[index]
    new = replace(old, colour=rng.choice([colour for colour in COLOURS if colour != old.colour]))
    return caption.with_mention(index, new), new.render()


def _number(scene: Scene, caption: Caption, rng: random.Random) -> tuple[Caption, str] | None:
    free = _free(caption)
    if not free:
        return None
    index = rng.choice(free)
    old = caption.mentions[index]
    new = replace(old, count=rng.choice([count for count in (1, 2, 3) if count != old.count]))
    return caption.with_mention(index, new), new.render()


def _relation(scene: Scene, caption: Caption, rng: random.Random) -> tuple[Caption, str] | None:
    if caption.relation is None:
        return None
    new = replace(caption.relation, relation=OPPOSITE[caption.relation.relation])
    return replace(caption, relation=new), new.render()


_EDITS = {
    "object": _object,
    "attribute": _attribute,
    "number": _number,
    "relation": _relation,
    "insertion": _insertion,
}
