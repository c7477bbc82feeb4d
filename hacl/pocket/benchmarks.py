"""Held-out scenes as the benchmarks that `scripts/evaluate.py` asks of a model: POPE, CHAIR and caption margin."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from hacl.data.records import read_records
from hacl.evaluation.pope import SPLITS, build_questions
from hacl.pocket.build import build_split
from hacl.pocket.evaluate import QUESTION
from hacl.pocket.scenes import sample_scene
from hacl.pocket.world import KINDS, object_vocabulary

COUNTED = 2000  # training scenes on which popularity and co-occurrence are counted; they are not drawn


def write_benchmarks(
    root: Path,
    split: str,
    size: int,
    *,
    seed: int,
    questions: int,
    progress: Callable[[range], object] = lambda scenes: scenes,
) -> Path:
    """Write ``root/<split>/`` with ``images/``, ``chair/``, ``caption_margin/`` and ``pope/``; returns that folder.

    size: scenes; questions: how many of them get POPE questions. Popular and adversarial objects are those of the
    training scenes, whose prior a model has learnt.
    """
    folder = Path(root) / split
    records_file = build_split(folder, split, size, seed=seed, progress=progress)
    for name in ("chair", "caption_margin", "pope"):
        (folder / name).mkdir(exist_ok=True)
    for name in ("chair", "caption_margin"):
        shutil.copyfile(records_file, folder / name / "records.jsonl")
    (folder / "chair" / "vocabulary.json").write_text(json.dumps(object_vocabulary(), indent=1), encoding="utf-8")
    records = read_records(records_file)[:questions]
    counts: dict[str, dict[str, int]] = {"every kind": {kind.name: 0 for kind in KINDS}}
    counts |= {str(index): sample_scene("train", index, seed).counts for index in range(COUNTED)}
    image = {record.image_id: Path(record.images[0]).name for record in records}
    truth = {record.image_id: record.objects for record in records}
    for pope_split in SPLITS:
        asked = build_questions(truth, pope_split, counts_from=counts, template=QUESTION)
        rows = [
            {"question_id": q.question_id, "image": image[q.image_id], "text": q.text, "label": q.label} for q in asked
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "pope" / f"scenes_pope_{pope_split}.json").write_text(lines, encoding="utf-8")
    return folder
