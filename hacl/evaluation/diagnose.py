"""Compare checkpoints by the state diagnostics and the caption margin.

The same records, objective settings and projection serve every checkpoint, so that numbers and panels can be compared.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hacl.config import Config, ModelConfig, ObjectiveConfig
from hacl.config_io import from_dict
from hacl.data.records import Record
from hacl.evaluation.diagnostics import VIEWS, States, bootstrap_images, entanglement, gap_distances, modality_gap, view
from hacl.evaluation.inputs import make_encoder
from hacl.evaluation.likelihood import caption_margins
from hacl.evaluation.projection import SharedProjection
from hacl.evaluation.reports import ScoreReport
from hacl.evaluation.states import collect_states
from hacl.evaluation.statistics import bootstrap_runs
from hacl.models.adapters import find_adapter
from hacl.training.build import load_backbone, load_processor
from hacl.training.export import SIDECAR, load_exported_heads
from hacl.training.objective import HaclModel
from hacl.training.weights import HEADS

Row = dict[str, Any]


def diagnose(
    paths: Sequence[Path | str],
    records: Sequence[Record],
    image_root: Path | str,
    *,
    objective: ObjectiveConfig | None = None,
    prompt: str = "",
    template: str = "plain",
    batch_size: int = 16,
    draws: int = 200,
    device: str = "cpu",
    likelihood: bool = True,
    progress: bool = True,
) -> dict[str, Any]:
    """Rows of measures for each checkpoint folder, in order.

    objective: form, layer and pooling to read the states of every model with. A folder whose export holds contrastive
    heads is also measured after them.

    Returns:
        ``rows``: model, stage ("pre", "post", "likelihood"), view, measure, value, low, high (95% over images; null
        where there is none); ``states2d``: one panel per model, shared axes.

    Raises:
        FileNotFoundError: a model folder or an image is missing.
        ValueError: exported heads do not fit their settings, a folder is given twice, or no record qualifies.
    """
    objective = objective or ObjectiveConfig()
    rows: list[Row] = []
    collected: dict[str, dict[str, States]] = {}
    for name, path in zip(_names(paths), paths, strict=True):
        states, margins = _measure_model(
            Path(path), records, image_root, objective, prompt, template, batch_size, device, likelihood, progress
        )
        collected[name] = states
        for stage, found in states.items():
            for view_name in VIEWS:
                rows += state_rows(name, stage, view_name, view(found, view_name), draws)
        if margins is not None:
            rows += _ratio_rows(name, "likelihood", "", margins, draws)
    stage = "post" if all("post" in states for states in collected.values()) else "pre"
    projection = SharedProjection([states[stage] for states in collected.values()])
    panels = [projection.panel(states[stage], f"{name}, {stage}-head") for name, states in collected.items()]
    meta = {"models": [str(path) for path in paths], "records": len(records), "prompt": prompt, "template": template}
    return {"rows": rows, "states2d": panels, "meta": meta | {"draws": draws, "picture_stage": stage}}


def state_rows(model: str, stage: str, view_name: str, states: States, draws: int) -> list[Row]:
    """Both findings of one view as rows, with intervals over images.

    Distances and the classifier are given for the raw view alone: the other views take the gap out, and what would be
    measured is the noise of doing so.
    """
    raw = view_name == "raw"
    gap, pairs = modality_gap(states, probe=raw), entanglement(states)
    for measure in () if raw else ("centroid_distance", "relative_gap"):
        del gap.metrics[measure]
    bounds = bootstrap_images(states, gap_distances, draws=draws)
    rows = _ratio_rows(model, stage, view_name, gap, draws, bounds)
    return rows + _ratio_rows(model, stage, view_name, pairs, draws)


def exported_config(folder: Path | str) -> Config | None:
    """The configuration that an exported folder was trained with, None where it was not exported from a run."""
    path = Path(folder) / SIDECAR / "config.json"
    return from_dict(Config, json.loads(path.read_text(encoding="utf-8")), where=str(path)) if path.is_file() else None


def _measure_model(path, records, image_root, objective, prompt, template, batch_size, device, likelihood, progress):
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder; give the folder of an exported or saved model")
    config = ModelConfig(path=str(path))
    backbone, processor = load_backbone(config).to(device).eval(), load_processor(config)
    heads = None
    if (path / SIDECAR / HEADS).is_file():
        heads = load_exported_heads(path, find_adapter(backbone).hidden_size).to(device)
    model = HaclModel(backbone, replace(objective, contrastive_weight=0.0), heads=heads)
    encoder = make_encoder(processor, template, prompt)
    states = collect_states(model, encoder, records, image_root, batch_size=batch_size, progress=progress)
    margins = None
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
    return states, margins


def _ratio_rows(model, stage, view_name, report: ScoreReport, draws, bounds=None) -> list[Row]:
    tables, rows = report.by_image(), []
    for measure, value in report.metrics.items():
        low = high = None
        if measure in tables:
            interval = bootstrap_runs([tables[measure]], draws=draws)
            low, high = interval.low, interval.high
        elif bounds and bounds.get(measure):
            low, high = bounds[measure]
        key = {"model": model, "stage": stage, "view": view_name, "measure": measure}
        rows.append(key | {"value": value, "low": low, "high": high})
    return rows


def _names(paths: Sequence[Path | str]) -> list[str]:
    """Folder names, or whole paths where folder names repeat."""
    short = [Path(path).name for path in paths]
    if len(set(short)) == len(short):
        return short
    whole = [str(path) for path in paths]
    if len(set(whole)) != len(whole):
        raise ValueError("the same model folder was given twice")
    return whole
