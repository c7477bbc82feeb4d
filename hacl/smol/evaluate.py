"""Measure one smol model on the held-out photographs: caption margins, retrieval, captions and CHAIR."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hacl.data.records import Record
from hacl.evaluation.reports import ScoreReport, collect

CAPTION_TOKENS = 24


def evaluate_checkpoint(checkpoint: Path, base: Path, records: Sequence[Record], root: Path) -> dict[str, Any]:
    """Measures of a training checkpoint; see `measure`."""
    from hacl.models.adapters import find_adapter
    from hacl.training import weights
    from hacl.training.build import build_heads
    from hacl.training.export import load_finetuned

    backbone, config = load_finetuned(checkpoint, base=str(base))
    objective = config.objective
    heads = build_heads(find_adapter(backbone), objective, seed=config.train.seed, trainable=False)
    if heads is not None:
        weights.load_heads(heads, checkpoint)
    return measure(backbone, base, objective, heads, records, root)


def evaluate_base(base: Path, records: Sequence[Record], root: Path) -> dict[str, Any]:
    """Measures of the base model, whose projector is aligned in closed form and otherwise untrained."""
    from hacl.config import ModelConfig, ObjectiveConfig
    from hacl.training.build import load_backbone

    backbone = load_backbone(ModelConfig(path=str(base)))
    return measure(backbone, base, ObjectiveConfig(contrastive_weight=0.0), None, records, root)


def measure(backbone, base: Path, objective, heads, records: Sequence[Record], root: Path) -> dict[str, Any]:
    """{"metrics", "items"} as the report takes them, and "captions", one per photograph with its CHAIR marks.

    margin_*: log-likelihood of true against hallucinated captions with the right image, none, and a wrong one;
    post/, pre/: retrieval and state margins after and before the heads (before: centred per modality); CHAIR.
    The model runs in bf16, as it was trained.
    """
    import torch

    from hacl.config import ModelConfig
    from hacl.evaluation.diagnostics import entanglement, view
    from hacl.evaluation.generation import generate_captions
    from hacl.evaluation.inputs import image_paths, make_encoder
    from hacl.evaluation.likelihood import caption_margins
    from hacl.evaluation.retrieval import retrieval
    from hacl.evaluation.states import collect_states
    from hacl.smol.data import with_edits_only
    from hacl.training.build import load_processor
    from hacl.training.objective import HaclModel

    processor = load_processor(ModelConfig(path=str(base)))
    backbone.to(torch.bfloat16)
    pairs = [with_edits_only(record) for record in records]
    reports: dict[str, ScoreReport] = {
        "": caption_margins(backbone, processor, pairs, root, batch_size=32),
    }
    model = HaclModel(backbone, objective, heads=heads)
    for stage, states in collect_states(model, make_encoder(processor), records, root, batch_size=32).items():
        shown = view(states, "centred") if stage == "pre" else states
        reports[f"{stage}/"] = retrieval(
            shown.image, shown.true, shown.true_image, ks=(1, 5), image_ids=shown.image_ids
        )
        reports[f"{stage}_states/"] = entanglement(shown, probe=stage == "pre")
    captions = generate_captions(
        backbone, processor, image_paths(records, root), max_new_tokens=CAPTION_TOKENS, batch_size=16
    )
    chair = score_captions(records, captions)
    reports["chair/"] = chair
    reports["chair_shuffled/"] = score_captions(records, shuffled(captions))
    metrics, items = collect(reports)
    shown_captions = [
        {"image_id": record.image_id, "text": text, "marks": item["marks"]}
        for record, text, item in zip(records, captions, chair.items, strict=True)
    ]
    return {"metrics": metrics, "items": items, "captions": shown_captions}


def score_captions(records: Sequence[Record], captions: Sequence[str]) -> ScoreReport:
    """CHAIR against the COCO objects of each photograph, united with what its human captions name."""
    from hacl.evaluation.chair import MentionExtractor, score_chair
    from hacl.evaluation.coco_objects import coco_vocabulary

    extractor = MentionExtractor(coco_vocabulary())
    truth = {
        record.image_id: set(record.extra["chair_objects"]).union(*map(extractor.objects, record.captions))
        for record in records
    }
    return score_chair([record.image_id for record in records], captions, truth, extractor)


def shuffled(captions: Sequence[str], seed: int = 0) -> list[str]:
    """Every caption on another photograph: what fluent captions without any look at the image would score."""
    order = list(range(len(captions)))
    random.Random(seed).shuffle(order)
    following = {a: b for a, b in zip(order, order[1:] + order[:1], strict=True)}
    return [captions[following[i]] for i in range(len(captions))]
