"""Collect the pooled states of images, captions and hallucinated captions from a model, before and after its heads.

The states are those of the training objective: same sequences, layer and pooling (`HaclModel`, `text_states`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from hacl.data.records import Record
from hacl.data.templates import EncodedSequence, SequenceEncoder
from hacl.evaluation.diagnostics import States
from hacl.evaluation.inputs import ImageEmbeddings, decode_rows, evaluating, image_paths
from hacl.models.reads import read_spans
from hacl.training.objective import HaclModel, text_states


def collect_states(
    model: HaclModel,
    encoder: SequenceEncoder,
    records: Sequence[Record],
    image_root: Path | str,
    *,
    batch_size: int = 16,
    max_captions: int | None = None,
    max_hallucinated: int | None = None,
    progress: bool = True,
) -> dict[str, States]:
    """States of every record with one image and a caption; records of one image id are one image.

    Returns:
        "pre": states before the heads (D wide); "post": after them (P wide), where the model has heads.

    Raises:
        ValueError: no record qualifies.
        FileNotFoundError: an image is missing.
    """
    by_image, true, false = caption_rows(records, max_captions, max_hallucinated)
    first = [found[0] for found in by_image.values()]
    image_ID = image_states(model, encoder, image_paths(first, image_root), batch_size=batch_size, progress=progress)
    texts = [text for _, text in true] + [text for *_, text in false]
    distinct = list(dict.fromkeys(texts))
    with evaluating(model):
        pooled = text_states(
            model, [encoder.root(text) for text in distinct], encoder=encoder, batch_size=batch_size
        ).float()
    position = {text: n for n, text in enumerate(distinct)}
    text_MD = pooled[[position[text] for text in texts]]
    stages = {"pre": (image_ID, text_MD)}
    if model.heads is not None:
        with evaluating(model) as device:
            dtype = next(model.heads.parameters()).dtype
            image_IP = model.heads.project_image(image_ID.to(device, dtype)).cpu()
            text_MP = model.heads.project_text(text_MD.to(device, dtype)).cpu()
        stages["post"] = (image_IP, text_MP)
    return {name: _states(*pair, true, false, tuple(by_image)) for name, pair in stages.items()}


def caption_rows(
    records: Sequence[Record], max_captions: int | None = None, max_hallucinated: int | None = None
) -> tuple[dict[str, list[Record]], list[tuple[int, str]], list[tuple[int, int, str, str]]]:
    """The rows that states are collected for: records by image id in order; (image, text) of each true caption; (image,
    row of its true caption, type, text) of each hallucinated one.

    Raises:
        ValueError: no record has one image and a caption.
    """
    by_image: dict[str, list[Record]] = {}
    for record in records:
        if len(record.images) == 1 and record.captions:
            by_image.setdefault(record.image_id, []).append(record)
    if not by_image:
        raise ValueError("no record has one image and a caption; nothing to diagnose")
    true: list[tuple[int, str]] = []
    false: list[tuple[int, int, str, str]] = []
    for row, found in enumerate(by_image.values()):
        for record in found:
            start, kept = len(true), record.captions[:max_captions]
            true += [(row, text) for text in kept]
            edits = [h for h in record.hallucinated if (h.of or 0) < len(kept)][:max_hallucinated]
            false += [(row, start + (h.of or 0), h.type, h.text) for h in edits]
    return by_image, true, false


def image_states(
    model: HaclModel,
    encoder: SequenceEncoder,
    paths: Sequence[Path],
    *,
    batch_size: int = 16,
    progress: bool = True,
) -> Tensor:
    """(I, D) pooled image states on the CPU: read at the image tokens in place, or from the strict form's sequence."""
    objective = model.objective
    rows: list[Tensor] = []
    with evaluating(model) as device, tqdm(total=len(paths), desc="images", disable=not progress, leave=False) as bar:
        embeddings = ImageEmbeddings(model.backbone, encoder.processor, device)
        for start in range(0, len(paths), batch_size):
            chosen = paths[start : start + batch_size]
            shown = embeddings(chosen, [encoder.prompt] * len(chosen))
            sequences, spans = zip(*(image_sequence(encoder, objective, image.ids) for image in shown), strict=True)
            _, states_RTD = decode_rows(model.adapter, sequences, shown, objective.layer)
            reads = torch.tensor([(row, *span) for row, span in enumerate(spans)], device=device)
            rows.append(read_spans(states_RTD, reads).float().cpu())
            bar.update(len(shown))
    return torch.cat(rows)


def image_sequence(
    encoder: SequenceEncoder, objective, image: Sequence[int] | None = None
) -> tuple[EncodedSequence, tuple[int, int]]:
    """The sequence whose states stand for an image, cut where nothing read depends on the rest, and the read span.

    image: what is written for it, where that depends on its shape.
    """
    if objective.form == "strict":
        sequence = encoder.strict_image_root(image)
        end = len(sequence)
        return sequence, ((end - 1, end) if objective.image_pool == "last" else (0, end - 1))
    whole = encoder.caption_sequence("yes", image=image)
    start, end = whole.image_spans[0]
    if objective.form == "eos_branch":
        return whole.cut(end, *encoder.eos), (end, end + 1)
    return whole.cut(end), (end - 1 if objective.image_pool == "last" else start, end)


def _states(image: Tensor, text: Tensor, true, false, image_ids: tuple[str, ...]) -> States:
    array = text.float().numpy()
    return States(
        image=image.float().numpy(),
        true=array[: len(true)],
        hallucinated=array[len(true) :],
        true_image=np.array([row for row, _ in true], dtype=int),
        hallucinated_image=np.array([row for row, *_ in false], dtype=int),
        hallucinated_true=np.array([of for _, of, *_ in false], dtype=int),
        types=tuple(kind for _, _, kind, _ in false),
        image_ids=image_ids,
    )
