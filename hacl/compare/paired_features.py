"""Paired hidden states of two captures, ready for analysis: one layer, one selector, rows joined by sample.

Shapes: N samples, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hacl.representations.join import paired
from hacl.representations.reader import FeatureStore, Row
from hacl.representations.readout import Readout


@dataclass(frozen=True)
class PairedFeatures:
    """a_ND, b_ND: float32 states of the original and the tuned model, row by row the same token of the same sample.

    groups: image of each row; rows: row table of the original; readout: the original's LM head and final norm, through
    which both are read (None where none was stored); layer, selector; dropped_a, dropped_b: rows without a partner;
    provenance: for artefacts made of them.
    """

    a_ND: np.ndarray
    b_ND: np.ndarray
    groups: np.ndarray
    rows: list[Row]
    layer: str
    selector: str
    readout: Readout | None
    dropped_a: int
    dropped_b: int
    provenance: dict[str, Any]


def load_pairs(
    original: Path | str, tuned: Path | str, *, layer: int | str, selector: str | None = None, force: bool = False
) -> PairedFeatures:
    """Join two feature stores and read one layer of one selector.

    selector: as it was captured (a class selector counts as one); None where the stores hold only one.

    Raises:
        FileNotFoundError: a folder is no store. ValueError: stores that do not belong together (`force` joins them
            anyway), a layer or selector that was not captured, or no common row.
    """
    a, b = FeatureStore(original), FeatureStore(tuned)
    pairs = paired(a, b, force=force)
    names = sorted({row.selector for row in pairs.rows})
    if selector is None and len(names) > 1:
        raise ValueError(f"{a.folder}: holds selectors {', '.join(names)}; choose one")
    selector = selector or (names[0] if names else "")
    kept = np.array([row.selector == selector for row in pairs.rows], dtype=bool)
    if not kept.any():
        raise ValueError(
            f"{a.folder} and {b.folder}: no common row of selector {selector!r}; common: {', '.join(names) or 'none'}"
        )
    rows = [row for row, keep in zip(pairs.rows, kept, strict=True) if keep]
    try:
        readout = a.readout()
    except FileNotFoundError:
        readout = None
    provenance = {"layer": _layer_name(a, layer), "selector": selector, "mode": a.manifest["mode"]}
    provenance |= {"original": model_of(a), "tuned": model_of(b), "rows": len(rows), "units": "hidden state"}
    return PairedFeatures(
        a.read(layer, pairs.index_a[kept]),
        b.read(layer, pairs.index_b[kept]),
        np.array([row.image_id for row in rows]),
        rows,
        provenance["layer"],
        selector,
        readout,
        pairs.dropped_a,
        pairs.dropped_b,
        provenance,
    )


def model_of(store: FeatureStore) -> str:
    """The fingerprint of a capture's model, with that of its adapter behind a plus sign where one was switched on."""
    model = store.manifest["model"]
    return f"{model['fingerprint']}+{model['adapter_hash']}" if model.get("adapter_hash") else model["fingerprint"]


def _layer_name(store: FeatureStore, layer: int | str) -> str:
    if not isinstance(layer, int) or layer >= 0:
        return str(layer)
    depth = store.manifest["num_layers"]
    if depth is None:
        raise ValueError(
            f"{store.folder}: its depth is unknown, so layer {layer} is; stored: {', '.join(store.layers)}"
        )
    return str(depth + layer)
