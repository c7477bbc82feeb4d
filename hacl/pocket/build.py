"""Write a split of the offline world to disk: PNG drawings and one JSON line per record.

A record has ``captions`` true captions, hallucinated captions of every type each caption allows, exact object counts,
and under ``extra`` the scene itself and yes/no questions. Question records (for training) carry a conversation and no
captions.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from hacl.data.records import Record, Turn, write_records
from hacl.pocket.draw import draw_scene
from hacl.pocket.hallucinate import TYPES, hallucinations
from hacl.pocket.language import describe, questions
from hacl.pocket.scenes import Scene, sample_scene

NO_STYLE: Mapping[str, float] = MappingProxyType({})


def caption_record(
    scene: Scene, *, captions: int, seed: int, types: tuple[str, ...] = TYPES, style: Mapping[str, float] = NO_STYLE
) -> Record:
    """Captions and hallucinated captions of one scene; depends on the arguments only.

    style: `coloured` and `placed` of :func:`describe`, to write captions of one kind.
    """
    rng = random.Random(f"{seed}/captions/{scene.id}")
    told = []
    for _ in range(20 * captions):
        caption = describe(scene, rng, **style)
        if caption.render() not in {other.render() for other in told}:
            told.append(caption)
        if len(told) == captions:
            break
    hallucinated = {}  # two captions of a scene can be edited into the same text: the first keeps it
    for index, caption in enumerate(told):
        for item in hallucinations(scene, caption, types, rng, of=index):
            hallucinated.setdefault(item.text, item)
    return Record(
        id=scene.id,
        images=(f"images/{scene.id}.png",),
        image_id=scene.id,
        captions=tuple(caption.render() for caption in told),
        hallucinated=tuple(hallucinated.values()),
        conversation=(),
        objects=scene.counts,
        extra={"scene": scene.to_json()},
    )


def question_record(scene: Scene, *, count: int, seed: int) -> Record:
    """``count`` yes/no questions about one scene as one conversation; no captions, so it is no contrastive sample."""
    rng = random.Random(f"{seed}/questions/{scene.id}")
    turns: list[Turn] = []
    for index, (question, answer) in enumerate(questions(scene, count, rng)):
        turns += [Turn("user", f"<image>\n{question}" if index == 0 else question), Turn("assistant", answer)]
    return Record(
        id=f"{scene.id}-questions",
        images=(f"images/{scene.id}.png",),
        image_id=scene.id,
        captions=(),
        hallucinated=(),
        conversation=tuple(turns),
        objects=scene.counts,
        extra={},
    )


def build_split(
    root: Path,
    split: str,
    size: int,
    *,
    seed: int,
    start: int = 0,
    captions: int = 2,
    types: tuple[str, ...] = TYPES,
    question_share: float = 0.0,
    style: Mapping[str, float] = NO_STYLE,
    progress: Callable[[range], object] = lambda scenes: scenes,
) -> Path:
    """Write ``root/<split>.jsonl`` and ``root/images/*.png`` for scenes ``start`` to ``start + size``; returns the
    file.

    question_share: fraction of scenes that also get a record of three yes/no questions; style: see
    :func:`caption_record`. Drawings that exist are kept:
    they depend on the scene's name only.
    """
    root = Path(root)
    (root / "images").mkdir(parents=True, exist_ok=True)
    records = []
    for index in progress(range(start, start + size)):
        scene = sample_scene(split, index, seed)
        path = root / "images" / f"{scene.id}.png"
        if not path.exists():
            draw_scene(scene).save(path, compress_level=1)
        records.append(caption_record(scene, captions=captions, seed=seed, types=types, style=style))
        if random.Random(f"{seed}/share/{scene.id}").random() < question_share:
            records.append(question_record(scene, count=3, seed=seed))
    target = root / f"{split}.jsonl"
    write_records(target, records)
    return target
