"""Figures of a comparison as data addresses: layer sweep, concepts before and after, maps, strength curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hacl.report.plots import COLOURS, MARKERS, _grid, _legend, _png, _svg

Row = dict[str, Any]


def sweep_figure(rows: Sequence[Row]) -> str | None:
    """Per layer: how long and consistent the shift is, the share explained, and held-out recovery."""
    if not rows:
        return None
    panels = {
        "length of the shift over that of the state": ("relative_magnitude",),
        "share explained": ("explained", "explained_by_concepts"),
        "consistency": ("consistency",),
        "held-out concept recovery R": ("R_concept", "R_global"),
    }
    labels = {"explained": "one shift", "explained_by_concepts": "a shift per concept", "R_concept": "own shift",
              "R_global": "one shift"}  # fmt: skip
    figure, axes = _grid(len(panels), 3.6, 2.6)
    names = list(dict.fromkeys(str(row["layer"]) for row in rows))
    for axis, (title, keys) in zip(axes, panels.items(), strict=False):
        for n, key in enumerate(keys):
            for selector in dict.fromkeys(row["selector"] for row in rows):
                found = [row for row in rows if row["selector"] == selector and row.get(key) is not None]
                places = [names.index(str(row["layer"])) for row in found]
                colour = COLOURS[1 + n]
                for place, row in zip(places, found, strict=True):
                    if row.get(f"{key}_low") is not None:
                        axis.plot([place, place], [row[f"{key}_low"], row[f"{key}_high"]], color=colour, linewidth=1)
                axis.plot(places, [row[key] for row in found], MARKERS[n] + "-", color=colour, markersize=4,
                          label=labels.get(key) if len(keys) > 1 else None)  # fmt: skip
        axis.set_title(title, fontsize=9)
        axis.set_xticks(range(len(names)), names)
        axis.set_xlabel("layer")
    _legend(figure, axes[: len(panels)])
    return _svg(figure)


def overlap_figure(rows: Sequence[Row]) -> str | None:
    """Bars per concept: words shared with the tuned concept, by the original concept and by the shifted one."""
    found = [row for row in rows if row.get("t_overlap_before") is not None]
    if not found:
        return None
    figure, axes = _grid(1, 7.5, 2.6)
    width = 0.4
    for n, (key, label) in enumerate((("t_overlap_before", "original"), ("t_overlap_after", "original + shift"))):
        places = [place + (n - 0.5) * width for place in range(len(found))]
        axes[0].bar(places, [row[key] or 0 for row in found], width, color=COLOURS[(0, 2)[n]], label=label)
    axes[0].set_xticks(range(len(found)), [str(row["concept"]) for row in found])
    axes[0].set_xlabel("concept")
    axes[0].set_ylabel("T-Overlap, %")
    axes[0].grid(True, axis="y", color="#eeeeee", linewidth=0.7)
    _legend(figure, axes[:1])
    return _svg(figure)


def alpha_figure(rows: Sequence[Row]) -> str | None:
    """Held-out R over alpha, with concept shifts and with the global one."""
    found = [row for row in rows if row.get("R_concept") is not None]
    if not found:
        return None
    figure, axes = _grid(1, 4.2, 2.8)
    for n, (key, label) in enumerate((("R_concept", "own shift"), ("R_global", "one shift"))):
        points = [(row["alpha"], row[key]) for row in found if row[key] is not None]
        axes[0].plot(*zip(*points, strict=True), MARKERS[n] + "-", color=COLOURS[1 + n], markersize=4, label=label)
    axes[0].axhline(0, color="#999999", linewidth=0.7)
    axes[0].set_xlabel("alpha")
    axes[0].set_ylabel("held-out R")
    _legend(figure, axes[:1])
    return _svg(figure)


def scatter_figure(rows: Sequence[Row]) -> str | None:
    """Recovery of each concept against the consistency and the magnitude of its shift."""
    found = [row for row in rows if row.get("R_held") is not None]
    if len(found) < 2:
        return None
    figure, axes = _grid(2, 3.6, 2.8)
    for axis, key in zip(axes, ("consistency", "magnitude"), strict=False):
        for row in found:
            axis.plot(row[key], row["R_held"], "o", color=COLOURS[2], markersize=4)
            axis.annotate(str(row["concept"]), (row[key], row["R_held"]), fontsize=7, xytext=(3, 2),
                          textcoords="offset points")  # fmt: skip
        axis.axhline(0, color="#999999", linewidth=0.7)
        axis.set_xlabel(f"{key} of the concept's shift")
        axis.set_ylabel("held-out R")
    return _svg(figure)


def map_figure(points: Sequence[Row], table: Sequence[Row]) -> str | None:
    """Samples' shifts in their two strongest directions, coloured by concept; cosine of every two concepts' shifts."""
    if not points or not table:
        return None
    figure, axes = _grid(2, 4.6, 3.6)
    concepts = sorted({row["concept"] for row in points})
    for concept in concepts:
        own = [(row["x"], row["y"]) for row in points if row["concept"] == concept]
        axes[0].plot(*zip(*own, strict=True), linestyle="", marker=MARKERS[concept % len(MARKERS)], markersize=3.5,
                     color=COLOURS[concept % len(COLOURS)], alpha=0.6, label=str(concept))  # fmt: skip
    axes[0].plot(0, 0, "+", color="#000000", markersize=9)
    axes[0].set_title("shifts of samples by concept; + is no shift", fontsize=9)
    names = sorted({row["concept"] for row in table})
    values = [[0.0] * len(names) for _ in names]
    for row in table:
        values[names.index(row["concept"])][names.index(row["other"])] = row["cosine"]
    shown = axes[1].imshow(values, vmin=-1, vmax=1, cmap="RdBu_r")
    axes[1].set_xticks(range(len(names)), names)
    axes[1].set_yticks(range(len(names)), names)
    axes[1].grid(False)
    axes[1].set_title("cosine between concepts' shifts", fontsize=9)
    figure.colorbar(shown, ax=axes[1], shrink=0.8)
    return _png(figure)


def strength_figure(rows: Sequence[Row]) -> str | None:
    """Share of the KL gap closed over alpha on validation, a panel per layer and positions, a line per method."""
    found = [row for row in rows if row.get("share") is not None]
    panels = list(dict.fromkeys((row["layers"], row["policy"]) for row in found))
    if not panels:
        return None
    methods = list(dict.fromkeys(row["method"] for row in found))
    figure, axes = _grid(len(panels), 3.8, 2.8)
    for axis, (layers, policy) in zip(axes, panels, strict=False):
        for n, method in enumerate(methods):
            own = [r for r in found if (r["method"], r["layers"], r["policy"]) == (method, layers, policy)]
            if not own:
                continue
            colour = COLOURS[n % len(COLOURS)]
            own.sort(key=lambda row: row["alpha"])
            axis.plot([r["alpha"] for r in own], [r["share"] for r in own], MARKERS[n % len(MARKERS)] + "-",
                      color=colour, markersize=3.5, linewidth=1.2, label=method)  # fmt: skip
        axis.axhline(0, color="#999999", linewidth=0.7)
        low = min(-0.05, max(-1.0, min(r["share"] for r in found)))
        axis.set_ylim(low, 1.05)
        axis.set_title(f"layer {layers or 'all blocks'}, {policy} positions", fontsize=9)
        axis.set_xlabel("alpha")
        axis.set_ylabel("KL gap closed")
    _legend(figure, axes[: len(panels)])
    return _svg(figure)


def drift_figure(rows: Sequence[Row]) -> str | None:
    """Over checkpoints: cosine of matched concepts, T-Overlap, relative length of the shift."""
    if not rows:
        return None
    panels = {"cosine": "cosine of matched concepts", "t_overlap": "T-Overlap, %",
              "relative_magnitude": "length of the shift over that of the state"}  # fmt: skip
    figure, axes = _grid(len(panels), 3.4, 2.6)
    for axis, (key, title) in zip(axes, panels.items(), strict=False):
        points = [(n, row[key]) for n, row in enumerate(rows) if row.get(key) is not None]
        if points:
            axis.plot(*zip(*points, strict=True), "o-", color=COLOURS[2], markersize=4)
        axis.set_xticks(range(len(rows)), [row["checkpoint"] for row in rows], rotation=30, ha="right", fontsize=7)
        axis.set_title(title, fontsize=9)
    return _svg(figure)
