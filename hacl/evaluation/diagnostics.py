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

from hacl.evaluation.retrieval import retrieval, unit
from hacl.evaluation.reports import ScoreReport, ratio

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
    """Finding 1 without classifiers or retrieval: cheap, and a smooth function of the images.

    ``centroid_distance``: between the mean unit vectors; ``relative_gap``: over the mean distance of a unit vector to
    its own modality's mean; ``matched_cosine``, ``unmatched_cosine`` and ``cosine_difference`` of images and captions.
    """
    image, text = unit(states.image), unit(states.true)
    centre_image, centre_text = image.mean(axis=0), text.mean(axis=0)
    distance = float(np.linalg.norm(centre_image - centre_text))
    own = [np.linalg.norm(rows - centre, axis=1) for rows, centre in ((image, centre_image), (text, centre_text))]
    spread = float(np.concatenate(own).mean())
    similarity_IM = image @ text.T
    own_IM = states.true_image[None, :] == np.arange(len(image))[:, None]
    matched, unmatched = _mean(similarity_IM[own_IM]), _mean(similarity_IM[~own_IM])
    return {
        "centroid_distance": distance,
        "relative_gap": distance / spread if spread > 0 else None,
        "matched_cosine": matched,
        "unmatched_cosine": unmatched,
        "cosine_difference": None if matched is None or unmatched is None else matched - unmatched,
    }


def modality_gap(states: States, *, seed: int = 0, probe: bool = True) -> ScoreReport:
    """Finding 1: are images and true captions apart?

    Metrics: those of :func:`gap_distances`; ``modality_auc``, image against text by a linear probe, folds grouped by
    image (0.5: mixed); ``i2t@k`` and ``t2i@k`` for k = 1, 5 (with ratios by image).
    """
    report = retrieval(states.image, states.true, states.true_image, ks=(1, 5), image_ids=states.image_ids)
    report.meta = {"scorer": "modality_gap", "version": 1}
    report.metrics |= gap_distances(states)
    if probe:
        groups = np.concatenate([np.arange(len(states.image)), states.true_image])
        labels = np.concatenate([np.zeros(len(states.image)), np.ones(len(states.true))])
        rows = np.concatenate([unit(states.image), unit(states.true)])
        report.metrics["modality_auc"] = probe_auc(rows, labels, groups, seed=seed)
    return report


def entanglement(states: States, *, seed: int = 0, probe: bool = True) -> ScoreReport:
    """Finding 2: does the image tell a true caption from a hallucinated one, and are the two apart at all?

    Metrics per pair (also as ``name/type``): ``state_margin_accuracy``, share with cos(image, true) above
    cos(image, hallucinated); ``state_margin``, their mean difference; ``shift``, |hallucinated - true| over the mean
    distance of true captions of different images. For the whole set: ``probe_auc``, true against hallucinated from the
    text states alone, folds grouped by image. A high probe with a margin at chance means that hallucinated captions are
    told apart by style, not by what the image shows. ``paraphrase_shift`` is the shift between two true captions of one
    image (None where no image has two).
    """
    image, true, false = unit(states.image), unit(states.true), unit(states.hallucinated)
    report = ScoreReport(meta={"scorer": "entanglement", "version": 1})
    margin_H = np.einsum("hp,hp->h", image[states.hallucinated_image], true[states.hallucinated_true] - false)
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
        report.ratios[name] = [(float(value), 1.0) for value in column]
        for kind in kinds:
            pairs = [(float(v), 1.0) if t == kind else (0.0, 0.0) for v, t in zip(column, states.types, strict=True)]
            report.ratios[f"{name}/{kind}"] = pairs
            report.groups.setdefault(kind, {})[name] = ratio(pairs, f"{name}/{kind}", report.warnings)
    report.metrics = {name: ratio(pairs, name, report.warnings) for name, pairs in report.ratios.items()}
    report.metrics["paraphrase_shift"] = _paraphrase_shift(states, apart)
    if probe:
        groups = np.concatenate([states.true_image, states.hallucinated_image])
        labels = np.concatenate([np.zeros(len(true)), np.ones(len(false))])
        report.metrics["probe_auc"] = probe_auc(np.concatenate([true, false]), labels, groups, seed=seed)
    report.counts = {"pairs": len(owners), "images": len(image)}
    return report


def probe_auc(x: np.ndarray, labels: np.ndarray, groups: np.ndarray, *, folds: int = 5, seed: int = 0) -> float | None:
    """AUC of a logistic probe on held-out folds; rows of one group are never split. None with too few groups.

    0.5 is chance; below it, few groups made the folds contradict each other (a word false of one image is true of the
    next), which is no better than chance.

    One AUC of all held-out scores would compare folds of different scale, so folds are averaged.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = min(folds, len(set(groups.tolist())))
    if folds < 2 or len(set(labels.tolist())) < 2:
        return None
    scores = []
    for train, test in GroupKFold(folds, shuffle=True, random_state=seed).split(x, labels, groups):
        if len(set(labels[train].tolist())) == len(set(labels[test].tolist())) == 2:
            probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
            probe.fit(x[train], labels[train])
            scores.append(roc_auc_score(labels[test], probe.decision_function(x[test])))
    return float(np.mean(scores)) if scores else None


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


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None


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
