"""Where association begins: put one run's state of a layer into the other run, and see what is left of the distance.

Source: arXiv 2510.11190 (NeurIPS 2025), feature replacement; which positions are replaced there is not told, and all of
them would make every later layer equal by construction, so positions are named here and "all" is a self-check only.

Shapes: M replaced layers, L measured layers (the same blocks), N pairs, T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hacl.models.modes import evaluating
from hacl.representations.encoding import RowEncoder
from hacl.representations.forward import watching
from hacl.representations.parts import Parts, find_parts
from hacl.steering.association.layers import Groups
from hacl.steering.association.pairs import PairRecord, samples_of
from hacl.steering.association.select import pair_distances
from hacl.steering.session import steering
from hacl.steering.steerer import Steerer

POSITIONS = ("last", "last_k", "response_only", "image_only", "all")
NOTHING = 1e-6  # a mean distance below it is none, and has no ratio


@dataclass(frozen=True)
class Run:
    """One forward. inputs: of the model, one row without padding; response: how many tokens at its end are the answer;
    steerer: acts during the run with its own layers and positions, where association is induced by steering.
    """

    inputs: Mapping[str, Tensor]
    response: int
    steerer: Steerer | None = None


@dataclass(frozen=True)
class ReplacementMap:
    """layers: blocks replaced, and measured. ratios[m][l]: distance left at layer l after replacement at m, as a share
    of the distance without; None for l < m and where there is no distance. origin: per m the mean of 1 - ratio over
    l > m, with its interval over groups; base: distance per layer; margins: mean logit margin of the associative over
    the grounded token (associative run, grounded run, after replacement at each m), None without tokens. used, skipped:
    pairs with and without the positions; settings.
    """

    layers: tuple[int, ...]
    ratios: list[list[float | None]]
    origin: list[dict[str, float | None]]
    base: list[float]
    margins: dict[str, Any] | None
    used: int
    skipped: int
    settings: dict[str, Any] = field(default_factory=dict)


def runs_of(
    pairs: Sequence[PairRecord],
    encoder: RowEncoder,
    image_root: Path | str,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> list[tuple[Run, Run]]:
    """(grounded, associative) teacher-forced runs of pairs, without EOS."""
    found = []
    for sides in zip(*samples_of(pairs, image_root), strict=True):
        runs = []
        for sample in sides:
            row = encoder.row(sample, sample.answer)
            row.ids = row.ids[: row.end]
            runs.append(Run(encoder.batch([row], device, dtype), row.end - row.prompt))
        found.append(tuple(runs))
    return found


def replacement_map(
    model: nn.Module,
    pairs: Sequence[tuple[Run, Run]],
    *,
    positions: str = "last",
    k: int = 2,
    measure: str = "last",
    donor: str = "grounded",
    reverse: bool = False,
    groups: Sequence[str] | None = None,
    tokens: Sequence[tuple[int, int]] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> ReplacementMap:
    """Replace every block's output in turn; L + 2 forwards per pair.

    pairs: (grounded, associative) runs. positions: "last", "last_k" (k of them), "response_only" (answers of equal
    length), "image_only", or "all" (equal length; must leave nothing). measure: which state distances compare, that of
    the "last" token or the mean of the "response". donor: "grounded", or as a control "random", the grounded run of
    another group. reverse: states of the associative run go into the grounded one. tokens: (associative, grounded)
    token ids per pair, whose margin at the last position is followed. Pairs without the positions in both runs are
    left out.

    Raises:
        ValueError: unknown words, lengths that do not fit, a padded or batched run, or no usable pair.
    """
    _check(positions, k, measure, donor, pairs, groups, tokens)
    parts = find_parts(model)
    names = [str(index) for index in range(len(parts.blocks))]
    groups = [str(index) for index in range(len(pairs))] if groups is None else list(groups)
    rows: list[tuple[int, np.ndarray, np.ndarray, list[float]]] = []
    with evaluating(model), torch.no_grad():
        for index, (grounded, associative) in enumerate(pairs):
            target, source = (grounded, associative) if reverse else (associative, grounded)
            other = _elsewhere(pairs, groups, index, reverse) if donor == "random" else source
            places = _places(parts, target, other, positions, k)
            if places is None:
                continue
            wanted = None if tokens is None else tokens[index]
            rows.append((index, *_measure(model, parts, names, target, source, other, places, measure, wanted)))
    if not rows:
        raise ValueError(f"positions={positions!r}: none of {len(pairs)} pairs has them alike in both runs")
    base_NL, left_NML = np.stack([row[1] for row in rows]), np.stack([row[2] for row in rows])
    margins = None if tokens is None else _margins(np.array([row[3] for row in rows]))
    settings = {"positions": positions, "k": k, "measure": measure, "donor": donor, "reverse": reverse, "seed": seed}
    ratios, origin = _summary(base_NL, left_NML, [groups[row[0]] for row in rows], draws, seed)
    return ReplacementMap(
        tuple(range(len(names))), ratios, origin, base_NL.mean(axis=0).tolist(), margins, len(rows),
        len(pairs) - len(rows), settings,
    )  # fmt: skip


def _check(positions, k, measure, donor, pairs, groups, tokens) -> None:
    if positions not in POSITIONS or measure not in ("last", "response") or donor not in ("grounded", "random"):
        raise ValueError(
            f"positions={positions!r}, measure={measure!r}, donor={donor!r}: positions are {', '.join(POSITIONS)}; "
            "measured is last or response; donors are grounded and random"
        )
    if k < 1 or not pairs or any(given is not None and len(given) != len(pairs) for given in (groups, tokens)):
        raise ValueError(f"{len(pairs)} pairs, k={k}: some pairs, a positive k, one group and token pair for each")
    for pair in pairs:
        for run in pair:
            rows, length = run.inputs["input_ids"].shape
            mask = run.inputs.get("attention_mask")
            if rows != 1 or not 0 < run.response <= length or (mask is not None and not bool(mask.all())):
                raise ValueError(
                    f"a run has {rows} rows, {length} tokens, {run.response} of an answer: one, no padding"
                )


def _elsewhere(pairs, groups: Sequence[str], index: int, reverse: bool) -> Run:
    """The source run of the next pair of another group."""
    for step in range(1, len(pairs)):
        at = (index + step) % len(pairs)
        if groups[at] != groups[index]:
            return pairs[at][1 if reverse else 0]
    raise ValueError("donor='random' needs pairs of two groups at least")


def _places(parts: Parts, target: Run, other: Run, positions: str, k: int) -> tuple[Tensor, Tensor] | None:
    """Token indices replaced in the target, and those they come from; None where the runs have no such ones alike."""
    ids = [run.inputs["input_ids"][0].cpu() for run in (target, other)]
    lengths = [len(row) for row in ids]
    if positions == "all":
        return (torch.arange(lengths[0]),) * 2 if lengths[0] == lengths[1] else None
    if positions == "image_only":
        found = tuple((row == parts.image_token_id).nonzero()[:, 0] for row in ids)
        return found if len(found[0]) == len(found[1]) > 0 else None
    count = {"last": 1, "last_k": k}.get(positions, target.response)
    if positions == "response_only" and target.response != other.response or count > min(lengths):
        return None
    return tuple(torch.arange(length - count, length) for length in lengths)


def _measure(model, parts, names, target, source, other, places, measure, tokens):
    """(distances (L), distances after replacement (M, L), margins) of one pair."""
    given, states, own_logits = _forward(model, parts, names, source, measure)
    donor_states = states if other is source else _forward(model, parts, names, other, measure)[1]
    plain, _, logits = _forward(model, parts, names, target, measure)
    base_L = _apart(plain, given)
    margins = [] if tokens is None else [_margin(logits, tokens), _margin(own_logits, tokens)]
    left = []
    for index, name in enumerate(names):
        with _replacing(parts, index, donor_states[name], places):
            found, _, logits = _forward(model, parts, names, target, measure)
        left.append(_apart(found, given))
        if tokens is not None:
            margins.append(_margin(logits, tokens))
    return base_L, np.stack(left), margins


def _forward(
    model: nn.Module, parts: Parts, names: list[str], run: Run, measure: str
) -> tuple[dict[str, np.ndarray], dict[str, Tensor], Tensor]:
    """({layer: measured state (D)}, {layer: states (T, D)}, logits (V) at the last position)."""
    states: dict[str, Tensor] = {}

    def see(name: str, h_RTD: Tensor) -> None:
        states[name] = h_RTD[0].detach()

    with watching(parts, names, see), _active(model, run):
        logits = model(**run.inputs, use_cache=False).logits[0, -1].float()
    count = 1 if measure == "last" else run.response
    return {name: h_TD[-count:].double().mean(0).cpu().numpy() for name, h_TD in states.items()}, states, logits


def _active(model: nn.Module, run: Run):
    return contextlib.nullcontext() if run.steerer is None else steering(model, run.steerer)


@contextlib.contextmanager
def _replacing(parts: Parts, index: int, donor_TD: Tensor, places: tuple[Tensor, Tensor]) -> Iterator[None]:
    """The block's output at some places is the donor's, whatever else acts on it (a session acts first)."""

    def hook(module: nn.Module, args: tuple, output: Tensor | tuple) -> Tensor | tuple:
        h_RTD = (output[0] if isinstance(output, tuple) else output).clone()
        h_RTD[0, places[0].to(h_RTD.device)] = donor_TD[places[1].to(donor_TD.device)].to(h_RTD)
        return (h_RTD, *output[1:]) if isinstance(output, tuple) else h_RTD

    handle = parts.blocks[index].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _apart(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.array([max(float(pair_distances(a[name], b[name], "cosine")), 0.0) for name in a])


def _margin(logits_V: Tensor, tokens: tuple[int, int]) -> float:
    return float(logits_V[tokens[0]] - logits_V[tokens[1]])


def _margins(table: np.ndarray) -> dict[str, Any]:
    target, source, *after = table.mean(axis=0).tolist()
    return {"target": target, "source": source, "replaced": after}


def _summary(base_NL: np.ndarray, left_NML: np.ndarray, groups: list[str], draws: int, seed: int):
    """Ratios of means over pairs, and the origin of each replaced layer with its interval over groups."""
    layers = base_NL.shape[1]
    whole = _ratios(base_NL.mean(axis=0), left_NML.mean(axis=0))
    low = high = [None] * layers
    if len(set(groups)) > 1:
        resampled = Groups(groups, draws, seed)
        weights = resampled.weights[:, resampled.owner].astype(float)
        drawn = np.stack([_origin(_ratios(w @ base_NL, np.einsum("n,nml->ml", w, left_NML))) for w in weights])
        bounds = [
            np.percentile(column[np.isfinite(column)], [2.5, 97.5]).tolist()
            if np.isfinite(column).any()
            else [None] * 2
            for column in drawn.T
        ]
        low, high = zip(*bounds, strict=True)
    origin = [
        {"layer": at, "origin": _plain(value), "origin_low": low[at], "origin_high": high[at]}
        for at, value in enumerate(_origin(whole))
    ]
    return [[_plain(value) for value in row] for row in whole], origin


def _ratios(base_L: np.ndarray, left_ML: np.ndarray) -> np.ndarray:
    """(M, L), NaN for l < m and where there is no distance."""
    ratio = np.divide(left_ML, base_L, out=np.full(left_ML.shape, np.nan), where=base_L > NOTHING)
    return np.where(np.tri(len(base_L), k=-1, dtype=bool), np.nan, ratio)


def _origin(ratios_ML: np.ndarray) -> np.ndarray:
    """Mean of 1 - ratio over l > m; NaN where nothing is known."""
    later = np.where(np.tri(len(ratios_ML), dtype=bool), np.nan, 1 - ratios_ML)
    known = np.isfinite(later)
    counts = known.sum(axis=1)
    return np.divide(np.where(known, later, 0).sum(axis=1), counts, out=np.full(len(counts), np.nan), where=counts > 0)


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
