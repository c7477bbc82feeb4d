"""Pieces of HTML that the report page is made of: its style sheet, marked captions, embedded images, numbers.

Everything that came from a model or a user is escaped here.
"""

from __future__ import annotations

import base64
import io
import re
from html import escape
from pathlib import Path
from typing import Any

from hacl.evaluation.statistics import Interval

STYLE = """
:root{color-scheme:light}
body{font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif;color:#1b1b1b;background:#fff;margin:0 auto;
padding:1.5rem;max-width:68rem}
h1{font-size:1.7rem;margin:0}h2{font-size:1.25rem;margin:2.2rem 0 .4rem;border-bottom:1px solid #ddd}
h3{font-size:1.02rem;margin:1.3rem 0 .3rem}p,ul{max-width:46rem}
.header{display:inline-block;background:#fff4d6;border:1px solid #e2c46d;border-radius:4px;padding:.15rem .6rem;
margin:.5rem 0;font-weight:600}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
caption{text-align:left;color:#555;padding:.2rem 0}th,td{padding:.32rem .7rem;border-bottom:1px solid #e6e6e6;
text-align:left;vertical-align:top}thead th{border-bottom:2px solid #999;white-space:nowrap}tbody th{font-weight:500}
.range,.delta,.how{color:#5a5a5a;font-size:.8rem;display:block;white-space:nowrap}.how{white-space:normal;max-width:17rem}
.better{color:#00593f;font-weight:600}.worse{color:#9c2b00;font-weight:600}.differs{color:#004f80;font-weight:600}
img.figure{max-width:100%;height:auto}figure{margin:.8rem 0}figcaption{color:#555;font-size:.88rem;max-width:46rem}
.scenes{display:grid;grid-template-columns:repeat(auto-fill,minmax(20rem,1fr));gap:1rem}
.scene{border:1px solid #ddd;border-radius:6px;padding:.8rem}.scene img{width:100%;max-height:15rem;object-fit:contain;
background:#f6f6f6}.scene dl{margin:.4rem 0 0}.scene dt{font-size:.8rem;color:#555;margin-top:.4rem}
.scene dd{margin:0}mark{background:#ffd9cc;color:#7c2200;text-decoration:underline wavy #c2410c;padding:0 .1em}
pre{background:#f6f6f6;padding:.7rem;overflow-x:auto;font-size:.8rem}summary{cursor:pointer}
"""
DATA_ADDRESS = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/]+=*")
IMAGE_SIDE = 360  # px: longest side of an embedded example


def mark_words(text: str, marks: list[list[int]]) -> str:
    """HTML of a caption with its character spans marked; overlapping spans are joined."""
    html, position = [], 0
    for start, end in sorted(marks):
        start = max(start, position)
        if start < end:
            html += [escape(text[position:start]), "<mark>", escape(text[start:end]), "</mark>"]
            position = end
    return "".join([*html, escape(text[position:])])


def embed_image(source: str, folder: Path) -> str:
    """A data address of an image file, shrunk to ``IMAGE_SIDE``; a data address of a bitmap is passed through."""
    if source.startswith("data:"):
        if DATA_ADDRESS.fullmatch(source) is None:
            raise ValueError(f"results['examples']: {source[:60]!r} is no data address of a bitmap")
        return source
    path = Path(source)
    path = path if path.is_absolute() else folder / path
    if not path.is_file():
        raise FileNotFoundError(f"results['examples']: no image at {path}")
    from PIL import Image

    with Image.open(path, formats=("PNG", "JPEG", "GIF", "WEBP", "BMP")) as opened:
        image = opened.convert("RGB")
    image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    buffer = io.BytesIO()
    kind = "PNG" if path.suffix.lower() == ".png" else "JPEG"
    image.save(buffer, kind)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def label_of(item: dict[str, Any]) -> str:
    return escape(item.get("label", item.get("name", item.get("key", ""))))


def number(value: float | None, fmt: str, signed: bool = False) -> str:
    if value is None:
        return "n/a"
    text = format(value, ("+" if signed else "") + fmt)
    if not text.strip("+-0."):
        text = text.lstrip("+-")  # what rounds to zero has no sign
    return text.replace("-", "\u2212")


def interval_range(interval: Interval, fmt: str, signed: bool = False) -> str:
    if interval.low is None:
        return ""
    return f"[{number(interval.low, fmt, signed)}, {number(interval.high, fmt, signed)}]"


def bullet_list(title: str, lines: list[str] | None) -> str:
    if not lines:
        return ""
    return f"<h2>{escape(title)}</h2><ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def figure(source: str, alt: str, caption: str) -> str:
    return (
        f'<figure><img class="figure" alt="{escape(alt, quote=True)}" src="{source}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
