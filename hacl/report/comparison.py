"""The page of a comparison (scripts/compare.py), made from the JSON files in its folder alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from hacl.report import comparison_plots as plots
from hacl.report.formats import html_page, html_table, value_text
from hacl.report.parts import embed_image, figure
from hacl.report.plots import intervals_figure

Row = dict[str, Any]
PAGE = "report.html"
SHOWN = 4  # images per concept
CONTROLS = {
    "own": "own shift", "none": "no shift", "global": "one shift for all", "shuffled": "shuffled concepts",
    "permuted": "permuted pairs", "random": "random directions", "other": "another concept's shift",
    "tuned_again": "tuned model's own concepts", "in_sample": "in-sample (tautology)",
}  # fmt: skip


def write_comparison(folder: Path | str) -> Path:
    """Write `report.html` from what the folder holds; returns its path.

    Raises:
        FileNotFoundError: nothing of a comparison is there.
    """
    folder = Path(folder)
    analyses = [_read(path) for path in sorted(folder.glob("layers/*/analysis.json"))]
    behaviour, drift = _read(folder / "behaviour.json"), _read(folder / "drift.json")
    if not (analyses or behaviour or drift):
        raise FileNotFoundError(f"{folder}: neither layers/*/analysis.json, behaviour.json nor drift.json; run a stage")
    summary = _read(folder / "summary.json").get("layers", [])
    body = ["<h1>Original against tuned model</h1>", *_head(_read(folder / "config.json")), "<ul>"]
    body += [f"<li>Layer {escape(a['layer'])}, {escape(a['selector'])}: {escape(a['verdict'])}</li>" for a in analyses]
    if behaviour:
        body.append(f"<li>Behaviour: {escape(behaviour['verdict'])}</li>")
    body += ["</ul>", *_behaviour(behaviour, folder), *_layers(summary)]
    files = _images(folder)
    for found in analyses:
        body += _analysis(found, files, folder)
    body += _drift(drift)
    path = folder / PAGE
    path.write_text(html_page("Original against tuned model", body), encoding="utf-8")
    return path


def _head(config: Row) -> list[str]:
    if not config:
        return []
    line = f"original {config.get('original')}, tuned {config.get('tuned')}, records {config.get('records')}"
    texts = f"the same text for both models ({config.get('answer')})"
    texts = "each model's own text" if config.get("mode") == "free" else texts
    concepts = f"{config['concepts']} concepts by {config.get('method')}, " if "concepts" in config else ""
    return [
        f"<p>{escape(line)}. States under {escape(texts)}, "
        f"{escape(concepts)}seed {escape(str(config.get('seed')))}. Intervals: 95% over images.</p>"
    ]


def _behaviour(found: Row, folder: Path) -> list[str]:
    if not found:
        return []
    body = ["<h2>How much of the tuned behaviour comes back without training</h2>"]
    meta = found["meta"]
    if found.get("kl_original") is not None:
        body.append(
            f"<p>KL(tuned || original) is {found['kl_original']:.4f} nats per token on the test texts. Setting "
            f"chosen on {meta['validation']['images']} images, confirmed once on {meta['test']['images']} others; "
            f"interventions were fitted on {meta['fitted_on']} further images.</p>"
        )
    body += [f"<p>{escape(line)}</p>" for line in found["warnings"]]
    for line in found["gate_failures"]:
        body.append(f'<p class="header">Control not beaten: {escape(line)}</p>')
    drawn = plots.strength_figure(found["curve"])
    if drawn:
        text = "Validation images. 1 closes the whole gap, 0 is the original, below 0 moves away. The axis ends at -1."
        body.append(figure(drawn, "Share of the KL gap closed over alpha, by layer and method.", text))
    rows = [["variant", "role", "setting", "KL gap closed on test", "chosen minus this"]]
    for row in found["variants"]:
        setting = f"alpha {row['alpha']:g}, layer {row['layers'] or 'all blocks'}, {row['policy']}"
        behind = _interval(row, "chosen_minus_this") if "chosen_minus_this" in row else ""
        rows.append([row["name"], row["role"], setting, _interval(row, "share") + _note(row), behind])
    body.append(html_table(rows, "Every method at its best validation setting, and the controls of the chosen one"))
    bars = [(row["name"], *(_drawn(row[key]) for key in ("share", "share_low", "share_high")))
            for row in found["variants"]]  # fmt: skip
    drawn = intervals_figure([{"title": "KL gap closed on test", "rows": bars}])
    if drawn:
        body.append(
            figure(
                drawn,
                "KL gap closed by every variant with intervals.",
                "Point and bar: value and 95% interval; what is below -1 is drawn there.",
            )
        )
    body += _measures(found["measures"]) + _effects(found["effects"]) + _replies(found.get("replies", []), folder)
    bias = meta.get("fit", {}).get("final_norm_bias")
    if bias:
        words = {
            side: ", ".join(f"{word.strip()} {value:+.2f}" for word, value in bias[side]) for side in ("up", "down")
        }
        body.append(
            f"<p>A shift at the final norm is one constant addition to the logits, whatever the image. Raised: "
            f"{escape(words['up'])}. Lowered: {escape(words['down'])}.</p>"
        )
    return body


def _measures(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    names = list(dict.fromkeys(row["measure"] for row in rows))
    cells = {(row["name"], row["measure"]): row for row in rows}
    table = [["model", *names]]
    for side in ("original", "tuned"):
        table.append([side, *(value_text(next(r for r in rows if r["measure"] == name)[side]) for name in names)])
    for variant in dict.fromkeys(row["name"] for row in rows):
        found = [cells.get((variant, name)) for name in names]
        table.append([variant, *("" if r is None else f"{value_text(r['moved'])}; F {_share(r)}" for r in found)])
    text = "F = (steered - original) / (tuned - original), undefined where that gap lies inside its own interval"
    return ["<h3>Behaviour on test images</h3>", html_table(table, text)]


def _share(row: Row) -> str:
    return "undefined" if row["share"] is None else _interval(row, "share") + _note(row)


def _effects(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    names = list(dict.fromkeys(row["effect"] for row in rows))
    cells = {(row["name"], row["effect"]): row for row in rows}
    table = [["model", *names]]
    for side in ("original", "tuned"):
        table.append([side, *(value_text(next(r for r in rows if r["effect"] == name)[side]) for name in names)])
    for variant in dict.fromkeys(row["name"] for row in rows):
        found = [cells.get((variant, name)) for name in names]
        table.append([variant, *("" if r is None else value_text(r["moved"]) + _change(r) for r in found)])
    return [
        "<h3>Side effects</h3>",
        html_table(table, "value, and its paired difference to the original with interval"),
    ]


def _change(row: Row) -> str:
    return f"; {_interval(row, 'difference')}" if row.get("difference") is not None else ""


def _replies(rows: Sequence[Row], folder: Path) -> list[str]:
    if not rows:
        return []
    cards = []
    for row in rows:
        shown = [key for key in row if key not in ("sample", "image_id", "image")]
        shown = [key for key in shown if not key.startswith("control/")][:4] + ["control/random_0"]
        said = "".join(f"<dt>{escape(key)}</dt><dd>{escape(row[key])}</dd>" for key in shown if key in row)
        cards.append(f'<div class="scene">{_picture(row["image"], row["image_id"], folder)}<dl>{said}</dl></div>')
    return ["<h3>Replies on test images</h3>", f'<div class="scenes">{"".join(cards)}</div>']


def _layers(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    keys = ("relative_magnitude", "consistency", "explained", "explained_by_concepts", "R_concept", "R_global",
            "gain_over_global", "agreement", "t_overlap")  # fmt: skip
    table = [["layer", "states", *(key.replace("_", " ") for key in keys)]]
    table += [[str(row["layer"]), row["selector"], *(_interval(row, key) for key in keys)] for row in rows]
    body = ["<h2>Layers</h2>", html_table(table, "R: held-out recovery of concepts; gain: own shift minus one shift")]
    drawn = plots.sweep_figure(rows)
    if drawn:
        body.append(figure(drawn, "Measures of the shift by layer; the table above holds the numbers.", "Layer sweep."))
    return body


def _analysis(found: Row, files: dict[str, str], folder: Path) -> list[str]:
    recovery = found["recovery"]
    body = [f"<h2>Layer {escape(found['layer'])}, {escape(found['selector'])}</h2>", f"<p>{escape(found['verdict'])} "]
    seeds = found["stability"]["matched_cosine"]["mean"], found["stability"]["adjusted_rand_index"]["mean"]
    body.append(
        f"{found['rows']} states of {found['images']} images. Between seeds the concepts agree by a cosine of "
        f"{seeds[0]:.3f} and a Rand index of {seeds[1]:.2f}; the two models' partitions by "
        f"{found['agreement']:.2f}.</p>"
    )
    controls = recovery["controls"]
    table = [["shift", "mean R", "sd over draws", "what it is"]]
    for row in controls:
        table.append(
            [CONTROLS.get(row["control"], row["control"]), value_text(row["R"]), value_text(row["sd"]), row["label"]]
        )
    body.append(html_table(table, "Held-out concept recovery with every control (first split)"))
    body.append(_concept_table(recovery["rows"]))
    for drawn, alt in (
        (plots.overlap_figure(recovery["rows"]), "T-Overlap with the tuned concept before and after the shift."),
        (plots.alpha_figure(recovery["alpha_curve"]), "Held-out R over alpha."),
        (plots.scatter_figure(recovery["rows"]), "Recovery against consistency and magnitude of the shift."),
        (plots.map_figure(found["shift_map"], found["shift_cosines"]), "Map of shifts and their cosines."),
    ):
        if drawn:
            body.append(figure(drawn, alt, alt))
    body += _correlations(recovery["correlations"]) + _maps(found["linear_maps"])
    return [*body, *_evolution(found, files, folder)]


def _concept_table(rows: Sequence[Row]) -> str:
    table = [["concept", "n", "words before", "words after the shift", "words of the tuned concept", "T-Overlap, %",
              "cosine", "R held out", "consistency", "magnitude", "best alpha", "flags"]]  # fmt: skip
    for row in rows:
        overlap = [value_text(row.get(f"t_overlap_{side}")) for side in ("before", "after")]
        cosine = [value_text(row[f"cosine_{side}"]) for side in ("before", "after")]
        words = [" ".join(row.get(f"words_{side}", [])[:8]) for side in ("original", "shifted", "tuned")]
        table.append(
            [str(row["concept"]), str(row["n"]), *words, " to ".join(overlap), " to ".join(cosine),
             _interval(row, "R_held"), value_text(row["consistency"]), value_text(row["magnitude"]),
             value_text(row["alpha_best"]),
             ", ".join(row["flags"])]
        )  # fmt: skip
    return html_table(
        table, "Concepts of the original, moved by their shift, against the tuned model's on other images"
    )


def _correlations(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    keys = [key for key in rows[0] if not key.endswith(("_low", "_high"))]
    table = [
        keys,
        *([_interval(row, key) if isinstance(row[key], float) else str(row[key]) for key in keys] for row in rows),
    ]
    return [html_table(table, "Does a consistent or long shift go with recovery?")]


def _maps(rows: Sequence[Row]) -> list[str]:
    table = [["map", "held-out share of the shift explained"]]
    table += [[row["map"], value_text(row["explained"])] for row in rows]
    return [html_table(table, "How additive the change is: what richer maps from original to tuned states explain")]


def _evolution(found: Row, files: dict[str, str], folder: Path) -> list[str]:
    words = {row["concept"]: row for row in found["words"]}
    cards = []
    for row in found["evolution"]:
        said = {
            "words of the original": row["words_original"], "words of the matched tuned concept": row["words_tuned"],
            "the shift makes likelier": words.get(row["concept"], {}).get("more", []),
            "and less likely": words.get(row["concept"], {}).get("less", []),
        }  # fmt: skip
        lines = "".join(
            f"<dt>{name}</dt><dd>{escape(' '.join(found[:10]) or '-')}</dd>" for name, found in said.items()
        )
        shown = "".join(_picture(files.get(image, ""), image, folder) for image in row["images_original"][:SHOWN])
        title = (
            f"concept {row['concept']}: cosine {value_text(row['cosine'])}, T-Overlap {value_text(row['t_overlap'])}"
        )
        cards.append(f'<div class="scene"><h3>{escape(title)}</h3>{shown}<dl>{lines}</dl></div>')
    return ["<h3>Concepts and their most activating images</h3>", f'<div class="scenes">{"".join(cards)}</div>']


def _drift(found: Row) -> list[str]:
    if not found:
        return []
    keys = ("cosine", "cosine_nearest", "t_overlap", "agreement", "relative_magnitude", "explained")
    table = [["checkpoint", *(key.replace("_", " ") for key in keys)]]
    table += [[row["checkpoint"], *(_interval(row, key) for key in keys)] for row in found["checkpoints"]]
    body = ["<h2>Drift over checkpoints</h2>", html_table(table, "Every checkpoint against the first")]
    drawn = plots.drift_figure(found["checkpoints"])
    return [*body, figure(drawn, "Drift over checkpoints.", "Drift.")] if drawn else body


def _picture(path: str, name: str, folder: Path) -> str:
    if not path or not Path(path).is_file():
        return ""
    return f'<img alt="{escape(name, quote=True)}" src="{embed_image(path, folder)}">'


def _images(folder: Path) -> dict[str, str]:
    """Image id to file, from the row table of the original's features."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob("features/*/rows.jsonl"))[:1]:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["image"]:
                found.setdefault(row["image_id"], row["image"])
    return found


def _interval(row: Row, key: str) -> str:
    return value_text(row.get(key), row.get(f"{key}_low"), row.get(f"{key}_high"))


def _drawn(value: float | None) -> float | None:
    return None if value is None else max(value, -1.0)


def _note(row: Row) -> str:
    return f" ({row['note']})" if row.get("note") else ""


def _read(path: Path) -> Row:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
