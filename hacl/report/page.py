"""One self-contained `report.html` from a `results` dictionary (its keys: :mod:`hacl.report.schema`).

The page makes no request: style, figures and example images are inside it. Tables have captions and header scopes,
figures have text in their place, and a difference is named in words, never by colour alone.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from hacl.report import plots
from hacl.report.formats import html_page
from hacl.report.parts import (
    bullet_list,
    count,
    embed_image,
    figure,
    interval_range,
    label_of,
    mark_words,
    number,
)
from hacl.report.schema import check_results
from hacl.report.tables import Cell, all_cells, control_first, shown_measures, split_names


def build_report(
    results: dict[str, Any],
    out: Path | str,
    *,
    cells: dict[tuple[str, str, str], Cell] | None = None,
    draws: int = 1000,
) -> Path:
    """Write the page and return its path.

    Args:
        results: see :mod:`hacl.report.schema`.
        out: the file to write (``report.html``), or a folder to write it in. Paths inside ``results`` are relative to
            that folder.
        cells: what :func:`hacl.report.tables.all_cells` returned, if the table on screen has computed it already.
        draws: bootstrap draws per interval, without ``cells``.

    Raises:
        ValueError: ``results`` does not fit the schema.
        FileNotFoundError: an example's image is missing.
    """
    check_results(results)
    out = Path(out)
    out = out if out.suffix == ".html" else out / "report.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    cells = cells if cells is not None else all_cells(results, draws)
    title = results.get("title", "Hallucination-augmented contrastive fine-tuning")
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="header">{escape(results["header"])}</p>',
        *(f"<p>{escape(line)}</p>" for line in results.get("summary", [])),
        _arms(results),
        _verdicts(results, cells),
        *(_split(results, split, cells) for split in split_names(results)),
        _curves(results, out.parent),
        _states(results),
        _examples(results, out.parent),
        bullet_list("Negative results", results.get("negative_results")),
        bullet_list("Notes", results.get("notes")),
        _reading(results),
        _runs(results),
        _provenance(results),
    ]
    page = html_page(title, body)
    out.write_text(page, encoding="utf-8")
    return out


def _arms(results: dict[str, Any]) -> str:
    rows = [
        f"<li><strong>{label_of(arm)}</strong>"
        + (": " + escape(arm["description"]) if arm.get("description") else "")
        + (" (the control)" if arm["name"] == results["control"] else "")
        + f"; {count(len(arm['runs']), 'run')}</li>"
        for arm in control_first(results)
    ]
    return "<h2>Arms</h2><ul>" + "".join(rows) + "</ul>"


def _verdicts(results: dict[str, Any], cells: dict[tuple[str, str, str], Cell]) -> str:
    lines = []
    splits = {s["name"]: s.get("label", s["name"]) for s in results.get("splits", [])}
    for arm in control_first(results)[1:]:
        for split in split_names(results):
            for measure in shown_measures(results, split):
                found = cells[split, arm["name"], measure["key"]]
                if not measure.get("headline") or found.difference is None or found.difference.estimate is None:
                    continue
                fmt = measure.get("format", ".3f")
                control = cells[split, results["control"], measure["key"]].value.estimate
                p = ""
                if found.sign_p is not None and found.bases > 1:
                    p = f"; sign test over {count(found.bases, 'base')} p = {found.sign_p:.2g}"
                lines.append(
                    f"<li><strong>{label_of(arm)}</strong>, {escape(splits.get(split, split))}: {label_of(measure)} "
                    f"{number(found.value.estimate, fmt)} against {number(control, fmt)}, "
                    f'<span class="{found.verdict}">{found.verdict}</span> '
                    f"({number(found.difference.estimate, fmt, True)} "
                    f"{interval_range(found.difference, fmt, True)}{p})</li>"
                )
    return "<h2>What changed against the control</h2><ul>" + "".join(lines) + "</ul>" if lines else ""


def _split(results: dict[str, Any], split: str, cells: dict[tuple[str, str, str], Cell]) -> str:
    about = next((s for s in results.get("splits", []) if s["name"] == split), {"name": split})
    measures = shown_measures(results, split)
    parts = [f"<h2>{label_of(about)}</h2>"]
    if about.get("description"):
        parts.append(f"<p>{escape(about['description'])}</p>")
    for group in dict.fromkeys(m.get("group", "Measures") for m in measures):
        chosen = [m for m in measures if m.get("group", "Measures") == group]
        parts.append(
            f"<h3>{escape(group)}</h3>" + _table(results, split, chosen, cells, f"{group}, {about.get('label', split)}")
        )
    drawn = plots.measures_figure(results, split, cells)
    if drawn:
        parts.append(
            figure(
                drawn,
                f"Measures with intervals per arm: {about.get('label', split)}; the tables above hold the numbers.",
                "Point and bar: mean over runs with its 95% interval. Ticks: single runs. Dotted line: the control.",
            )
        )
    return "\n".join(parts)


def _table(results, split, measures, cells, caption: str) -> str:
    arms = control_first(results)
    head = "".join(f'<th scope="col">{label_of(arm)}</th>' for arm in arms)
    rows = []
    for measure in measures:
        how = {"lower": "low is good", "higher": "high is good"}.get(measure.get("better"), "")
        how = "; ".join(filter(None, [how, measure.get("description", "")]))
        row = f'<th scope="row">{label_of(measure)}<span class="how">{escape(how)}</span></th>'
        for arm in arms:
            row += "<td>" + _cell(cells[split, arm["name"], measure["key"]], measure.get("format", ".3f")) + "</td>"
        rows.append(f"<tr>{row}</tr>")
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}: mean over runs, 95% interval, difference from the '
        f'control</caption><thead><tr><th scope="col">measure</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(found: Cell, fmt: str) -> str:
    text = number(found.value.estimate, fmt) + f'<span class="range">{interval_range(found.value, fmt)}</span>'
    if found.difference is not None and found.difference.estimate is not None:
        text += (
            f'<span class="delta"><span class="{found.verdict}">{found.verdict}</span> '
            f"{number(found.difference.estimate, fmt, True)} {interval_range(found.difference, fmt, True)}</span>"
        )
    return text


def _curves(results: dict[str, Any], folder: Path) -> str:
    drawn = plots.loss_curves(results, folder)
    if drawn is None:
        return ""
    return "<h2>Training</h2>" + figure(
        drawn,
        "Loss curves per arm over training steps.",
        "Thin lines: single runs. Thick lines: mean of the arm's runs.",
    )


def _states(results: dict[str, Any]) -> str:
    drawn = plots.states_figure(results.get("states2d", []))
    if drawn is None:
        return ""
    return "<h2>States in two dimensions</h2>" + figure(
        drawn,
        "Image, true-caption and hallucinated-caption states before and after tuning, in the same two components.",
        "One principal component analysis fitted once on the union of all panels; all panels share their axes. Two "
        "components leave most of the variance out: the measures above, not this picture, are the evidence.",
    )


def _examples(results: dict[str, Any], folder: Path) -> str:
    if not results.get("examples"):
        return ""
    labels = {arm["name"]: label_of(arm) for arm in results["arms"]}
    scenes = []
    for example in results["examples"]:
        alt = escape(example.get("alt") or example.get("truth") or "example image", quote=True)
        rows = f"<dt>true</dt><dd>{escape(example['truth'])}</dd>" if example.get("truth") else ""
        if example.get("objects"):
            rows += f"<dt>objects</dt><dd>{escape(', '.join(map(str, example['objects'])))}</dd>"
        for caption in example["captions"]:
            label = labels.get(caption["arm"], escape(caption["arm"]))
            rows += f"<dt>{label}</dt><dd>{mark_words(caption['text'], caption.get('marks', []))}</dd>"
        heading = f"<strong>{escape(example['title'])}</strong>" if example.get("title") else ""
        scenes.append(
            f'<article class="scene">{heading}<img alt="{alt}" src="{embed_image(example["image"], folder)}">'
            f"<dl>{rows}</dl></article>"
        )
    return (
        "<h2>Examples</h2><p>Marked words, <mark>like this</mark>, name something that is not in the picture.</p>"
        f'<div class="scenes">{"".join(scenes)}</div>'
    )


def _reading(results: dict[str, Any]) -> str:
    bases = {str(run.get("base", 0)) for arm in results["arms"] for run in arm["runs"]}
    lines = [
        "Intervals resample runs and images together; differences are paired by base, seed and image. "
        '"Better" and "worse" mean that the 95% interval of the difference leaves zero out; many differences '
        "are shown, so one in twenty would do so by chance.",
    ]
    if len(bases) < 6:
        lines.append(
            f"A sign test counts independently trained bases. With {len(bases)} of them its smallest possible p is "
            f"{2.0 ** (1 - len(bases)):.3g}: this page shows a direction and claims nothing."
        )
    return bullet_list("How to read the numbers", lines)


def _runs(results: dict[str, Any]) -> str:
    rows = []
    for arm in control_first(results):
        for run in arm["runs"]:
            for split in split_names(results):
                values = ", ".join(
                    f"{label_of(m)} {number(run['metrics'].get(split, {}).get(m['key']), m.get('format', '.3f'))}"
                    for m in shown_measures(results, split)
                )
                seconds = "" if run.get("seconds") is None else f"{run['seconds']:.0f}"
                rows.append(
                    f'<tr><th scope="row">{label_of(arm)}</th><td>{escape(str(run.get("base", 0)))}</td>'
                    f"<td>{escape(str(run['seed']))}</td><td>{seconds}</td><td>{escape(split)}</td><td>{values}</td></tr>"
                )
    head = "".join(f'<th scope="col">{h}</th>' for h in ("arm", "base", "seed", "seconds", "split", "values"))
    return (
        "<h2>Every run</h2><details><summary>Show the single runs</summary>"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        "</details>"
    )


def _provenance(results: dict[str, Any]) -> str:
    if not results.get("provenance"):
        return ""
    text = json.dumps(results["provenance"], indent=1, ensure_ascii=False)
    return f"<h2>Provenance</h2><pre>{escape(text)}</pre>"
