"""Concept dictionaries: K directions or centres that summarise a matrix of hidden states, and the samples' activations.

Method of Parekh et al. (NeurIPS 2024, "A Concept-Based Explainability Framework for Large Multimodal Models") as used
for representation shift (arXiv 2501.03012, section 3): Z = U V. Rows are samples here: X (N, D) is about
activations (N, K) times concepts (K, D).

Shapes: N samples, D hidden size, K concepts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hacl.representations.array_files import check_made_for, read_arrays, write_arrays
from hacl.representations.row_algebra import concept_means, distances, singular_vectors
from hacl.representations.semi_nmf import fit_semi_nmf, nonnegative_projection

FORMAT, NAME = "hacl-dictionary-1", "dictionary"
METHODS = ("kmeans", "pca", "svd", "nmf", "semi_nmf", "sparse_pos", "simple")
CENTRES = ("kmeans", "simple")  # concepts are places; in the other methods they are directions
SIGNED = ("pca", "svd")  # a sample may carry minus a concept
MINIBATCH_ABOVE = 20_000  # rows


@dataclass(frozen=True)
class Dictionary:
    """Concepts of one set of hidden states.

    Attributes:
        concepts_KD: fp64, in the space of the input: centres (kmeans, simple) or directions (all others).
        method: one of METHODS.
        params: settings that made it, seed among them, and what a projection needs.
        mean_D: what is taken off a row before it is projected; None for nothing.
        centres_KD: for centres that were found in centred or unit-length rows: where they lie there; else None.
        fit_error: squared reconstruction error of the fitted rows over their squared distance to their mean: 0 is
            perfect, 1 as good as the mean alone. None if all rows are alike.
        provenance: model, layer, selector and whatever else the caller states.
    """

    concepts_KD: np.ndarray
    method: str
    params: dict[str, Any]
    mean_D: np.ndarray | None = None
    centres_KD: np.ndarray | None = None
    fit_error: float | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        x_ND: np.ndarray,
        K: int,
        method: str = "kmeans",
        seed: int = 0,
        *,
        center: bool = False,
        normalize: bool = False,
        n_init: int = 10,
        iterations: int = 300,
        minibatch_above: int = MINIBATCH_ABOVE,
        alpha: float = 1.0,
        l1: float = 0.0,
        unit_norm: bool = False,
        provenance: Mapping[str, Any] | None = None,
    ) -> Dictionary:
        """Learn K concepts; the same input and seed give the same concepts.

        Args:
            center, normalize: take off the mean and give rows length 1 before clustering (kmeans and simple only;
                concepts stay in the space of the input, as means of their members).
            n_init, minibatch_above: k-means starts, and the number of rows above which mini-batches are used.
            iterations: most iterations (5,000 upstream; sparse_pos takes minutes with that many).
            alpha: sparsity of sparse_pos (1 upstream); l1, unit_norm: of semi_nmf.

        Raises:
            ValueError: an unknown method, too few rows, values that are not finite, an option of another method, or
                negative input for nmf.
        """
        x_ND = np.asarray(x_ND, dtype=np.float64)
        _check_fit(x_ND, K, method, center or normalize, l1 > 0 or unit_norm)
        params: dict[str, Any] = {"K": K, "seed": seed, "rows": len(x_ND)}
        common = {"provenance": dict(provenance or {}), "params": params, "method": method}
        if method in CENTRES:
            params |= {"center": center, "normalize": normalize, "iterations": iterations}
            mean_D = x_ND.mean(axis=0) if center else None
            rows_ND = _prepare(x_ND, mean_D, normalize)
            minibatch = method == "kmeans" and len(rows_ND) > minibatch_above
            if method == "kmeans":
                params |= {"n_init": n_init, "minibatch": minibatch}
                centres_KD = _kmeans(rows_ND, K, seed, n_init, iterations, minibatch)
            else:
                centres_KD = rows_ND[np.argsort(-np.linalg.norm(rows_ND, axis=1), kind="stable")[:K]]
            moved = center or normalize
            concepts_KD = _member_means(x_ND, rows_ND, centres_KD) if moved else centres_KD
            made = cls(concepts_KD, mean_D=mean_D, centres_KD=centres_KD if moved else None, **common)
        elif method in SIGNED:
            concepts_KD, mean_D = _principal(x_ND, K, seed, centred=method == "pca")
            made = cls(concepts_KD, mean_D=mean_D, **common)
        else:
            params["iterations"] = iterations
            if method == "sparse_pos":
                params["alpha"] = alpha
            if method == "semi_nmf":
                params |= {"l1": l1, "unit_norm": unit_norm}
            made = cls(_atoms(x_ND, method, params), **common)
        return replace(made, fit_error=_fit_error(made, x_ND))

    @property
    def signed(self) -> bool:
        return self.method in SIGNED

    def activations(self, x_ND: np.ndarray, *, temperature: float | None = None) -> np.ndarray:
        """How much of each concept a row carries, (N, K).

        kmeans and simple: 1 / (1 + Euclidean distance), or with a temperature T the softmax of -distance^2 / T;
        pca and svd: signed projections; nmf and semi_nmf: non-negative least squares; sparse_pos (and semi_nmf with
        l1): non-negative lasso codes.

        Raises:
            ValueError: rows of another width, or a temperature for a method without distances.
        """
        x_ND = np.asarray(x_ND, dtype=np.float64)
        if x_ND.ndim != 2 or x_ND.shape[1] != self.concepts_KD.shape[1]:
            raise ValueError(f"rows of shape {x_ND.shape}; this dictionary reads (N, {self.concepts_KD.shape[1]})")
        if self.method in CENTRES:
            return _closeness(self.distances(x_ND), temperature)
        if temperature is not None:
            raise ValueError(f"temperature: {self.method} has no distances; leave it out")
        if self.signed:
            return (x_ND if self.mean_D is None else x_ND - self.mean_D) @ self.concepts_KD.T
        sparsity = self.params.get("alpha") or self.params.get("l1")
        if sparsity:
            from sklearn.decomposition import sparse_encode

            return sparse_encode(x_ND, self.concepts_KD, algorithm="lasso_cd", alpha=sparsity, positive=True)
        return nonnegative_projection(x_ND, self.concepts_KD)

    def distances(self, x_ND: np.ndarray) -> np.ndarray:
        """Euclidean distance of rows to centres (N, K), in the space where the centres were found."""
        if self.method not in CENTRES:
            raise ValueError(f"{self.method} learns directions, which have no distance; use kmeans or simple")
        rows_ND = _prepare(np.asarray(x_ND, dtype=np.float64), self.mean_D, self.params["normalize"])
        return distances(rows_ND, self.concepts_KD if self.centres_KD is None else self.centres_KD)

    def assign(self, x_ND: np.ndarray) -> np.ndarray:
        """The concept of each row (N,): the largest activation, the largest absolute one where activations are signed.

        Where no activation is positive (a row that non-negative codes cannot touch) it is the first concept.
        """
        if self.method in CENTRES:
            return self.distances(x_ND).argmin(axis=1)
        activations_NK = self.activations(x_ND)
        return (np.abs(activations_NK) if self.signed else activations_NK).argmax(axis=1)

    def sizes(self, x_ND: np.ndarray) -> np.ndarray:
        """Samples per concept (K,)."""
        return np.bincount(self.assign(x_ND), minlength=len(self.concepts_KD))

    def reconstruct(self, x_ND: np.ndarray) -> np.ndarray:
        """The rows as the dictionary sees them (N, D)."""
        if self.method in CENTRES:
            return self.concepts_KD[self.assign(x_ND)]
        return self.activations(x_ND) @ self.concepts_KD + (0.0 if self.mean_D is None else self.mean_D)

    def save(self, folder: Path | str) -> Path:
        """Write `dictionary.safetensors` and `dictionary.json`."""
        arrays = {"concepts": self.concepts_KD}
        arrays |= {"mean": self.mean_D} if self.mean_D is not None else {}
        arrays |= {"centres": self.centres_KD} if self.centres_KD is not None else {}
        content = {"format": FORMAT, "method": self.method, "params": self.params, "fit_error": self.fit_error}
        return write_arrays(folder, NAME, arrays, {**content, "provenance": self.provenance})

    @classmethod
    def load(cls, folder: Path | str, **expected: Any) -> Dictionary:
        """Read a dictionary. expected: entries of the provenance that must agree, such as model or layer.

        Raises:
            FileNotFoundError, ValueError: none there, damaged, or made for something else.
        """
        content, arrays = read_arrays(folder, NAME, FORMAT)
        check_made_for(folder, content, expected)
        return cls(
            arrays["concepts"],
            content["method"],
            content["params"],
            arrays.get("mean"),
            arrays.get("centres"),
            content["fit_error"],
            content["provenance"],
        )


def _check_fit(x_ND: np.ndarray, K: int, method: str, prepared: bool, semi: bool) -> None:
    if method not in METHODS:
        raise ValueError(f"dictionary method {method!r}; known: {', '.join(METHODS)}")
    if x_ND.ndim != 2 or not 1 <= K <= len(x_ND):
        raise ValueError(f"{K} concepts from rows of shape {x_ND.shape}; needs (N, D) with N >= K >= 1")
    if method in SIGNED and K > x_ND.shape[1]:
        raise ValueError(f"{method}: {K} concepts of width {x_ND.shape[1]}; there are at most as many as the width")
    if not np.isfinite(x_ND).all():
        raise ValueError(
            f"row {int(np.flatnonzero(~np.isfinite(x_ND).all(axis=1))[0])} is not finite; capture it again"
        )
    if prepared and method not in CENTRES:
        raise ValueError(f"center and normalize belong to {' and '.join(CENTRES)}; {method} has rules of its own")
    if semi and method != "semi_nmf":
        raise ValueError(f"l1 and unit_norm belong to semi_nmf, not to {method}")
    if method == "nmf" and x_ND.min() < 0:
        raise ValueError(f"nmf: the least value is {x_ND.min():.3g}; it needs input >= 0; use semi_nmf")


def _prepare(x_ND: np.ndarray, mean_D: np.ndarray | None, normalize: bool) -> np.ndarray:
    if mean_D is not None:
        x_ND = x_ND - mean_D
    if not normalize:
        return x_ND
    length_N1 = np.linalg.norm(x_ND, axis=1, keepdims=True)
    return x_ND / np.where(length_N1 > 0, length_N1, 1.0)


def _kmeans(x_ND: np.ndarray, K: int, seed: int, n_init: int, iterations: int, minibatch: bool) -> np.ndarray:
    from sklearn.cluster import KMeans, MiniBatchKMeans

    kind = MiniBatchKMeans if minibatch else KMeans
    fitted = kind(K, n_init=n_init, max_iter=iterations, random_state=seed).fit(x_ND)
    # Centres as the plain means of their members: the library stops a rounding or a mini-batch away from them.
    return _member_means(x_ND, x_ND, fitted.cluster_centers_)


def _member_means(x_ND: np.ndarray, rows_ND: np.ndarray, centres_KD: np.ndarray) -> np.ndarray:
    """Means in x of the rows nearest to each centre; a centre without a row stays where it is."""
    labels_N = distances(rows_ND, centres_KD).argmin(axis=1)
    means_KD, counts_K = concept_means(x_ND, labels_N, len(centres_KD))
    return np.where(counts_K[:, None] > 0, means_KD, centres_KD)


def _principal(x_ND: np.ndarray, K: int, seed: int, centred: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """The first K right singular vectors, largest loading positive, and the mean that was taken off."""
    mean_D = x_ND.mean(axis=0) if centred else None
    _, components_KD = singular_vectors(x_ND - mean_D if centred else x_ND, K, seed)
    largest = np.abs(components_KD).argmax(axis=1)
    return components_KD * np.sign(components_KD[np.arange(len(components_KD)), largest])[:, None], mean_D


def _atoms(x_ND: np.ndarray, method: str, params: Mapping[str, Any]) -> np.ndarray:
    K, seed, iterations = params["K"], params["seed"], params["iterations"]
    if method == "semi_nmf":
        options = {"l1": params["l1"], "unit_norm": params["unit_norm"]}
        return fit_semi_nmf(x_ND, K, seed=seed, iterations=iterations, **options).atoms_KD
    from sklearn.decomposition import NMF, DictionaryLearning

    if method == "nmf":
        return NMF(K, init="nndsvda", random_state=seed, max_iter=iterations).fit(x_ND).components_
    learner = DictionaryLearning(
        K,
        alpha=params["alpha"],
        max_iter=iterations,
        fit_algorithm="cd",
        transform_algorithm="lasso_cd",
        positive_code=True,
        random_state=seed,
    )
    return learner.fit(x_ND).components_


def _closeness(distances_NK: np.ndarray, temperature: float | None) -> np.ndarray:
    if temperature is None:
        return 1.0 / (1.0 + distances_NK)
    from scipy.special import softmax

    if temperature <= 0:
        raise ValueError(f"temperature={temperature}; needs a number above 0")
    return softmax(-(distances_NK**2) / temperature, axis=1)


def _fit_error(made: Dictionary, x_ND: np.ndarray) -> float | None:
    total = float(((x_ND - x_ND.mean(axis=0)) ** 2).sum())
    return float(((x_ND - made.reconstruct(x_ND)) ** 2).sum()) / total if total > 0 else None
