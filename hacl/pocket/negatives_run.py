"""Does the quality of hallucinated captions decide what is learnt from them? Arms, and what is measured of each.

Discrimination is measured on sentences that differ from a true one in one claim: captions with an edit of each kind,
and statements of one claim ("there is a red cup ."), which no generator of negatives writes. Both by likelihood, and
the captions also by the cosine of states as the contrastive arm reads them.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hacl.data.records import HallucinatedCaption, Record, read_records
from hacl.evaluation.reports import ScoreReport
from hacl.pocket.evaluate import PROMPT, Sizes, evaluate
from hacl.pocket.experiment import CONFIGS, Unit, World, keep_result, start_folder, tune
from hacl.pocket.hallucinate import TYPES
from hacl.pocket.language import Caption, Mention
from hacl.pocket.negatives import tuning_name
from hacl.pocket.scenes import Scene, sample_scene
from hacl.pocket.world import COLOURS, KINDS

NONE = "none"
LOSSES = {"margin": "margin", "hacl": "hacl_ours"}  # name here -> configuration
STATEMENTS = ("object", "attribute", "number")


@dataclass(frozen=True)
class NegativesUnit(Unit):
    """One run: ``loss`` and ``quality`` name its column; ``kinds`` are the kinds of its negatives."""

    loss: str = NONE
    quality: str = NONE
    kinds: tuple[str, ...] = ("object",)

    @property
    def name(self) -> str:
        return arm_name(self.loss, self.quality)

    def key(self) -> dict[str, Any]:
        """Also the content of the tuning file, so that other negatives are another run."""
        path = self.world.root / f"{self.tuning}.jsonl"
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else None
        return super().key() | {"loss": self.loss, "quality": self.quality, "kinds": list(self.kinds), "data": digest}


def arm_name(loss: str, quality: str) -> str:
    """``control``, or ``LOSS-QUALITY``."""
    return "control" if loss == NONE else f"{loss}-{quality}"


def plan_units(
    folders: Mapping[int, Path],
    world: World,
    out: Path,
    *,
    losses: Sequence[str],
    qualities: Sequence[str],
    kinds: Sequence[str],
    seeds: Sequence[int],
    sizes: Sizes,
    overrides: Sequence[str] = (),
) -> list[NegativesUnit]:
    """Every run, base by base, so that a stopped experiment has whole bases.

    folders: number of a base -> where it is; qualities: of `QUALITIES`. The control and, for hacl, the loss without
    hallucinated captions are always among them: all arms have the same images, captions, order and updates.
    """
    columns = [(NONE, NONE), *([("hacl", NONE)] if "hacl" in losses else [])]
    columns += [(loss, quality) for quality in qualities for loss in losses]
    units = []
    for base, folder in folders.items():
        for seed in seeds:
            for loss, quality in columns:
                count = 0 if quality == NONE else 1
                units.append(
                    NegativesUnit(
                        LOSSES.get(loss, "control"),
                        base,
                        seed,
                        folder,
                        out / f"{arm_name(loss, quality)}-{base}-{seed}",
                        world,
                        sizes,
                        (f"objective.num_hallucinated={count}", "data.allow_missing_hallucinated=0.5", *overrides),
                        "train" if quality == NONE else tuning_name(quality, kinds),
                        loss,
                        quality,
                        tuple(kinds),
                    )
                )
    return units


def run_negatives_unit(unit: NegativesUnit) -> dict[str, Any]:
    """Tune and measure one arm on one base; writes and returns the result, or the one that is there."""
    import torch

    done = unit.finished()
    if done is not None:
        return done
    torch.set_num_threads(1)
    start_folder(unit)
    start = time.perf_counter()
    model, processor = tune(unit)
    tuned = time.perf_counter()
    metrics: dict[str, dict[str, float | None]] = {}
    items: dict[str, dict[str, dict[str, list[float]]]] = {}
    for split in unit.world.splits:
        records = read_records(unit.world.root / f"{split}.jsonl")
        found = evaluate(
            model, processor, records, unit.world.root, counts_from={}, sizes=Sizes(unit.sizes.captions, 0, 0, 0)
        )
        metrics[split], items[split] = found.metrics, found.items
        for report in _discrimination(model, processor, records, unit):
            tables = report.by_image()
            metrics[split] |= report.metrics
            items[split] |= tables
    result = {
        "key": unit.key(),
        "arm": unit.name,
        "loss": unit.loss,
        "quality": unit.quality,
        "base": unit.base,
        "seed": unit.seed,
        "metrics": metrics,
        "items": items,
        "seconds": round(tuned - start, 1),
        "seconds_measuring": round(time.perf_counter() - tuned, 1),
    }
    keep_result(unit, result)
    return result


def _discrimination(model, processor, records: Sequence[Record], unit: NegativesUnit) -> list[ScoreReport]:
    from hacl.evaluation.likelihood import caption_margins

    how: dict[str, Any] = {"prompt": PROMPT, "template": "chat", "batch_size": 100, "progress": False}
    few = records[: unit.sizes.margins]
    reports = []
    for name, asked in (("captions", few), ("statements", [statement_record(record) for record in few])):
        margins = caption_margins(model, processor, asked, unit.world.root, **how)
        columns = {
            "": [float(item["margin"] > 0) for item in margins.items],
            "_blind": [float(item["margin_blind"] > 0) for item in margins.items],
        }
        reports.append(by_group(margins.items, columns, name, unit.kinds))
    reports.append(_states(model, processor, records[: unit.sizes.states], unit))
    return reports


def _states(model, processor, records, unit: NegativesUnit) -> ScoreReport:
    """Share of pairs in which the image's state is nearer to the true caption's, read as the contrastive arm reads."""
    from hacl.config import load_config
    from hacl.evaluation.diagnostics import entanglement
    from hacl.evaluation.inputs import make_encoder
    from hacl.evaluation.states import collect_states
    from hacl.training.objective import HaclModel

    read = replace(load_config(CONFIGS / f"{LOSSES['hacl']}.yaml").objective, contrastive_weight=0.0, head="none")
    states = collect_states(
        HaclModel(model, read),
        make_encoder(processor, "chat", PROMPT),
        records,
        unit.world.root,
        batch_size=100,
        progress=False,
    )["pre"]
    items = list(entanglement(states, probe=False).items)
    return by_group(items, {"": [float(item["state_margin"] > 0) for item in items]}, "states", unit.kinds)


def by_group(
    items: Sequence[dict[str, Any]], columns: dict[str, Sequence[float]], name: str, trained: Sequence[str]
) -> ScoreReport:
    """Shares by kind, over the kinds of the training negatives and over the others, with the evidence of each image.

    items: rows with image_id and type; columns: suffix -> 0 or 1 of each row. Metrics: ``NAME/KIND`` with the suffix,
    ``NAME/trained`` and ``NAME/untrained``; kinds weigh by their pairs.
    """
    report = ScoreReport(items=list(items))
    groups = {kind: {kind} for kind in TYPES}
    groups |= {"trained": set(trained), "untrained": set(TYPES) - set(trained)}
    for suffix, column in columns.items():
        for group, kinds in groups.items():
            pairs = [
                (value, 1.0) if item["type"] in kinds else (0.0, 0.0) for item, value in zip(items, column, strict=True)
            ]
            asked = sum(bottom for _, bottom in pairs)
            if asked:
                report.ratios[f"{name}/{group}{suffix}"] = pairs
                report.metrics[f"{name}/{group}{suffix}"] = sum(top for top, _ in pairs) / asked
    return report


def statement_record(record: Record) -> Record:
    """One true statement about one thing for each kind of claim, and the same with another thing, colour or count.

    Absent things, colours and counts are drawn evenly; nothing prefers partners.
    """
    split, seed, index = record.id.rsplit("-", 2)
    scene = sample_scene(split, int(index), int(seed))
    rng = random.Random(f"statements/{record.id}")
    true, false = [], []
    for kind in STATEMENTS:
        mention = _mention(scene, rng)
        text = Caption("there is", (mention,)).render()
        if text not in true:
            true.append(text)
        edited = Caption("there is", (_edited(scene, mention, kind, rng),)).render()
        if edited not in {item.text for item in false}:
            false.append(HallucinatedCaption(edited, kind, None, "statement", true.index(text)))
    return replace(record, captions=tuple(true), hallucinated=tuple(false))


def _mention(scene: Scene, rng: random.Random) -> Mention:
    kind = rng.choice(list(scene.counts))
    return Mention(kind, scene.counts[kind], scene.colour_of(kind))


def _edited(scene: Scene, mention: Mention, kind: str, rng: random.Random) -> Mention:
    if kind == "object":
        return replace(mention, kind=rng.choice([each.name for each in KINDS if each.name not in scene.counts]))
    if kind == "attribute":
        return replace(mention, colour=rng.choice([name for name in COLOURS if name != mention.colour]))
    return replace(mention, count=rng.choice([count for count in (1, 2, 3) if count != mention.count]))
