"""Refuse options that mean nothing and features, masks and labels that do not belong together.

Shapes: B samples, C captions and K hallucinated captions per sample, P contrastive size.
"""

from __future__ import annotations

from hacl.losses.info_nce import POSITIVES

HARD_SCOPES = ("own", "local", "global")


def check_options(hard_scope: str, positives: str, exclude_other_positives: bool, hard_weight: float) -> None:
    if hard_scope not in HARD_SCOPES:
        raise ValueError(f"hard_scope is {hard_scope!r}; use one of {', '.join(HARD_SCOPES)}")
    if positives not in POSITIVES:
        raise ValueError(f"positives is {positives!r}; use one of {', '.join(POSITIVES)}")
    if exclude_other_positives and positives == "log_sum":
        raise ValueError("exclude_other_positives needs positives='mean_log': log_sum has one denominator for all")
    if hard_weight < 0:
        raise ValueError(f"hard_weight is {hard_weight}; it multiplies a probability and must be 0 or more")


def check_shapes(
    image, caption, hallucinated, image_mask, caption_mask, hallucinated_mask, image_ids, keys, hallucinated_keys
) -> None:
    B, P = image.shape
    C, K = caption.shape[1], hallucinated.shape[1]
    expected = {
        "caption_BCP": (caption, (B, C, P)),
        "hallucinated_BKP": (hallucinated, (B, K, P)),
        "image_mask_B": (image_mask, (B,)),
        "caption_mask_BC": (caption_mask, (B, C)),
        "hallucinated_mask_BK": (hallucinated_mask, (B, K)),
        "image_ids_B": (image_ids, (B,)),
        "caption_keys_BC": (keys, (B, C)),
    }
    if hallucinated_keys is not None:
        expected["hallucinated_keys_BK"] = (hallucinated_keys, (B, K))
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, but image_BP {(B, P)} makes it {shape}")
