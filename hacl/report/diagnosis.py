"""Files and the screen table of a diagnosis (hacl.evaluation.diagnose): data, tables, one picture, one page."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from hacl.report.formats import html_page, html_table, latex_table, markdown_table, value_text
from hacl.report.parts import figure
from hacl.report.plots import intervals_figure, states_figure
from hacl.report.tables import align

Row = dict[str, Any]
GAP = ("centroid_distance", "relative_gap", "modality_auc", "knn_purity")
MATCHING = ("matched_cosine", "unmatched_cosine", "cosine_difference", "i2t@1", "i2t@5", "t2i@1", "t2i@5")
PAIRS = ("state_margin_accuracy", "state_margin_accuracy_shuffled", "state_margin_gain")
APART = ("shift", "paraphrase_shift", "shift_beyond_paraphrase", "probe_auc", "probe_auc_paraphrase")
MIXED = ("knn_mixing", "knn_mixing_paraphrase", "energy_distance", "energy_p", "energy_distance_paraphrase")
LIKELIHOOD = ("margin_accuracy", "margin_accuracy_blind", "margin_accuracy_wrong_image", "text_probe_auc")
MAIN = (*GAP, *MATCHING, *PAIRS, "state_margin_accuracy_paraphrase", *APART, *MIXED, *LIKELIHOOD)
HEADINGS = (
    ("Modality gap", GAP),
    ("Matching of images and captions", MATCHING),
    ("True against hallucinated, given the image", (*PAIRS, "state_margin_accuracy_paraphrase")),
    ("True against hallucinated, captions alone", (*APART, *MIXED)),
    ("By likelihood, and words alone", LIKELIHOOD),
)


def write_diagnosis(result: dict[str, Any], folder: Path | str) -> list[Path]:
    """Write ``diagnosis.json``, ``.csv``, ``.md``, ``.tex``, ``.html`` and ``states.png``; returns their paths.

    JSON and CSV hold every row, the tables and the page the main measures.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = ("diagnosis.json", "diagnosis.csv", "states.png", "diagnosis.md", "diagnosis.tex", "diagnosis.html")
    paths = [folder / name for name in names]
    paths[0].write_text(json.dumps(result, indent=1), encoding="utf-8")
    with paths[1].open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["model", "stage", "view", "measure", "value", "low", "high"])
        writer.writeheader()
        writer.writerows(result["rows"])
    picture = states_figure(result["states2d"])
    paths[2].write_bytes(base64.b64decode(picture.split(",", 1)[1]))
    rows = diagnosis_rows(result)
    paths[3].write_text(markdown_table(rows), encoding="utf-8")
    paths[4].write_text(latex_table(rows, "diagnosis: value and 95% interval over images"), encoding="utf-8")
    paths[5].write_text(_page(result, picture), encoding="utf-8")
    return paths


def diagnosis_rows(result: dict[str, Any], measures: Sequence[str] = ()) -> list[list[str]]:
    """A head, then one row per stage, view and measure with a column per model. Empty ``measures``: the main ones."""
    wanted = measures or MAIN
    models = list(dict.fromkeys(row["model"] for row in result["rows"]))
    cells = {(r["stage"], r["view"], r["measure"], r["model"]): r for r in result["rows"] if r["measure"] in wanted}
    order = {key[:2]: n for n, key in reversed(list(enumerate(cells)))}
    keys = sorted(dict.fromkeys(key[:3] for key in cells), key=lambda k: (order[k[:2]], wanted.index(k[2])))
    return [["stage", "view", "measure", *models]] + [
        [*key, *(_text(cells.get((*key, model))) for model in models)] for key in keys
    ]


def diagnosis_table(result: dict[str, Any], measures: Sequence[str] = ()) -> str:
    """:func:`diagnosis_rows` in aligned columns, for the screen."""
    return align(diagnosis_rows(result, measures))


def _page(result: dict[str, Any], picture: str) -> str:
    meta = result["meta"]
    body = [
        "<h1>Diagnosis of states</h1>",
        f"<p>{meta['records']} records; models: {escape(', '.join(meta['models']))}. Intervals: 95% over images. "
        "Measures with _paraphrase stand other true captions of an image in the place of hallucinated ones, "
        "_shuffled another image in the place of its own.</p>",
        figure(
            picture,
            "Image, true-caption and hallucinated-caption states of every model in the same two components.",
            "One principal component analysis of the union of all models; all panels share their axes. Two components "
            "leave most of the variance out: the measures, not this picture, are the evidence.",
        ),
    ]
    stages = dict.fromkeys((row["stage"], row["view"]) for row in result["rows"])
    for title, measures in HEADINGS:
        rows = diagnosis_rows(result, measures)
        if len(rows) == 1:
            continue
        body += [f"<h2>{escape(title)}</h2>", html_table(rows, title)]
        panels = [panel for stage, view in stages for m in measures if (panel := _panel(result, stage, view, m))]
        drawn = intervals_figure([panel for panel in panels if panel["drawn"]])
        if drawn:
            text = "Point and bar: value and 95% interval over images."
            body.append(figure(drawn, f"{title}: measures per model; the table above holds the numbers.", text))
    return html_page("Diagnosis of states", body)


def _panel(result: dict[str, Any], stage: str, view: str, measure: str) -> dict[str, Any] | None:
    """One measure of every model. Drawn: states before and after the heads, raw and centred, and likelihoods."""
    found = [r for r in result["rows"] if (r["stage"], r["view"], r["measure"]) == (stage, view, measure)]
    if not found:
        return None
    drawn = stage in ("pre", "post", "likelihood", "text") and view != "whitened"
    rows = [(r["model"], r["value"], r["low"], r["high"]) for r in found]
    return {"title": " ".join(filter(None, (stage, view, measure))), "rows": rows, "drawn": drawn}


def _text(row: Row | None) -> str:
    return "n/a" if row is None else value_text(row["value"], row["low"], row["high"])
