"""Controls of the entanglement measures: what they give where there is nothing to find.

Shuffled images: what a margin owes to the image. Paraphrases (other true captions of the image) in the place of
hallucinated captions: what any other wording does. Words alone: what style gives away before any model has looked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hacl.evaluation.diagnostics import States, add_probe, mixing_shares
from hacl.evaluation.reports import ScoreReport, ratio
from hacl.evaluation.separation import energy_distance
from hacl.training.state_measures import paired_margins, unit


def controls(states: States, *, seed: int = 0, probe: bool = True, draws: int = 0) -> ScoreReport:
    """Margins with shuffled images, and the entanglement measures of paraphrases.

    Metrics with evidence by image:
        state_margin_accuracy_shuffled: the margin's accuracy when every image is another one; chance means that the
            margin comes from the image, the unshuffled accuracy means that it comes from the captions alone;
        state_margin_gain: accuracy with the right image minus that, pair by pair;
        state_margin_accuracy_paraphrase: share with cos(image, another true caption of it) above cos(image,
            hallucinated), which wording cannot decide;
        margin_size, margin_size_paraphrase: mean |margin| against hallucinated captions and against paraphrases;
        shift_beyond_paraphrase: share of hallucinated captions farther from their true caption than the image's other
            true captions are on average.
    With ``probe`` and where images have two captions: probe_auc_paraphrase, knn_mixing_paraphrase,
    energy_distance_paraphrase and energy_p_paraphrase, as in `entanglement` for one caption against another of the same
    image, which comes first being drawn by seed.
    """
    report = ScoreReport(meta={"scorer": "controls", "version": 1})
    own, owner = states.hallucinated_image, states.hallucinated_true
    report.items = [{"image_id": states.image_ids[i]} for i in own]
    margin_H = paired_margins(states.image[own], states.true[owner], states.hallucinated)
    other = derangement(len(states.image), seed)[own]
    shuffled_H = paired_margins(states.image[other], states.true[owner], states.hallucinated)
    _column(report, "state_margin_accuracy_shuffled", shuffled_H > 0)
    _column(report, "state_margin_gain", (margin_H > 0).astype(float) - (shuffled_H > 0))
    _column(report, "margin_size", np.abs(margin_H))
    siblings = _siblings(states, seed)
    second_H = siblings[owner]
    has = second_H >= 0
    if has.any():
        image, second = states.image[own], states.true[second_H]
        above = paired_margins(image, second, states.hallucinated) > 0
        _column(report, "state_margin_accuracy_paraphrase", above, has)
        _column(report, "margin_size_paraphrase", np.abs(paired_margins(image, states.true[owner], second)), has)
        typical = _mean_paraphrase_distance(states)[owner]
        moved_H = np.linalg.norm(states.hallucinated - states.true[owner], axis=1)
        _column(report, "shift_beyond_paraphrase", moved_H > typical, has)
        if probe:
            _paraphrases(report, states, siblings, seed, draws)
    return report


def text_probe(
    true: Sequence[str], hallucinated: Sequence[str], groups: Sequence[int], *, draws: int = 0, seed: int = 0
) -> ScoreReport:
    """Can words alone tell true from hallucinated captions? A logistic probe on words and word pairs, folds by image.

    groups: image of each true, then of each hallucinated caption. ``text_probe_auc`` above 0.5 is style that a model
    may use without looking; state probes and blind margins must be read against it.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    words = CountVectorizer(ngram_range=(1, 2), binary=True, token_pattern=r"[^\s]+")
    x = words.fit_transform([*true, *hallucinated]).astype(float)
    labels = np.repeat([0.0, 1.0], [len(true), len(hallucinated)])
    report = ScoreReport(meta={"scorer": "text_probe", "version": 1})
    add_probe(report, "text_probe_auc", x, labels, np.asarray(groups), seed=seed, draws=draws)
    return report


def derangement(count: int, seed: int) -> np.ndarray:
    """For each image another one, by one seeded cycle (the only image stays with itself)."""
    cycle = np.random.default_rng(seed).permutation(count)
    other = np.empty(count, dtype=int)
    other[cycle] = np.roll(cycle, 1)
    return other


def paraphrase_states(states: States, seed: int = 0) -> States:
    """Two true captions of each image as "true" and "hallucinated", in seeded order; images with one are left out."""
    return _paraphrase_states(states, _siblings(states, seed), seed)


def _paraphrase_states(states: States, siblings: np.ndarray, seed: int) -> States:
    rng = np.random.default_rng(seed)
    _, first = np.unique(states.true_image, return_index=True)
    first = first[siblings[first] >= 0]
    pairs = np.stack([first, siblings[first]], axis=1)
    flip = rng.integers(0, 2, len(pairs)).astype(bool)
    pairs[flip] = pairs[flip][:, ::-1]
    owner = states.true_image[first]
    return replace(
        states,
        true=states.true[pairs[:, 0]],
        hallucinated=states.true[pairs[:, 1]],
        true_image=owner,
        hallucinated_image=owner,
        hallucinated_true=np.arange(len(pairs)),
        types=("paraphrase",) * len(pairs),
    )


def _paraphrases(report: ScoreReport, states: States, siblings: np.ndarray, seed: int, draws: int) -> None:
    pairs = _paraphrase_states(states, siblings, seed)
    a, b, image = pairs.true, pairs.hallucinated, pairs.true_image
    labels = np.repeat([0.0, 1.0], len(a))
    rows = np.concatenate([unit(a), unit(b)])
    add_probe(report, "probe_auc_paraphrase", rows, labels, np.tile(image, 2), seed=seed, draws=draws)
    shares = mixing_shares(a, b, image)
    report.metrics["knn_mixing_paraphrase"] = float(np.nanmean(shares)) if np.isfinite(shares).any() else None
    distance, p = energy_distance(unit(a), unit(b), image, seed=seed)
    report.metrics |= {"energy_distance_paraphrase": distance, "energy_p_paraphrase": p}


def _siblings(states: States, seed: int) -> np.ndarray:
    """For each true caption the row of another one of its image, drawn by seed; -1 where there is none."""
    rng = np.random.default_rng(seed)
    found = np.full(len(states.true), -1)
    for image in range(len(states.image)):
        rows = np.flatnonzero(states.true_image == image)
        if len(rows) > 1:
            found[rows] = np.roll(rows, 1 + int(rng.integers(len(rows) - 1)))
    return found


def _mean_paraphrase_distance(states: States) -> np.ndarray:
    """Mean distance of each true caption to the other ones of its image, NaN where there is none."""
    found = np.full(len(states.true), np.nan)
    for image in range(len(states.image)):
        rows = np.flatnonzero(states.true_image == image)
        for row in rows if len(rows) > 1 else ():
            others = rows[rows != row]
            found[row] = np.linalg.norm(states.true[others] - states.true[row], axis=1).mean()
    return found


def _column(report: ScoreReport, name: str, values: np.ndarray, counted: np.ndarray | None = None) -> None:
    counted = np.ones(len(values), dtype=bool) if counted is None else counted
    pairs = [(float(v), 1.0) if use else (0.0, 0.0) for v, use in zip(values, counted, strict=True)]
    report.ratios[name] = pairs
    report.metrics[name] = ratio(pairs, name, report.warnings)
