"""How well the wording alone tells hallucinated captions from true ones: probes that never see an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Leak:
    """auc: of true against hallucinated captions, any with any (0.5: nothing leaks); low, high: 95 % bootstrap interval
    over photographs; paired: share of pairs in which the hallucinated one scores higher; by_type: type -> (auc, paired,
    pairs)."""

    probe: str
    auc: float
    low: float
    high: float
    paired: float
    pairs: int
    by_type: dict[str, tuple[float, float, int]]


@dataclass(frozen=True)
class Pairs:
    """Arrays of one length: true caption, hallucinated caption made from it, its type, its photograph."""

    true: Sequence[str]
    hallucinated: Sequence[str]
    types: Sequence[str]
    images: Sequence[str]


def tfidf_leak(pairs: Pairs, *, folds: int = 5, seed: int = 0) -> Leak:
    """TF-IDF of 1-2-grams and the number of words and characters, logistic regression, folds by photograph.

    Pairs are balanced: each hallucinated caption stands beside the caption it was made from.
    """
    from scipy import sparse
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [*pairs.true, *pairs.hallucinated]
    lengths = np.array([[len(text.split()), len(text)] for text in texts], dtype=float)

    def embed(train: np.ndarray, test: np.ndarray):
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, token_pattern=r"(?u)\b\w+\b", sublinear_tf=True)
        known = vectorizer.fit_transform([texts[i] for i in train])
        mean, spread = lengths[train].mean(0), lengths[train].std(0) + 1e-9
        scaled = [sparse.csr_matrix((lengths[rows] - mean) / spread) for rows in (train, test)]
        return (
            sparse.hstack([known, scaled[0]]).tocsr(),
            sparse.hstack([vectorizer.transform([texts[i] for i in test]), scaled[1]]).tocsr(),
        )

    return _probe("TF-IDF 1-2-grams and length", pairs, embed, folds, seed)


def embedding_leak(pairs: Pairs, embeddings: np.ndarray, *, folds: int = 5, seed: int = 0) -> Leak:
    """The same with sentence embeddings, (2 x pairs, width): those of the true captions, then the others'."""

    def embed(train: np.ndarray, test: np.ndarray):
        mean, spread = embeddings[train].mean(0), embeddings[train].std(0) + 1e-9
        return (embeddings[train] - mean) / spread, (embeddings[test] - mean) / spread

    return _probe("sentence embedding", pairs, embed, folds, seed, strength=0.01)


def score_leak(probe: str, pairs: Pairs, scores: np.ndarray, *, seed: int = 0) -> Leak:
    """The same for scores made elsewhere, (2, pairs): higher means hallucinated. No training, hence no folds."""
    return _leak(probe, pairs, scores, seed)


def _probe(name: str, pairs: Pairs, embed, folds: int, seed: int, strength: float = 1.0) -> Leak:
    from sklearn.linear_model import LogisticRegression

    count = len(pairs.true)
    images = sorted(set(pairs.images))
    order = np.random.default_rng(seed).permutation(len(images))
    fold_of = {images[image]: position % folds for position, image in enumerate(order)}
    fold = np.array([fold_of[image] for image in pairs.images] * 2)
    labels = np.repeat([0, 1], count)
    scores = np.zeros(2 * count)
    for part in range(folds):
        train, test = np.flatnonzero(fold != part), np.flatnonzero(fold == part)
        if not len(test) or not len(train):
            continue
        known, unknown = embed(train, test)
        model = LogisticRegression(C=strength, solver="liblinear", random_state=seed).fit(known, labels[train])
        scores[test] = model.decision_function(unknown)
    return _leak(name, pairs, scores.reshape(2, count), seed)


def _leak(name: str, pairs: Pairs, scores: np.ndarray, seed: int) -> Leak:
    types, images = np.array(pairs.types), np.array(pairs.images)
    low, high = _interval(scores, images, seed)
    by_type = {
        str(kind): (_auc(*scores[:, types == kind]), _paired(scores[:, types == kind]), int((types == kind).sum()))
        for kind in sorted(set(pairs.types))
    }
    return Leak(name, _auc(*scores), low, high, _paired(scores), len(types), by_type)


def _auc(true: np.ndarray, hallucinated: np.ndarray) -> float:
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([true, hallucinated]))
    above = ranks[len(true) :].sum() - len(hallucinated) * (len(hallucinated) + 1) / 2
    return float(above / (len(true) * len(hallucinated)))


def _paired(scores: np.ndarray) -> float:
    return float((scores[1] > scores[0]).mean() + 0.5 * (scores[1] == scores[0]).mean())


def _by_image(images: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(images, kind="stable")
    return np.split(order, np.flatnonzero(images[order][1:] != images[order][:-1]) + 1)


def interval_of_mean(values: np.ndarray, images: np.ndarray, seed: int, draws: int = 1000) -> tuple[float, float]:
    """95 % bootstrap interval of a mean, whole photographs drawn."""
    groups = _by_image(images)
    sums = np.array([[values[rows].sum(), len(rows)] for rows in groups])
    drawn = np.random.default_rng(seed).integers(0, len(groups), (draws, len(groups)))
    total = sums[drawn].sum(1)
    means = total[:, 0] / total[:, 1]
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def _interval(scores: np.ndarray, images: np.ndarray, seed: int, draws: int = 200) -> tuple[float, float]:
    generator = np.random.default_rng(seed)
    groups = _by_image(images)
    values = []
    for _ in range(draws):
        rows = np.concatenate([groups[i] for i in generator.integers(0, len(groups), len(groups))])
        values.append(_auc(scores[0, rows], scores[1, rows]))
    return float(np.quantile(values, 0.025)), float(np.quantile(values, 0.975))
