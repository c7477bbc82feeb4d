"""Put the measures of all smol runs into the results that the report reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hacl.data.records import Record
from hacl.smol.prepare import Layout

ARMS = {
    "control": "generation loss only",
    "contrastive": "generation + contrastive loss without hallucinated captions",
    "hacl": "HACL as published: states of the last image token and of EOS",
    "hacl_mean": "HACL on means over image tokens and over caption tokens (ours)",
    "hacl_lora": "HACL with LoRA on the decoder, half as many steps",
}
SPLIT = "held-out"
TYPES = ("object", "attribute", "number", "relation", "action", "insertion")


def _measures() -> list[dict[str, Any]]:
    def row(key: str, label: str, better: str | None, group: str, **more) -> dict[str, Any]:
        return {"key": key, "label": label, "better": better, "group": group, **more}

    margin, states = "True against hallucinated captions, by likelihood", "Retrieval"
    chair = "Generated captions"
    rows = [
        row("margin_accuracy", "margin accuracy", "higher", margin, headline=True),
        row("margin_accuracy_blind", "without image", None, margin),
        row("margin_accuracy_wrong_image", "with another image", None, margin),
        row("margin_gain_wrong_image", "gain of the right over another image", "higher", margin, headline=True),
        row("margin_accuracy_pmi", "prior taken out (PMI)", "higher", margin),
    ]
    by_type = "Margin accuracy by type"
    for kind in TYPES:
        rows.append(row(f"margin_accuracy/{kind}", kind, "higher", by_type))
        rows.append(row(f"margin_accuracy_blind/{kind}", f"{kind}, without image", None, by_type))
        rows.append(row(f"margin_accuracy_wrong_image/{kind}", f"{kind}, another image", None, by_type))
        rows.append(row(f"margin_accuracy_pmi/{kind}", f"{kind}, PMI", "higher", by_type))
    for stage, words in (("post", "after heads"), ("pre", "states, centred")):
        rows += [row(f"{stage}/{way}@{k}", f"{way}@{k}, {words}", "higher", states) for way in ("i2t", "t2i")
                 for k in (1, 5)]  # fmt: skip
        rows.append(row(f"{stage}_states/state_margin_accuracy", f"state margin, {words}", "higher", states))
    rows += [
        row("chair/CHAIRi", "CHAIR_i", "lower", chair, headline=True),
        row("chair/CHAIRs", "CHAIR_s", "lower", chair, headline=True),
        row("chair/Recall", "object recall", "higher", chair),
        row("chair/mean_length", "words", None, chair),
        row("chair_shuffled/CHAIRi", "CHAIR_i of captions on another photo", None, chair),
    ]
    return rows


def results(
    layout: Layout, runs: Sequence[tuple[str, int]], records: Sequence[Record], *, examples: int = 12
) -> dict[str, Any]:
    """The report's dictionary from the evaluations that exist. Raises ValueError when no control was evaluated."""
    arms: dict[str, list[dict[str, Any]]] = {}
    for arm, seed in runs:
        path = layout.evaluation(arm, seed)
        if path.is_file():
            arms.setdefault(arm, []).append(json.loads(path.read_text(encoding="utf-8")) | {"seed": seed})
    if "control" not in arms:
        raise ValueError(f"{layout.runs}: no evaluated control run; train and evaluate it first")
    rows = [
        {
            "name": arm,
            "label": arm.replace("_", " "),
            "description": ARMS[arm],
            "runs": [_run(layout, arm, r) for r in found],
        }
        for arm, found in arms.items()
    ]
    seeds = max(len(found) for found in arms.values())
    return {
        "title": "HACL on real photographs with small real weights (smol)",
        "header": f"{seeds} seed(s), {len(records)} held-out photographs: shows what losses do, no absolute quality",
        "summary": [
            "SmolLM2-135M-Instruct (de-quantised Q4_1 copy) and EfficientNet-Lite0, joined by a projector that is "
            "aligned in closed form and then trained; tower and decoder frozen, except with LoRA.",
        ],
        "control": "control",
        "splits": [{"name": SPLIT, "label": "Held-out photographs"}],
        "measures": _measures(),
        "arms": rows + _references(layout),
        "examples": _examples(layout, arms, records[:examples]),
        "notes": _notes(layout),
    }


def _run(layout: Layout, arm: str, found: dict[str, Any]) -> dict[str, Any]:
    log = layout.run(arm, found["seed"]) / "metrics.jsonl"
    return {
        "base": 0,
        "seed": found["seed"],
        "metrics": {SPLIT: found["metrics"]},
        "items": {SPLIT: found["items"]},
        "seconds": found.get("seconds"),
        **({"log_path": str(log.resolve())} if log.is_file() else {}),
    }


def _references(layout: Layout) -> list[dict[str, Any]]:
    """The base model, and the ridge to sentence embeddings under the names of the measures it is compared with."""
    rows = []
    if layout.evaluation("base", 0).is_file():
        found = json.loads(layout.evaluation("base", 0).read_text(encoding="utf-8"))
        run = {"seed": 0, "metrics": {SPLIT: found["metrics"]}, "items": {SPLIT: found["items"]}}
        what = "closed-form projector, no training"
        rows.append({"name": "base", "label": "base", "description": what, "reference": True, "runs": [run]})
    for name, found in json.loads(layout.baseline.read_text(encoding="utf-8")).items():
        metrics = {f"post/{key}": value for key, value in found["metrics"].items()}
        items = {f"post/{key}": value for key, value in found["items"].items()}
        run = {"seed": 0, "metrics": {SPLIT: metrics}, "items": {SPLIT: items}}
        what = {
            "minilm": "closed-form ridge from vision features to all-MiniLM-L6-v2 sentence embeddings",
            "decoder_last": "the same to the decoder's EOS state: the most a linear map finds in what HACL contrasts",
            "decoder_mean": "the same to the decoder's mean caption state",
        }[name]
        rows.append({"name": f"ridge_{name}", "label": f"ridge to {name.replace('_', ' ')}", "description": what,
                     "reference": True, "runs": [run]})  # fmt: skip
    return rows


def _examples(layout: Layout, arms: dict[str, list], records: Sequence[Record]) -> list[dict[str, Any]]:
    shown = []
    for record in records:
        captions = []
        for arm, found in arms.items():
            entry = next(c for c in found[0]["captions"] if c["image_id"] == record.image_id)
            captions.append({"arm": arm, "text": entry["text"], "marks": entry["marks"]})
        shown.append({
            "image": str((layout.data / record.images[0]).resolve()),
            "alt": record.captions[0],
            "title": f"{record.extra['license']}, {record.extra['flickr_url']}",
            "truth": record.captions[0],
            "objects": sorted(record.extra["chair_objects"]),
            "captions": captions,
        })  # fmt: skip
    return shown


def _notes(layout: Layout) -> list[str]:
    return [
        "The language prior alone (without image) tells many hallucinated captions from true ones, because an edit "
        "makes a caption less likely; only the gain over the two baselines is evidence of seeing.",
        "Photographs in the report are shown with their licence and source; the report is not for publication.",
    ]
