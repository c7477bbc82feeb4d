"""What a packed micro-batch holds, counted from the batch itself: contexts, pairs of positions, labels and images.

A context is a token together with all it can see: the node of a trie. Sequences that begin alike share their contexts,
stored once or not, so a beginning that is packed twice is counted once.

Shapes: R packed rows, T tokens per row, N image tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from torch import Tensor

from hacl.models.attention_masks import subtree_ends


@dataclass
class Work:
    """Counts of one micro-batch, or of several added up.

    contexts: distinct contexts, pairs: positions they see, themselves included; text_contexts, text_pairs: those of
    them that see no image. tokens: without padding; slots: with it; packed_pairs: positions seen by all tokens;
    dense_pairs: by all slots over whole rows. images: those that a token refers to; images_run: with the blank one of a
    batch without images; pixels: whether the tower runs (0 with cached features). reads: valid ones; slots of
    reads: as projected.
    """

    samples: int = 0
    contexts: int = 0
    pairs: int = 0
    text_contexts: int = 0
    text_pairs: int = 0
    tokens: int = 0
    slots: int = 0
    packed_pairs: int = 0
    dense_pairs: int = 0
    labels: int = 0
    images: int = 0
    images_run: int = 0
    pixels: int = 0
    image_reads: int = 0
    text_reads: int = 0
    image_slots: int = 0
    text_slots: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def count_work(batch: dict[str, Tensor]) -> Work:
    """Counts of a batch of `PackedCollator` on the CPU; a few sorted arrays of (R, T), no device is waited for."""
    segments_RT = batch["segment_ids"]
    rows, columns = segments_RT.shape
    ends_RT = batch.get("subtree_end")
    if ends_RT is None:
        ends_RT = subtree_ends(segments_RT)
    is_token = segments_RT.numpy() > 0
    source_RT = batch["image_source"].numpy()
    depth_RT = _sum_over_branch(is_token.astype(np.int64), ends_RT.numpy(), is_token)
    seen_images_RT = _sum_over_branch((source_RT >= 0).astype(np.int64), ends_RT.numpy(), is_token)
    names_RT = _mix(batch["input_ids"].numpy(), source_RT, depth_RT)
    context_RT = _sum_over_branch(names_RT, ends_RT.numpy(), is_token)
    _, first = np.unique(context_RT[is_token], return_index=True)
    depth, is_text = depth_RT[is_token], seen_images_RT[is_token] == 0
    per_image = len(batch["image_tokens"])
    images = batch["pixel_values"] if "pixel_values" in batch else batch["image_features"]
    valid = {name: batch.get(f"{name}_valid") for name in ("image", "caption", "hallucinated")}
    read, slots = (
        {name: 0 if v is None else f(v) for name, v in valid.items()} for f in (lambda v: int(v.sum()), Tensor.numel)
    )
    return Work(
        samples=batch["sample_index"].numel(),
        contexts=len(first),
        pairs=int(depth[first].sum()),
        text_contexts=int(is_text[first].sum()),
        text_pairs=int(depth[first][is_text[first]].sum()),
        tokens=int(is_token.sum()),
        slots=rows * columns,
        packed_pairs=int(depth.sum()),
        dense_pairs=rows * columns * columns,
        labels=batch["label_target"].numel(),
        images=len(np.unique(source_RT[source_RT >= 0] // per_image)),
        images_run=len(images),
        pixels=int("pixel_values" in batch),
        image_reads=read["image"],
        text_reads=read["caption"] + read["hallucinated"],
        image_slots=slots["image"],
        text_slots=slots["caption"] + slots["hallucinated"],
    )


def _sum_over_branch(values_RT: np.ndarray, ends_RT: np.ndarray, is_token: np.ndarray) -> np.ndarray:
    """For every column q the sum of values[k] over all k it sees (k <= q < ends[k]), modulo 2^64."""
    rows, columns = values_RT.shape
    steps = np.zeros((rows, columns + 1), dtype=values_RT.dtype)
    masked = np.where(is_token, values_RT, values_RT.dtype.type(0))
    steps[:, :columns] += masked
    row = np.broadcast_to(np.arange(rows)[:, None], masked.shape)
    with np.errstate(over="ignore"):
        np.subtract.at(steps, (row.ravel(), np.where(is_token, ends_RT, 0).ravel()), masked.ravel())
        return np.cumsum(steps, axis=1, dtype=values_RT.dtype)[:, :columns]


def _mix(*parts: np.ndarray) -> np.ndarray:
    """64 bits that look random for every combination of integers (the finaliser of SplitMix64, Steele et al., 2014)."""
    state = np.zeros(parts[0].shape, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            state = (state ^ part.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state ^= state >> np.uint64(31)
    return state
