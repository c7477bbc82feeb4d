"""Files and the screen table of a diagnosis (hacl.evaluation.diagnose): JSON, CSV and one picture."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hacl.report.plots import states_figure
from hacl.report.tables import align


def write_diagnosis(result: dict[str, Any], folder: Path | str) -> list[Path]:
    """Write ``diagnosis.json``, ``diagnosis.csv`` and ``states.png``; returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in ("diagnosis.json", "diagnosis.csv", "states.png")]
    paths[0].write_text(json.dumps(result, indent=1), encoding="utf-8")
    with paths[1].open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["model", "stage", "view", "measure", "value", "low", "high"])
        writer.writeheader()
        writer.writerows(result["rows"])
    paths[2].write_bytes(base64.b64decode(states_figure(result["states2d"]).split(",", 1)[1]))
    return paths


def diagnosis_table(result: dict[str, Any], measures: Sequence[str] = ()) -> str:
    """Plain text: one row per stage, view and measure, one column per model. Empty ``measures``: the main ones."""
    wanted = measures or (
        *("relative_gap", "modality_auc", "cosine_difference", "i2t@1", "t2i@1"),
        *("state_margin_accuracy", "shift", "paraphrase_shift", "probe_auc"),
        *("margin_accuracy", "margin_accuracy_blind", "margin_accuracy_wrong_image"),
    )
    models = list(dict.fromkeys(row["model"] for row in result["rows"]))
    cells = {(r["stage"], r["view"], r["measure"], r["model"]): r for r in result["rows"] if r["measure"] in wanted}
    keys = list(dict.fromkeys(key[:3] for key in cells))
    table = [["stage", "view", "measure", *models]]
    table += [[*key, *(_text(cells.get((*key, model))) for model in models)] for key in keys]
    return align(table)


def _text(row: dict[str, Any] | None) -> str:
    if row is None or row["value"] is None:
        return "n/a"
    bounds = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
    return f"{row['value']:.3f}{bounds}"
