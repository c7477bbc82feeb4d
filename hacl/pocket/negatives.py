"""Negatives of several qualities for the same captions of drawn scenes, and what the scenes say of them.

Only the hallucinated captions differ between two qualities: images, captions, questions and their order are the same.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from hacl.data.records import HallucinatedCaption, Record, read_records, write_records
from hacl.hallucinate.backends.naive import NaiveBackend
from hacl.hallucinate.english import plural
from hacl.hallucinate.lexical import LexicalHallucinator
from hacl.hallucinate.lexicon import AttributeSet, Lexicon, ObjectKind
from hacl.hallucinate.survey import Survey
from hacl.pocket.build import caption_record
from hacl.pocket.language import all_words
from hacl.pocket.reading import read_caption
from hacl.pocket.scenes import Scene, sample_scene
from hacl.pocket.world import COLOURS, KINDS, NUMBERS, PAIRS, PARTNER

QUALITIES = ("random", "naive", "lexical", "scene")


def pocket_lexicon() -> Lexicon:
    """The words of the offline world for the generators of photographs; partners are what occurs together."""
    names = [kind.name for kind in KINDS]
    objects = {
        kind.name: ObjectKind(
            kind.name, "thing", tuple(singular for singular, _ in kind.words), swaps=(*names[n + 1 :], *names[:n])
        )
        for n, kind in enumerate(KINDS)
    }
    # Nouns whose plural the generators form in the world's own way; any other would be an unknown word.
    nouns = tuple(singular for kind in KINDS for singular, many in kind.words if plural(singular) == many)
    return Lexicon(
        objects=objects,
        attributes=(AttributeSet("colour", tuple(COLOURS)),),
        numbers={word: number for number, word in enumerate(NUMBERS) if number},
        scenes=tuple(frozenset(pair) for pair in PAIRS),
        noun_groups=(("object", nouns),),
        prepositions={"above": ("below",), "below": ("above",)},
        adjectives=frozenset(COLOURS),
    )


def with_negatives(
    records: Sequence[Record], quality: str, kinds: Sequence[str], *, world_seed: int, seed: int = 0
) -> Iterator[Record]:
    """The records with hallucinated captions of one quality in place of their own, at most one of each kind a caption.

    random: a caption of another scene, whatever it says; naive: the `naive` backend, a random word of the same type in
    a random place, unchecked; lexical: the `lexical` backend, checked against captions and object counts; scene: a
    claim that the scene makes false, absent partners preferred. kinds: of the last three.

    Raises:
        ValueError: an unknown quality.
    """
    if quality not in QUALITIES:
        raise ValueError(f"negatives {quality!r}; use {', '.join(QUALITIES)}")
    if quality == "scene":
        edit = _by_scene(tuple(kinds), world_seed)
    elif quality == "random":
        edit = _by_other_captions(records, seed)
    else:
        edit = _by_backend(records, quality, kinds, seed)
    for record in records:
        yield replace(record, hallucinated=edit(record)) if record.captions else record


def _by_scene(kinds: tuple[str, ...], world_seed: int):
    def edit(record: Record) -> tuple[HallucinatedCaption, ...]:
        made = caption_record(_scene(record), captions=len(record.captions), seed=world_seed, types=kinds)
        if made.captions != record.captions:
            raise ValueError(f"{record.id}: other captions than seed {world_seed} gives; draw the world again")
        return made.hallucinated

    return edit


def _by_other_captions(records: Sequence[Record], seed: int):
    captioned = [record for record in records if record.captions]

    def edit(record: Record) -> tuple[HallucinatedCaption, ...]:
        draw = random.Random(f"random/{seed}/{record.id}")
        found: list[HallucinatedCaption] = []
        while len(found) < len(record.captions):
            other = draw.choice(captioned)
            text = draw.choice(other.captions)
            if other.image_id != record.image_id and text not in (*record.captions, *(h.text for h in found)):
                found.append(HallucinatedCaption(text, "other", None, "random", len(found)))
        return tuple(found)

    return edit


def _by_backend(records: Sequence[Record], name: str, kinds: Sequence[str], seed: int):
    lexicon = pocket_lexicon()
    if name == "naive":
        backend = NaiveBackend(seed=seed, types=kinds, lexicon=lexicon)
    else:
        survey = Survey()
        for record in records:
            survey.add(record)
        backend = LexicalHallucinator(seed=seed, types=kinds, survey=survey, lexicon=lexicon)
    known = set(all_words())

    def edit(record: Record) -> tuple[HallucinatedCaption, ...]:
        found: dict[str, HallucinatedCaption] = {}
        for index in range(len(record.captions)):
            (made,) = backend.propose_batch([(record, index)], 2 * len(kinds))
            taken: set[str] = set()
            for item in made:
                if item.type not in taken and known.issuperset(item.text.split()) and item.text not in found:
                    found[item.text] = item
                    taken.add(item.type)
        return tuple(found.values())

    return edit


def _scene(record: Record) -> Scene:
    """The scene of a record, by the name that `sample_scene` gave it: split, seed and number."""
    split, seed, index = record.id.rsplit("-", 2)
    return sample_scene(split, int(index), int(seed))


def tuning_name(quality: str, kinds: Sequence[str]) -> str:
    """Name of a quality's tuning file in the world, without its ending."""
    return "train-random" if quality == "random" else f"train-{quality}-{'-'.join(kinds)}"


def write_negatives(root: Path, quality: str, kinds: Sequence[str], *, world_seed: int) -> Path:
    """Make the tuning file of one quality from ``root/train.jsonl`` unless it is there."""
    target = root / f"{tuning_name(quality, kinds)}.jsonl"
    if not target.is_file():
        write_records(target, with_negatives(read_records(root / "train.jsonl"), quality, kinds, world_seed=world_seed))
    return target


def audit_negatives(records: Sequence[Record]) -> dict[str, float | int]:
    """What the scenes say of the negatives, as counts and shares.

    captions; negatives; with: share of captions that have one; true: share that the scene makes true; slips: share
    whose text is not what this world would write (article or number); partners: share that name an absent partner of
    something in the scene, which is what the prior of such a model invents.
    """
    counts: Counter[str] = Counter()
    for record in records:
        counts["captions"] += len(record.captions)
        counts["with"] += len({item.of for item in record.hallucinated})
        for item in record.hallucinated:
            read, scene = read_caption(item.text), _scene(record)
            named = {mention.kind for mention in read.mentions} if read else set()
            counts["negatives"] += 1
            counts["true"] += read is not None and read.true_of(scene)
            counts["partners"] += any(PARTNER[kind] in scene.counts for kind in named - scene.counts.keys())
            counts["slips"] += read is None or read.render() != item.text
    made = max(1, counts["negatives"])
    return {
        "captions": counts["captions"],
        "negatives": counts["negatives"],
        "with": counts["with"] / max(1, counts["captions"]),
        "true": counts["true"] / made,
        "slips": counts["slips"] / made,
        "partners": counts["partners"] / made,
    }
