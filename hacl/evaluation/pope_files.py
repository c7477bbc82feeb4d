"""POPE question files for an annotated collection, in the upstream layout, with a manifest that says how.

The rules are those of AoiDragon/POPE@513e730e (main.py, utils.py; MIT): images with at least as many objects as are
asked, drawn at random; per image so many objects that are there and so many that are not; popular and adversarial
counted on the drawn images. Where it differs on purpose: the objects asked are drawn by seed, not the first of the
annotation; ties are drawn, not taken in order of appearance; an image with fewer absent objects than asked is left out
in place of an endless loop; the article follows the object ("an apple in the image", not "in the imange").
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from hacl.evaluation.object_lists import ObjectLists
from hacl.evaluation.pope import QUESTION, SPLITS, Question, build_questions, distinct_questions

FORMAT = "hacl-pope"
Splits = Mapping[str, Sequence[Question]]


def choose_images(
    lists: ObjectLists, images: int | None, per_image: int, seed: int, skip_mentioned: bool = False
) -> dict[str, list[str]]:
    """Images that can be asked about, ``images`` of them drawn at random; in the order of the collection.

    skip_mentioned: count as absent only what the captions do not name either.

    Raises:
        ValueError: none, or fewer than ``images``, has enough objects present and absent.
    """
    everything = {name for names in lists.objects.values() for name in names}
    half = per_image // 2
    fit = []
    for image, names in lists.objects.items():
        mentioned = lists.mentioned.get(image, set()) if skip_mentioned else set()
        if len(names) >= half and len(everything - mentioned.union(names)) >= half:
            fit.append(image)
    wanted = len(fit) if images is None else images
    if not fit or wanted > len(fit):
        raise ValueError(
            f"{len(fit)} of {len(lists.objects)} annotated images have at least {half} objects (and as many of the "
            f"{len(everything)} names absent), {wanted or 'some'} are wanted; lower --images or --per-image"
        )
    drawn = set(random.Random(f"{seed}/images").sample(fit, wanted))
    return {image: lists.objects[image] for image in fit if image in drawn}


def make_questions(
    truth: Mapping[str, Sequence[str]],
    *,
    seed: int,
    per_image: int,
    counts_from: Mapping[str, Sequence[str]] | None = None,
    template: str = QUESTION,
    never_absent: Mapping[str, Collection[str]] | None = None,
) -> dict[str, list[Question]]:
    """The three splits; within an image yes and no take turns, as upstream."""
    splits = {}
    for split in SPLITS:
        questions = build_questions(
            truth,
            split,
            seed=seed,
            per_image=per_image,
            counts_from=counts_from,
            template=template,
            partner_of="object",
            never_absent=never_absent,
        )
        splits[split] = [
            question
            for start in range(0, len(questions), per_image)
            for pair in zip(
                questions[start : start + per_image // 2],
                questions[start + per_image // 2 : start + per_image],
                strict=True,
            )
            for question in pair
        ]
    return splits


def write_files(
    folder: Path, name: str, splits: Splits, lists: ObjectLists, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Write ``NAME_pope_SPLIT.json`` (one JSON object a line, upstream layout) and ``NAME_pope_manifest.json``.

    Returns:
        the manifest.

    Raises:
        ValueError: the manifest is there already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifest_path = folder / f"{name}_pope_manifest.json"
    if manifest_path.exists():
        raise ValueError(f"{manifest_path}: there already; choose another --output or --name")
    files, counts = {}, {}
    for split, questions in splits.items():
        rows = [
            {
                "question_id": number,
                "image": question.image_id,
                "text": question.text,
                "label": question.label,
                "object": question.object,
                "image_id": lists.ids[question.image_id],
            }
            for number, question in enumerate(questions, 1)
        ]
        files[f"{name}_pope_{split}.json"] = rows
        asked = Counter(question.object for question in questions if question.label == "no")
        counts[split] = {
            "questions": len(rows),
            "yes": sum(row["label"] == "yes" for row in rows),
            "no": sum(row["label"] == "no" for row in rows),
            "images": len({row["image"] for row in rows}),
            "absent_objects": len(asked),
            "absent_but_mentioned": sum(
                question.label == "no" and question.object in lists.mentioned.get(question.image_id, ())
                for question in questions
            ),
            "most_asked_absent": dict(asked.most_common(5)),
        }
    hashes = {}
    for file_name, rows in files.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        (folder / file_name).write_bytes(text)
        hashes[file_name] = hashlib.sha256(text).hexdigest()
    total = sum(len(questions) for questions in splits.values())
    manifest = {
        "format": FORMAT,
        "version": 1,
        **settings,
        "splits": counts,
        "distinct_questions": len(distinct_questions(splits)),
        "all_questions": total,
        "shared_absent": _shared_absent(splits),
        "files": hashes,
    }
    manifest_path.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return manifest


def _shared_absent(splits: Splits) -> dict[str, int]:
    absent = {split: {q.question_id for q in questions if q.label == "no"} for split, questions in splits.items()}
    return {
        f"{one} and {other}": len(absent[one] & absent[other])
        for number, one in enumerate(absent)
        for other in list(absent)[number + 1 :]
    }
