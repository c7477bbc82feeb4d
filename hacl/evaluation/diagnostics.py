"""The two findings of HACL as numbers: the modality gap, and the entanglement of true and hallucinated captions.

(Jiang et al., 2023, arXiv 2312.06968, section 3 and figure 2.) Works on arrays, so the same code serves states before
and after the projection heads, of any model. Views: "raw"; "centred", the mean of each modality taken out, which
removes the gap and leaves what matching is possible; "whitened", centred and decorrelated, because raw LLM states have
a few huge dimensions that push every cosine towards one.

Shapes: I images, M true captions, H hallucinated captions, P width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from hacl.evaluation.reports import ScoreReport, ratio
from hacl.evaluation.retrieval import retrieval
from hacl.evaluation.separation import (
    energy_distance,
    folds_auc,
    other_label_share,
    probe_folds,
    probe_interval,
)
from hacl.training.state_measures import gap_measures, paired_margins, unit

VIEWS = ("raw", "centred", "whitened")


@dataclass(frozen=True)
class States:
    """Pooled states of an evaluation set.

    image (I, P), true (M, P), hallucinated (H, P); true_image (M) and hallucinated_image (H) are rows of image,
    hallucinated_true (H) the row of the caption each was made from; types (H); image_ids (I).
    """

    image: np.ndarray
    true: np.ndarray
    hallucinated: np.ndarray
    true_image: np.ndarray
    hallucinated_image: np.ndarray
    hallucinated_true: np.ndarray
    types: tuple[str, ...]
    image_ids: tuple[str, ...]

    def __post_init__(self) -> None:
        sizes = (len(self.image_ids), len(self.true_image), len(self.hallucinated_image), len(self.types))
        if sizes[:3] != (len(self.image), len(self.true), len(self.hallucinated)) or sizes[3] != sizes[2]:
            raise ValueError(
                f"states do not fit their indices: {self.image.shape}, {self.true.shape}, {self.hallucinated.shape} "
                f"against {sizes}"
            )


def view(states: States, name: str) -> States:
    """The states in one view. Text is centred and whitened by the true captions' mean and covariance, so that the
    direction from true to hallucinated is kept.

    Raises:
        ValueError: unknown view.
    """
    if name == "raw":
        return states
    if name not in VIEWS:
        raise ValueError(f"view {name!r}; use one of {', '.join(VIEWS)}")
    image, true = _moved(states.image, states.image), _moved(states.true, states.true)
    hallucinated = _moved(states.hallucinated, states.true)
    if name == "whitened":
        whiten = _whitening(np.concatenate([image, true]))
        image, true, hallucinated = image @ whiten, true @ whiten, hallucinated @ whiten
    return replace(states, image=image, true=true, hallucinated=hallucinated)


def gap_distances(states: States) -> dict[str, float | None]:
    """Finding 1 without classifiers or retrieval: cheap, and a smooth function of the images."""
    return gap_measures(states.image, states.true, states.true_image)


def modality_gap(states: States, *, seed: int = 0, probe: bool = True, draws: int = 0) -> ScoreReport:
    """Finding 1: are images and true captions apart?

    Metrics: those of :func:`gap_distances`; ``modality_auc``, image against text by a linear probe, folds grouped by
    image (0.5: mixed); ``knn_purity``, share of the 10 nearest neighbours that are of the same modality, images
    against one caption each, the own image left out (0.5: mixed, 1: apart); ``i2t@k`` and ``t2i@k`` for k = 1, 5, 10.
    draws: of the probe's interval over images, which then stands in ``intervals``.
    """
    report = retrieval(states.image, states.true, states.true_image, ks=(1, 5, 10), image_ids=states.image_ids)
    report.meta = {"scorer": "modality_gap", "version": 2}
    report.metrics |= gap_distances(states)
    _, first = np.unique(states.true_image, return_index=True)
    owners = states.true_image[first]
    shares = 1 - other_label_share(
        np.concatenate([states.image[owners], states.true[first]]), np.repeat([0, 1], len(first)), np.tile(owners, 2)
    )
    purity_I = dict(zip(owners.tolist(), (shares[: len(first)] + shares[len(first) :]).tolist(), strict=True))
    pairs = [(purity_I[i], 2.0) if i in purity_I else (0.0, 0.0) for i in range(len(states.image))]
    _add(report, "knn_purity", [pair if np.isfinite(pair[0]) else (0.0, 0.0) for pair in pairs])
    if probe:
        groups = np.concatenate([np.arange(len(states.image)), states.true_image])
        labels = np.concatenate([np.zeros(len(states.image)), np.ones(len(states.true))])
        rows = np.concatenate([unit(states.image), unit(states.true)])
        add_probe(report, "modality_auc", rows, labels, groups, seed=seed, draws=draws)
    return report


def entanglement(states: States, *, seed: int = 0, probe: bool = True, draws: int = 0) -> ScoreReport:
    """Finding 2: does the image tell a true caption from a hallucinated one, and are the two apart at all?

    Metrics per pair (also as ``name/type``): ``state_margin_accuracy``, share with cos(image, true) above
    cos(image, hallucinated); ``state_margin``, their mean difference; ``shift``, |hallucinated - true| over the mean
    distance of true captions of different images. ``paraphrase_shift`` is the shift between two true captions of one
    image (None where no image has two).

    With ``probe``, for the whole set: ``probe_auc``, true against hallucinated from the text states alone, folds
    grouped by image; ``knn_mixing``, share of the 10 nearest captions of other images that are of the other kind (0.5:
    mixed, 0: apart); ``energy_distance`` (0 to 1) and ``energy_p``, its permutation p; the last two on one hallucinated
    caption per true one. A high probe with a margin at chance means that hallucinated captions are told apart by style,
    not by what the image shows.
    draws: of the probe's interval over images, which then stands in ``intervals``.
    """
    true, false = states.true, states.hallucinated
    report = ScoreReport(meta={"scorer": "entanglement", "version": 2})
    margin_H = paired_margins(states.image[states.hallucinated_image], true[states.hallucinated_true], false)
    apart = _distance_between_images(states.true, states.true_image, seed)
    shift_H = np.linalg.norm(states.hallucinated - states.true[states.hallucinated_true], axis=1) / apart
    columns = {"state_margin_accuracy": (margin_H > 0).astype(float), "state_margin": margin_H, "shift": shift_H}
    owners = [states.image_ids[i] for i in states.hallucinated_image]
    report.items = [
        {"image_id": owners[h], "type": states.types[h], "state_margin": float(margin_H[h]), "shift": float(shift_H[h])}
        for h in range(len(owners))
    ]
    kinds = sorted(set(states.types))
    for name, column in columns.items():
        _add(report, name, [(float(value), 1.0) for value in column])
        for kind in kinds:
            pairs = [(float(v), 1.0) if t == kind else (0.0, 0.0) for v, t in zip(column, states.types, strict=True)]
            _add(report, f"{name}/{kind}", pairs)
            report.groups.setdefault(kind, {})[name] = report.metrics[f"{name}/{kind}"]
    report.metrics["paraphrase_shift"] = _paraphrase_shift(states, apart)
    if probe:
        groups = np.concatenate([states.true_image, states.hallucinated_image])
        labels = np.concatenate([np.zeros(len(true)), np.ones(len(false))])
        add_probe(
            report, "probe_auc", np.concatenate([unit(true), unit(false)]), labels, groups, seed=seed, draws=draws
        )
        rows = one_per_caption(states, seed)
        pair = (true[states.hallucinated_true[rows]], false[rows], states.hallucinated_image[rows])
        pairs_H = [(0.0, 0.0)] * len(owners)
        for row, share in zip(rows, mixing_shares(*pair), strict=True):
            pairs_H[row] = (float(share), 1.0) if np.isfinite(share) else (0.0, 0.0)
        _add(report, "knn_mixing", pairs_H)
        distance, p = energy_distance(unit(pair[0]), unit(pair[1]), pair[2], seed=seed)
        report.metrics |= {"energy_distance": distance, "energy_p": p}
    report.counts = {"pairs": len(owners), "images": len(states.image)}
    return report


def one_per_caption(states: States, seed: int = 0) -> np.ndarray:
    """Rows of one hallucinated caption for every true caption that has any, drawn by seed: pairs of equal weight."""
    order = np.random.default_rng(seed).permutation(len(states.hallucinated))
    _, first = np.unique(states.hallucinated_true[order], return_index=True)
    return np.sort(order[first])


def mixing_shares(a: np.ndarray, b: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Mean over both sides of a pair of its share of neighbours of the other kind, (N)."""
    shares = other_label_share(np.concatenate([a, b]), np.repeat([0, 1], len(a)), np.tile(groups, 2))
    return (shares[: len(a)] + shares[len(a) :]) / 2


