"""Render a quality report and random examples as one self-contained HTML page, and as text for the terminal."""

from __future__ import annotations

import base64
import html
import io
import random
from collections.abc import Sequence
from pathlib import Path

from hacl.data.images import load_image, resolve_image
from hacl.data.records import HallucinatedCaption, Record
from hacl.hallucinate.quality import QualityReport

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:.2rem .6rem;text-align:left}"
    "mark{background:#ffd9a8}figure{display:flex;gap:1rem;border-top:1px solid #ccc;padding:1rem 0;margin:0}"
    "img{max-width:16rem;align-self:start}small{color:#666}"
)


def lines(report: QualityReport) -> list[tuple[str, str]]:
    """(measure, value) of everything in the report."""
    rows = [
        ("records, captions", f"{report.records}, {report.captions}"),
        ("types", ", ".join(f"{kind} {count}" for kind, count in report.types.items())),
        (f"captions with {report.wanted} of at least 3 types", f"{report.complete:.1%}"),
        (
            "object edits that are false",
            "none" if report.objects_false is None else f"{report.objects_false:.2%} of {report.object_edits}",
        ),
        ("grammatical by the stated check", f"{report.grammatical:.1%} (true captions {report.grammatical_true:.1%})"),
        ("shared prefix, words changed", f"{report.shared_prefix:.1%}, {report.changed:.1%}"),
        ("words more than the caption", f"{report.words:+.2f}"),
    ]
    for leak in report.leaks:
        value = f"AUC {leak.auc:.3f} [{leak.low:.3f}, {leak.high:.3f}], paired {leak.paired:.3f}"
        kinds = ", ".join(f"{kind} {auc:.2f}/{paired:.2f}" for kind, (auc, paired, _) in leak.by_type.items())
        rows += [(f"leak: {leak.probe}", value), ("  by type, AUC/paired", kinds)]
    if report.fluency_gap is not None:
        low, high = report.fluency_interval or (report.fluency_gap, report.fluency_gap)
        rows.append(("fluency gap, nats per word", f"{report.fluency_gap:+.3f} [{low:+.3f}, {high:+.3f}]"))
    if report.false_negatives:
        shares = ", ".join(f"{known}: {share:.1%}" for known, share in report.false_negatives.items())
        rows.append(("true after all, by captions known (no annotation)", shares))
    if report.rejected:
        rows.append(("rejected", ", ".join(f"{why} {count}" for why, count in report.rejected.items())))
    return rows


def examples(records: Sequence[Record], count: int, seed: int) -> list[tuple[Record, HallucinatedCaption]]:
    """Random hallucinated captions with their records, the same for the same seed."""
    made = [(record, h) for record in records for h in record.hallucinated if h.of is not None]
    return random.Random(f"examples/{seed}").sample(made, min(count, len(made)))


def page(
    report: QualityReport, shown: Sequence[tuple[Record, HallucinatedCaption]], *, title: str, image_root: Path | None
) -> str:
    """HTML with the figures and the examples; pictures, scaled down, only with `image_root`."""
    table = "".join(f"<tr><th>{html.escape(a)}<td>{html.escape(b)}" for a, b in lines(report))
    figures = "".join(_example(record, made, image_root) for record, made in shown)
    return (
        "<!doctype html><meta charset=utf-8><meta http-equiv=Content-Security-Policy content=\"default-src 'none'; "
        "img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{html.escape(title)}</h1><table>{table}</table><h2>Random examples</h2>{figures}"
    )


def _example(record: Record, made: HallucinatedCaption, image_root: Path | None) -> str:
    start, end = made.span or (0, 0)
    text = (html.escape(made.text[:start]), html.escape(made.text[start:end]), html.escape(made.text[end:]))
    picture = "" if image_root is None or not record.images else f'<img alt="" src="{_picture(image_root, record)}">'
    others = "<br>".join(html.escape(c) for i, c in enumerate(record.captions) if i != made.of)
    return (
        f"<figure>{picture}<figcaption><b>{html.escape(made.type)}</b><br>{html.escape(record.captions[made.of])}<br>"
        f"{text[0]}<mark>{text[1]}</mark>{text[2]}<br><small>{others}<br>{html.escape(record.id)}</small></figcaption></figure>"
    )


def _picture(image_root: Path, record: Record) -> str:
    image = load_image(resolve_image(image_root, record.images[0]))
    image.thumbnail((320, 320))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")
