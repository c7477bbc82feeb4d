"""Put the runs of a pocket experiment together into what the report reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hacl.pocket.experiment import UNTUNED, World

CONTROL = "control"
LABELS = {
    "control": ("Control", "generation loss only"),
    "contrastive": ("Contrastive", "generation + contrastive loss without hallucinated captions"),
    "hacl_paper": ("HACL, paper's form", "last token after the final norm, one hallucinated caption of the own image"),
    "hacl_ours": ("HACL, ours", "means after block 3, no heads, two hallucinated captions"),
    "margin": ("Likelihood margin", "generation + likelihood margin on the same hallucinated captions (yardstick)"),
    UNTUNED: ("Base, untuned", "what every arm starts from"),
}
SPLITS = {
    "like": ("Scenes like training", "A kind's partner is present nine times in ten, as in training."),
    "broken": ("Scenes without partners", "Partners never appear together: naming one is the language prior's doing."),
    "independent": ("Scenes with independent kinds", "Kinds are drawn without regard to partners."),
}


def _measures() -> list[dict[str, Any]]:
    def measure(key, label, better, group, description, headline=False, form=".3f"):
        return {
            "key": key,
            "label": label,
            "better": better,
            "group": group,
            "description": description,
            "headline": headline,
            "format": form,
        }

    captions, yes_no, margin = "Captions", "Yes/no questions", "Caption margin"
    states = "States (last token, after the final norm, before any head)"
    found = [
        measure("chair_i", "CHAIR_i", "lower", captions, "hallucinated mentions / mentions", True),
        measure("chair_s", "CHAIR_s", "lower", captions, "captions with a hallucinated mention", True),
        measure("recall", "object recall", "higher", captions, "true objects mentioned", True),
        measure("length", "words", None, captions, "mean words per caption", form=".1f"),
    ]
    for split in ("random", "popular", "adversarial"):
        found.append(
            measure(f"pope_{split}", f"POPE {split}", "higher", yes_no, "accuracy", headline=split == "adversarial")
        )
        found.append(measure(f"pope_{split}_yes", f"yes {split}", None, yes_no, "share of answers that are yes"))
    found += [
        measure("margin", "all types", "higher", margin, "true caption likelier per token than hallucinated one", True),
        measure("margin_blind", "all, no image", None, margin, "the same without the image"),
    ]
    for kind in ("object", "insertion", "attribute", "number", "relation"):
        found.append(measure(f"margin_{kind}", kind, "higher", margin, f"{kind} hallucinations"))
    found += [
        measure("gap_relative", "relative gap", None, states, "distance of centroids / spread within a modality"),
        measure("gap_auc", "modality AUC", None, states, "image against text by a linear probe"),
        measure("i2t_1", "image to text @1", "higher", states, "own caption is the nearest"),
        measure("state_margin", "cos(image, true) > cos(image, false)", "higher", states, "share of pairs"),
        measure("probe_auc", "true / false probe AUC", None, states, "text states alone"),
    ]
    for measured in found:
        if measured["key"] in ("gap_auc", "probe_auc"):  # measured per run, so their intervals come from runs alone
            measured["bounds"] = [0, 1]
    return found


def assemble(
    runs: Sequence[dict[str, Any]],
    world: World,
    *,
    header: str,
    command: str,
    bases: dict[int, dict[str, Any]],
    folders: dict[tuple[str, int, int], Path],
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The `results` dictionary of :mod:`hacl.report.schema`.

    runs: results of :func:`hacl.pocket.experiment.run_unit`; bases: number -> its `base.json`; folders: (arm, base,
    seed) -> where a run's files are.
    """
    from hacl.training.manifest import versions

    order = [name for name in LABELS if any(run["arm"] == name for run in runs)]
    arms = []
    for name in order:
        label, description = LABELS[name]
        arms.append(
            {
                "name": name,
                "label": label,
                "description": description,
                "reference": name == UNTUNED,
                "runs": [
                    {key: run[key] for key in ("base", "seed", "metrics", "items", "log_path", "seconds")}
                    for run in runs
                    if run["arm"] == name
                ],
            }
        )
    some = next(iter(bases.values()))
    return {
        "title": "HACL in the pocket world",
        "header": header,
        "summary": [
            f"{len(bases)} base model(s) of {some['parameters']:,} parameters, tuned on {world.tuning} scenes and "
            f"measured on {world.test} scenes of each split.",
            "Every arm has the same base, data order and number of generation updates; only the losses differ.",
        ],
        "control": CONTROL,
        "splits": [
            {"name": split, "label": SPLITS[law][0], "description": SPLITS[law][1]}
            for split in world.splits
            for law in [split.split("_", 1)[1]]
        ],
        "measures": _measures(),
        "arms": arms,
        "curves": [
            {"key": "lm", "label": "generation loss"},
            {"key": "contrastive", "label": "contrastive loss"},
            {"key": "hard_negative_win_rate", "label": "hard-negative win rate"},
        ],
        "states2d": states_panels(order, runs, world, folders),
        "examples": examples(order, runs, world),
        "notes": list(notes),
        "provenance": {
            "command": command,
            "versions": versions(),
            "bases": {str(number): record for number, record in bases.items()},
        },
    }


