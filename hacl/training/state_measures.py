"""The cheap part of the state diagnostics, as pure functions of arrays: distances, cosines, paired margins.

Training shows these while it runs, and :mod:`hacl.evaluation.diagnostics` builds on the same functions, so that both
give one number for one set of states.

Shapes: I images, M true captions, H hallucinated captions, P width.
"""

from __future__ import annotations

import numpy as np


def unit(x: np.ndarray) -> np.ndarray:
    """Rows scaled to length one (a zero row stays zero), float64."""
    x = np.asarray(x, dtype=np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def gap_measures(image_IP: np.ndarray, text_MP: np.ndarray, text_image_M: np.ndarray) -> dict[str, float | None]:
    """Modality gap without classifiers or retrieval (HACL, arXiv 2312.06968, section 3): smooth in the images.

    text_image_M: row of the image of each caption. ``centroid_distance``: between the mean unit vectors;
    ``relative_gap``: over the mean distance of a unit vector to its own modality's mean; ``matched_cosine``,
    ``unmatched_cosine`` and ``cosine_difference`` of images and captions.
    """
    image, text = unit(image_IP), unit(text_MP)
    centre_image, centre_text = image.mean(axis=0), text.mean(axis=0)
    distance = float(np.linalg.norm(centre_image - centre_text))
    own = [np.linalg.norm(rows - centre, axis=1) for rows, centre in ((image, centre_image), (text, centre_text))]
    spread = float(np.concatenate(own).mean())
    similarity_IM = image @ text.T
    own_IM = np.asarray(text_image_M)[None, :] == np.arange(len(image))[:, None]
    matched, unmatched = _mean(similarity_IM[own_IM]), _mean(similarity_IM[~own_IM])
    return {
        "centroid_distance": distance,
        "relative_gap": distance / spread if spread > 0 else None,
        "matched_cosine": matched,
        "unmatched_cosine": unmatched,
        "cosine_difference": None if matched is None or unmatched is None else matched - unmatched,
    }


def paired_margins(image_HP: np.ndarray, true_HP: np.ndarray, hallucinated_HP: np.ndarray) -> np.ndarray:
    """cos(image, true) - cos(image, hallucinated) of pairs given row by row, (H)."""
    return np.einsum("hp,hp->h", unit(image_HP), unit(true_HP) - unit(hallucinated_HP))


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None
