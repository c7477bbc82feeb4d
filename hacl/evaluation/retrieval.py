"""Image-text retrieval from two feature matrices: recall@k both ways, several captions per image.

Shapes: I images, M texts, P width. Features need not be normalised: similarity is the cosine.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hacl.evaluation.reports import ScoreReport, ratio
from hacl.training.state_measures import unit


def retrieval(
    image_IP: np.ndarray,
    text_MP: np.ndarray,
    text_image_M: Sequence[int],
    *,
    ks: Sequence[int] = (1, 5, 10),
    image_ids: Sequence[str] | None = None,
) -> ScoreReport:
    """Recall@k: ``i2t@k`` is the share of images with one of their own texts among the k nearest, ``t2i@k`` the share
    of texts whose image is among the k nearest images. A tie counts against the right answer.

    text_image_M: for every text the row of its image. One item per image; images without a text are left out of i2t.

    Raises:
        ValueError: shapes do not fit, or a feature is not finite (it would rank first everywhere).
    """
    owner_M = np.asarray(text_image_M)
    if image_IP.shape[-1] != text_MP.shape[-1] or len(owner_M) != len(text_MP):
        raise ValueError(f"image {image_IP.shape}, text {text_MP.shape}, owners {owner_M.shape} do not fit together")
    if len(owner_M) and not 0 <= owner_M.min() <= owner_M.max() < len(image_IP):
        raise ValueError(f"text_image names row {owner_M.max()} but there are {len(image_IP)} images")
    if not (np.isfinite(image_IP).all() and np.isfinite(text_MP).all()):
        raise ValueError("retrieval: features hold NaN or infinity")
    similarity_IM = unit(image_IP) @ unit(text_MP).T
    own_IM = owner_M[None, :] == np.arange(len(image_IP))[:, None]
    best_I = np.where(own_IM, similarity_IM, -np.inf).max(axis=1, initial=-np.inf)
    # Rank = how many wrong candidates are at least as near, so that a tie is never luck.
    i2t_I = (~own_IM & (similarity_IM >= best_I[:, None])).sum(axis=1)
    own_M = similarity_IM[owner_M, np.arange(len(owner_M))]
    t2i_M = (~own_IM & (similarity_IM >= own_M[None, :])).sum(axis=0)
    has_text_I = own_IM.any(axis=1)
    report = ScoreReport(meta={"scorer": "retrieval", "version": 1})
    ids = [str(i) for i in range(len(image_IP))] if image_ids is None else list(image_ids)
    report.items = [
        {"image_id": ids[i], "i2t_rank": int(i2t_I[i]), "t2i_ranks": t2i_M[owner_M == i].tolist()}
        for i in range(len(ids))
    ]
    for k in ks:
        report.ratios[f"i2t@{k}"] = [
            (float(i2t_I[i] < k) * has_text_I[i], float(has_text_I[i])) for i in range(len(ids))
        ]
        report.ratios[f"t2i@{k}"] = [
            (float((t2i_M[owner_M == i] < k).sum()), float((owner_M == i).sum())) for i in range(len(ids))
        ]
    report.metrics = {name: ratio(pairs, name, report.warnings) for name, pairs in report.ratios.items()}
    report.counts = {"images": len(ids), "texts": len(owner_M)}
    return report