def states_panels(order, runs, world: World, folders) -> list[dict[str, Any]]:
    """States of the first base and seed on the broken split, before and after each arm, on shared axes."""
    import numpy as np
    from safetensors.numpy import load_file

    from hacl.evaluation.diagnostics import States
    from hacl.evaluation.projection import SharedProjection

    split = next((name for name in world.splits if name.endswith("broken")), world.splits[0])
    chosen, first = [], runs[0]["base"]
    for name in sorted(order, key=lambda arm: arm != UNTUNED):
        run = next((r for r in runs if r["arm"] == name and r["base"] == first), None)
        path = run and folders[name, run["base"], run["seed"]] / "states.safetensors"
        if not path or not path.is_file():
            continue
        tensors = load_file(path)
        if f"{split}/image" not in tensors:
            continue
        image, true, false = (tensors[f"{split}/{part}"] for part in ("image", "true", "hallucinated"))
        owners = np.zeros(len(true), dtype=int), np.zeros(len(false), dtype=int)
        ids = tuple(map(str, range(len(image))))
        states = States(image, true, false, owners[0], owners[1], owners[1], ("other",) * len(false), ids)
        chosen.append((LABELS[name][0], states))
    if not chosen:
        return []
    projection = SharedProjection([states for _, states in chosen])
    return [projection.panel(states, f"{label} (base {first})") for label, states in chosen]


def examples(order, runs, world: World, count: int = 6) -> list[dict[str, Any]]:
    """Scenes without partners with the caption of each arm, invented words marked; first where arms differ most."""
    from hacl.data.records import read_records

    split = next((name for name in world.splits if name.endswith("broken")), world.splits[0])
    first = runs[0]["base"]
    captions: dict[str, dict[str, dict]] = {}
    for name in order:
        run = next((r for r in runs if r["arm"] == name and r["base"] == first), None)
        if run is not None:
            captions[name] = {item["image_id"]: item for item in run["captions"][split]}
    records = {record.image_id: record for record in read_records(world.root / f"{split}.jsonl")}
    shown = set.intersection(*(set(found) for found in captions.values())) if captions else set()

    def spread(image_id: str) -> tuple[int, str]:
        return -len({len(found[image_id]["marks"]) for found in captions.values()}), image_id

    return [
        {
            "image": str((world.root / records[image_id].images[0]).resolve()),
            "alt": "drawn scene with " + ", ".join(f"{n} {kind}" for kind, n in records[image_id].objects.items()),
            "title": image_id,
            "truth": records[image_id].captions[0],
            "objects": list(records[image_id].objects),
            "captions": [
                {"arm": name, "text": found[image_id]["caption"], "marks": found[image_id]["marks"]}
                for name, found in captions.items()
            ],
        }
        for image_id in sorted(shown, key=spread)[:count]
    ]


def write_results(results: dict[str, Any], out: Path) -> Path:
    """`results.json` in ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "results.json"
    path.write_text(json.dumps(results), encoding="utf-8")
    return path
