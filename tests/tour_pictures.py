"""The pictures of docs/tour.md, drawn by the project's own report from runs that the tour names:

python -m tests.tour_pictures runs/pocket-full docs/pictures
"""

from __future__ import annotations

import base64
import io
import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from hacl.report.plots import loss_curves, measures_figure, states_figure
from hacl.report.tables import all_cells

SPLIT, EXAMPLE = "test_broken", 0
MEASURES = {"chair_i": "CHAIR_i", "recall": "object recall", "margin": "caption margin"}
MOST_BYTES = 150_000
PANELS = ("Control", "HACL, paper", "HACL, ours")
SIDE = 256  # px of a scene


def draw(run: Path, folder: Path) -> None:
    """Write the pictures of a run of `pocket.py quickstart`. Raises ValueError for one too large for a repository."""
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    example = results["examples"][EXAMPLE]
    scene = Image.open(run / "world" / "images" / Path(example["image"]).name).convert("RGB")
    save(png(scene.resize((SIDE, SIDE), Image.Resampling.NEAREST)), folder / "tour_scene.png")
    shown = results | {
        "measures": [m | {"label": MEASURES[m["key"]]} for m in results["measures"] if m["key"] in MEASURES]
    }
    save(decoded(measures_figure(shown, SPLIT, all_cells(shown))), folder / "tour_arms.svg")
    save(decoded(loss_curves(results, run)), folder / "tour_training.svg")
    panels = [panel for panel in results["states2d"] if panel["title"].startswith(PANELS)]
    picture = Image.open(io.BytesIO(decoded(states_figure(panels))))
    save(png(picture.convert("RGB").quantize(64)), folder / "tour_states.png")


def decoded(address: str | None) -> bytes:
    """The content of a data address."""
    if address is None:
        raise ValueError("the run has nothing to draw")
    return base64.b64decode(address.partition(",")[2])


def png(picture: Any) -> bytes:
    written = io.BytesIO()
    picture.save(written, format="PNG", optimize=True)
    return written.getvalue()


def save(content: bytes, path: Path) -> None:
    if len(content) > MOST_BYTES:
        raise ValueError(f"{path}: {len(content):,} bytes, above {MOST_BYTES:,}")
    path.write_bytes(content)
    print(f"{path}: {len(content):,} bytes")


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
