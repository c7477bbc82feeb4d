"""Compare checkpoints by the state diagnostics and the caption margin.

The same records, objective settings and projection serve every checkpoint, so that numbers and panels can be compared.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hacl.config import Config, ModelConfig, ObjectiveConfig
from hacl.config_io import from_dict
from hacl.data.records import Record
from hacl.evaluation.controls import controls, text_probe
from hacl.evaluation.diagnostics import VIEWS, States, bootstrap_images, entanglement, gap_distances, modality_gap, view
from hacl.evaluation.inputs import make_encoder
from hacl.evaluation.likelihood import caption_margins
from hacl.evaluation.projection import SharedProjection
from hacl.evaluation.reports import ScoreReport
from hacl.evaluation.runner.source import find_model
from hacl.evaluation.states import caption_rows, collect_states
from hacl.evaluation.statistics import bootstrap_runs
from hacl.models.adapters import find_adapter
from hacl.models.identity import HUB
from hacl.training import manifest
from hacl.training.build import build_heads, load_backbone, load_processor
from hacl.training.export import SIDECAR, base_folder, find_checkpoint, load_exported_heads, load_finetuned
from hacl.training.objective import HaclModel
from hacl.training.weights import HEADS, load_heads

Row = dict[str, Any]


def diagnose(
    paths: Sequence[Path | str],
    records: Sequence[Record],
    image_root: Path | str,
    *,
    objective: ObjectiveConfig | None = None,
    prompt: str = "",
    template: str = "plain",
    layers: Sequence[int] = (),
    base: str | None = None,
    batch_size: int = 16,
    draws: int = 200,
    device: str = "cpu",
    likelihood: bool = True,
    progress: bool = True,
) -> dict[str, Any]:
    """Rows of measures for each model folder, training checkpoint, run folder or ``hub:owner/name@REVISION``, in order.

    objective: form, layer and pooling to read the states of every model with. A model with contrastive heads is also
    measured after them. layers: decoder blocks (1..L) to read pre-head states at as well.
    base: folder of the base model of every checkpoint, if it moved since.

    Returns:
        ``rows``: model, stage ("pre", "post", "layer 3", "likelihood", "text"), view, measure, value, low, high (95%
        over images; null where there is none); ``states2d``: one panel per model, shared axes; ``meta``.

    Raises:
        FileNotFoundError: a model folder or an image is missing.
        ValueError: exported heads do not fit their settings, a folder is given twice, or no record qualifies.
    """
    objective = objective or ObjectiveConfig()
    rows: list[Row] = []
    collected: dict[str, dict[str, States]] = {}
    words = _text_report(records, draws)
    for name, path in zip(_names(paths), paths, strict=True):
        backbone, processor, heads = _load(Path(path), base, device)
        encoder = make_encoder(processor, template, prompt)
        collected[name] = {}
        for layer in dict.fromkeys([objective.layer, *layers]):
            read = replace(objective, contrastive_weight=0.0, layer=layer)
            own = layer == objective.layer
            model = HaclModel(backbone, read, heads=heads if own else None)
            found = collect_states(model, encoder, records, image_root, batch_size=batch_size, progress=progress)
            collected[name] |= found if own else {f"layer {layer}": found["pre"]}
        for stage, states in collected[name].items():
            for view_name in VIEWS:
                rows += state_rows(name, stage, view_name, view(states, view_name), draws)
        if likelihood:
            margins = caption_margins(
                backbone,
                processor,
                records,
                image_root,
                prompt=prompt,
                template=template,
                batch_size=batch_size,
                progress=progress,
            )
            rows += _ratio_rows(name, "likelihood", "", margins, draws)
        rows += _ratio_rows(name, "text", "", words, draws)
    stage = "post" if all("post" in states for states in collected.values()) else "pre"
    projection = SharedProjection([states[stage] for states in collected.values()])
    panels = [projection.panel(states[stage], f"{name}, {stage}-head") for name, states in collected.items()]
    meta = {"models": [str(path) for path in paths], "records": len(records), "prompt": prompt, "template": template}
    meta |= {"layers": list(layers), "objective": asdict(objective), "draws": draws, "picture_stage": stage}
    return {"rows": rows, "states2d": panels, "meta": meta}


def state_rows(model: str, stage: str, view_name: str, states: States, draws: int) -> list[Row]:
    """Both findings and their controls in one view as rows, with intervals over images.

    Distances and the classifier are given for the raw view alone: the other views take the gap out, and what would be
    measured is the noise of doing so.
    """
    raw = view_name == "raw"
    gap, pairs = modality_gap(states, probe=raw, draws=draws), entanglement(states, draws=draws)
    for measure in () if raw else ("centroid_distance", "relative_gap"):
        del gap.metrics[measure]
    bounds = bootstrap_images(states, gap_distances, draws=draws)
    rows = _ratio_rows(model, stage, view_name, gap, draws, bounds)
    rows += _ratio_rows(model, stage, view_name, pairs, draws)
    return rows + _ratio_rows(model, stage, view_name, controls(states, draws=draws), draws)


def exported_config(folder: Path | str) -> Config | None:
    """The configuration that an exported folder, a checkpoint or a run was trained with, None for any other folder."""
    path = Path(folder) / SIDECAR / "config.json"
    if path.is_file():
        return from_dict(Config, json.loads(path.read_text(encoding="utf-8")), where=str(path))
    if not _is_run(Path(folder)):
        return None
    checkpoint, _ = find_checkpoint(folder)
    return from_dict(Config, manifest.read_manifest(checkpoint)["config"], where=str(checkpoint / manifest.MANIFEST))


def _is_run(folder: Path) -> bool:
    """Whether a folder is a training checkpoint, or a run folder that holds one."""
    return (folder / manifest.MANIFEST).is_file() or any(folder.glob(f"checkpoint-*/{manifest.MANIFEST}"))


def _load(path: Path, base: str | None, device: str) -> tuple[Any, Any, Any]:
    """Backbone, processor and contrastive heads (None where there are none) of a model folder, checkpoint or run."""
    if str(path).startswith(HUB):
        path = find_model(str(path)).folder
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder; give the folder of a model, a checkpoint or a run")
    heads = None
    if _is_run(path):
        checkpoint, _ = find_checkpoint(path)
        backbone, config = load_finetuned(checkpoint, base=base)
        place = base_folder(manifest.read_manifest(checkpoint), base)
        processor = load_processor(replace(config.model, path=str(place), revision=None))
        if (checkpoint / HEADS).is_file():
            heads = build_heads(find_adapter(backbone), config.objective, seed=config.train.seed, trainable=False)
            load_heads(heads, checkpoint)
    else:
        config = ModelConfig(path=str(path))
        backbone, processor = load_backbone(config), load_processor(config)
        if (path / SIDECAR / HEADS).is_file():
            heads = load_exported_heads(path, find_adapter(backbone).hidden_size)
    return backbone.to(device).eval(), processor, None if heads is None else heads.to(device).eval()


def _text_report(records: Sequence[Record], draws: int) -> ScoreReport:
    _, true, false = caption_rows(records)
    groups = [image for image, _ in true] + [image for image, *_ in false]
    return text_probe([text for _, text in true], [text for *_, text in false], groups, draws=draws)


def _ratio_rows(model, stage, view_name, report: ScoreReport, draws, bounds=None) -> list[Row]:
    tables, rows = report.by_image(), []
    for measure, value in report.metrics.items():
        low = high = None
        if measure in tables:
            interval = bootstrap_runs([tables[measure]], draws=draws)
            low, high = interval.low, interval.high
        elif report.intervals.get(measure):
            low, high = report.intervals[measure]
        elif bounds and bounds.get(measure):
            low, high = bounds[measure]
        key = {"model": model, "stage": stage, "view": view_name, "measure": measure}
        rows.append(key | {"value": value, "low": low, "high": high})
    return rows


def _names(paths: Sequence[Path | str]) -> list[str]:
    """Folder names (of a checkpoint: its run's too), or whole paths where they repeat."""
    short = [Path(path).name for path in paths]
    short = [
        f"{Path(p).parent.name}/{n}" if n.startswith("checkpoint-") else n for n, p in zip(short, paths, strict=True)
    ]
    if len(set(short)) == len(short):
        return short
    whole = [str(path) for path in paths]
    if len(set(whole)) != len(whole):
        raise ValueError("the same model folder was given twice")
    return whole
