"""What an association analysis found, ready for a report: JSON, CSV, plots and a self-contained page in Markdown.

Shapes: M replaced layers, L measured layers. No torch here.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hacl.steering.association.layers import LayerAnalysis

FORMAT = "hacl-association-report-1"


@dataclass(frozen=True)
class AssociationReport:
    """layers: the layer analysis; replacements: {what was replaced: `ReplacementMap`}; stability: of `split_half`."""

    layers: LayerAnalysis
    replacements: dict[str, Any] = field(default_factory=dict)
    stability: dict[int | str, dict[str, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, without NaN."""
        return {
            "format": FORMAT,
            "layers": asdict(self.layers),
            "replacements": {name: asdict(found) for name, found in self.replacements.items()},
            "stability": [{"layer": layer, **values} for layer, values in self.stability.items()],
        }

    def write(self, folder: Path | str) -> Path:
        """`association.json`, `association_layers.csv`, `association.md` (plots inside). Returns the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        table = io.StringIO()
        rows = self.layers.rows
        writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        _write(folder / "association_layers.csv", table.getvalue())
        _write(folder / "association.md", self.markdown())
        _write(folder / "association.json", json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")
        return folder

    def markdown(self) -> str:
        """A page: what is suggested and why, one table, the plots."""
        settings, suggested = self.layers.settings, self.layers.suggested
        lines = ["# Association by layer", ""]
        lines.append(
            f"{settings['pairs']} pairs of {settings['groups']} groups; null of the distances: {settings['null']}."
        )
        if suggested is None:
            lines.append("No window stands out of the null: steering along this direction has no ground.")
        else:
            depths = [row["depth"] for row in self.layers.rows if row["layer"] in suggested]
            lines.append(
                f"Suggested layers: {', '.join(map(str, suggested))} (depth {depths[0]:.2f} to {depths[-1]:.2f})."
            )
        lines += [
            "",
            "| layer | cosine | null | excess | coherence (null) | AUC | rank |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in self.layers.rows:
            lines.append(
                f"| {row['layer']} | {_with_bounds(row, 'cosine')} | {_with_bounds(row, 'null_cosine')} | "
                f"{_with_bounds(row, 'excess_cosine')} | {row['coherence']:.3f} ({row['coherence_null']:.3f}) | "
                f"{_with_bounds(row, 'auc')} | {row['effective_rank']:.1f} |"
            )
        for name, figure in self.figures().items():
            lines += ["", f"![{name}]({figure})"]
        for name, found in self.replacements.items():
            lines += ["", f"Replacement ({name}): {found.used} pairs, {found.skipped} left out."]
        return "\n".join(lines) + "\n"

    def figures(self) -> dict[str, str]:
        """{name: SVG as a data address}: curves, and a heat map and bars for each replacement."""
        found = {"distances, coherence and AUC": curves(self.layers)}
        for name, replaced in self.replacements.items():
            found[f"replacement, {name}"] = heat_map(replaced)
        return found


def curves(analysis: LayerAnalysis) -> str:
    """Distance and coherence with their nulls, held-out AUC and the cosine of neighbouring vectors, by layer."""
    rows = analysis.rows
    x = range(len(rows))
    figure, axes = _figure(4)
    panels = (
        (
            "cosine distance",
            [("cosine", "pair"), ("null_cosine", "two grounded"), ("mismatched_cosine", "another group")],
        ),
        ("coherence", [("coherence", "pairs"), ("coherence_null", "random labels, 95 %")]),
        ("held-out AUC", [("auc", "projection")]),
        ("cosine with next layer's vector", [("next_cosine", "vectors")]),
    )
    for axis, (title, series) in zip(axes, panels, strict=True):
        for key, label in series:
            points = [(at, row[key]) for at, row in zip(x, rows, strict=True) if row[key] is not None]
            if not points:
                continue
            (line,) = axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
            if f"{key}_low" in rows[0]:
                known = [at for at, _ in points if rows[at][f"{key}_low"] is not None]
                low, high = ([rows[at][f"{key}_{end}"] for at in known] for end in ("low", "high"))
                axis.fill_between(known, low, high, color=line.get_color(), alpha=0.2)
        axis.set_title(title, fontsize=9)
        axis.set_xticks(list(x), [str(row["layer"]) for row in rows], fontsize=7)
        axis.legend(fontsize=7, frameon=False)
    return _svg(figure)


def heat_map(found: Any) -> str:
    """The share of the distance that is left (blank where undefined); the origin of each layer with its interval."""
    import numpy as np

    figure, (left, right) = _figure(2)
    table = np.array([[np.nan if value is None else value for value in row] for row in found.ratios])
    shown = left.imshow(table, vmin=0, vmax=1, cmap="viridis", origin="lower", aspect="auto")
    figure.colorbar(shown, ax=left)
    left.set(xlabel="measured layer", ylabel="replaced layer")
    left.set_title("distance left", fontsize=9)
    rows = [row for row in found.origin if row["origin"] is not None]
    right.bar([row["layer"] for row in rows], [row["origin"] for row in rows], color="#0072b2")
    for row in rows:
        if row["origin_low"] is not None:
            right.plot([row["layer"]] * 2, [row["origin_low"], row["origin_high"]], color="black", linewidth=1)
    right.set(xlabel="replaced layer")
    right.set_title("origin: share of later distance removed", fontsize=9)
    return _svg(figure)


def _with_bounds(row: dict, key: str) -> str:
    if row[key] is None:
        return "n/a"
    low, high = row[f"{key}_low"], row[f"{key}_high"]
    return f"{row[key]:.3f}" if low is None else f"{row[key]:.3f} [{low:.3f}, {high:.3f}]"


def _figure(count: int) -> tuple[Any, Sequence[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * min(count, 2), 2.6 * ((count + 1) // 2)), layout="constrained")
    return figure, list(figure.subplots((count + 1) // 2, min(count, 2), squeeze=False).flat)


def _svg(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