def add_probe(
    report: ScoreReport, name: str, x: np.ndarray, labels: np.ndarray, groups: np.ndarray, *, seed: int, draws: int
) -> None:
    """Add a probe's AUC to a report, with its interval over groups where ``draws`` are asked for."""
    folds = probe_folds(x, labels, groups, seed=seed)
    report.metrics[name] = folds_auc(folds, labels)
    if draws:
        bounds = probe_interval(folds, labels, groups, draws=draws, seed=seed)
        report.intervals[name] = None if bounds is None else list(bounds)


def _add(report: ScoreReport, name: str, pairs: list[tuple[float, float]]) -> None:
    report.ratios[name] = pairs
    report.metrics[name] = ratio(pairs, name, report.warnings)


def bootstrap_images(
    states: States,
    statistic: Callable[[States], dict[str, float | None]],
    *,
    draws: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float] | None]:
    """Percentile interval over images of any statistic of states (all rows of a drawn image come along).

    A drawn-twice image becomes two images with their own captions; leave retrieval out of the statistic, which the
    copies would make harder.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, list[float]] = {}
    for _ in range(draws):
        for name, value in statistic(_take(states, rng.integers(len(states.image), size=len(states.image)))).items():
            if value is not None:
                found.setdefault(name, []).append(value)
    tail = 100 * (1 - level) / 2
    return {name: tuple(np.percentile(v, [tail, 100 - tail]).tolist()) for name, v in found.items()}


def _moved(x: np.ndarray, reference: np.ndarray) -> np.ndarray:
    return np.asarray(x, dtype=np.float64) - np.asarray(reference, dtype=np.float64).mean(axis=0)


def _whitening(x: np.ndarray, shrink: float = 0.1) -> np.ndarray:
    """Inverse square root of the covariance, shrunk towards a multiple of the identity so that few rows suffice."""
    covariance = x.T @ x / len(x)
    covariance = (1 - shrink) * covariance + shrink * np.eye(len(covariance)) * np.trace(covariance) / len(covariance)
    values, vectors = np.linalg.eigh(covariance)
    return vectors / np.sqrt(np.maximum(values, 1e-12)) @ vectors.T


def _distance_between_images(true: np.ndarray, owner: np.ndarray, seed: int, pairs: int = 20000) -> float:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(len(true), size=(2, pairs))
    apart = owner[a] != owner[b]
    if not apart.any():
        raise ValueError("entanglement needs true captions of at least two images")
    return max(float(np.linalg.norm(true[a[apart]] - true[b[apart]], axis=1).mean()), 1e-12)


def _paraphrase_shift(states: States, apart: float) -> float | None:
    shifts = []
    for image in range(len(states.image)):
        rows = states.true[states.true_image == image]
        shifts += [float(np.linalg.norm(rows[0] - row)) for row in rows[1:]]
    return float(np.mean(shifts)) / apart if shifts else None


def _take(states: States, images: np.ndarray) -> States:
    true_rows, true_image, false_rows, false_image, false_true = [], [], [], [], []
    for new, old in enumerate(images):
        rows = np.flatnonzero(states.true_image == old)
        moved = {int(row): len(true_rows) + k for k, row in enumerate(rows)}
        true_rows += rows.tolist()
        true_image += [new] * len(rows)
        edited = np.flatnonzero(states.hallucinated_image == old)
        false_rows += edited.tolist()
        false_image += [new] * len(edited)
        false_true += [moved[int(states.hallucinated_true[row])] for row in edited]
    return States(
        states.image[images],
        states.true[true_rows],
        states.hallucinated[false_rows],
        np.array(true_image, dtype=int),
        np.array(false_image, dtype=int),
        np.array(false_true, dtype=int),
        tuple(states.types[row] for row in false_rows),
        tuple(f"{states.image_ids[old]}#{new}" for new, old in enumerate(images)),
    )
