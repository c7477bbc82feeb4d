"""What a packed micro-batch holds, counted from the batch itself: contexts, pairs of positions, labels and images.

A context is a token together with all it can see: the node of a trie. Sequences that begin alike share their contexts,
stored once or not, so a beginning that is packed twice is counted once.

Shapes: R packed rows, T tokens per row, F image tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

import numpy as np
import torch
from torch import Tensor

from hacl.models.attention_masks import is_plain, subtree_ends


@dataclass
class Work:
    """Counts of one micro-batch, or of several added up.

    batches: micro-batches added up. contexts: distinct contexts, pairs: positions they see, themselves included;
    text_contexts, text_pairs: those of them that see no image. tokens: without padding; slots: with it. packed_pairs:
    positions that all tokens see; masked_pairs: that a kernel with a dense mask or a causal flag runs; dense_pairs: of
    whole rows. labels: positions with logits. images: that a token refers to; images_run: with the blank one of a batch
    without images; towers, towers_run: of them, those that pass the tower (none with cached features). reads:
    representations of the contrastive loss; read_slots: with absent ones.
    """

    batches: int = 0
    samples: int = 0
    contexts: int = 0
    pairs: int = 0
    text_contexts: int = 0
    text_pairs: int = 0
    tokens: int = 0
    slots: int = 0
    packed_pairs: int = 0
    masked_pairs: int = 0
    dense_pairs: int = 0
    labels: int = 0
    images: int = 0
    images_run: int = 0
    towers: int = 0
    towers_run: int = 0
    image_reads: int = 0
    text_reads: int = 0
    image_read_slots: int = 0
    text_read_slots: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))

    def tensor(self) -> Tensor:
        """The counts as one int64 vector, in the order of the fields; `Work(*vector.tolist())` is the way back."""
        return torch.tensor(astuple(self))


class CountingCollator:
    """A collator whose batches also hold what they ask for, under "work": counted where the batch is made, so that
    training waits for no count."""

    def __init__(self, collator: Callable[[Sequence], dict[str, Tensor]]):
        self.collator = collator

    def __call__(self, samples: Sequence) -> dict[str, Tensor]:
        batch = self.collator(samples)
        batch["work"] = count_work(batch).tensor()
        return batch


def count_work(batch: dict[str, Tensor]) -> Work:
    """Counts of a batch of `PackedCollator` on the CPU."""
    segments_RT = batch["segment_ids"]
    rows, columns = segments_RT.shape
    branching = batch.get("subtree_end")
    ends_RT = (subtree_ends(segments_RT) if branching is None else branching).numpy()
    is_token = segments_RT.numpy() > 0
    source_RT = batch["image_source"].numpy()
    depth_RT = _sum_over_branch(is_token.astype(np.int64), ends_RT, is_token)
    seen_images_RT = _sum_over_branch((source_RT >= 0).astype(np.int64), ends_RT, is_token)
    names_RT = _mix(batch["input_ids"].numpy(), source_RT, depth_RT)
    context_RT = _sum_over_branch(names_RT, ends_RT, is_token)
    _, first = np.unique(context_RT[is_token], return_index=True)
    depth, is_text = depth_RT[is_token], seen_images_RT[is_token] == 0
    has_pixels = "image_features" not in batch
    image_F = batch["image_tokens"].numpy()
    images, images_run = len(np.unique(image_F[source_RT[source_RT >= 0]])), len(np.unique(image_F))
    reads, slots = _reads(batch)
    return Work(
        batches=1,
        samples=batch["sample_index"].numel(),
        contexts=len(first),
        pairs=int(depth[first].sum()),
        text_contexts=int(is_text[first].sum()),
        text_pairs=int(depth[first][is_text[first]].sum()),
        tokens=int(is_token.sum()),
        slots=rows * columns,
        packed_pairs=int(depth.sum()),
        masked_pairs=rows * columns * (columns + 1) // 2 if is_plain(segments_RT, branching) else rows * columns**2,
        dense_pairs=rows * columns**2,
        labels=batch["label_target"].numel(),
        images=images,
        images_run=images_run,
        towers=images if has_pixels else 0,
        towers_run=images_run if has_pixels else 0,
        image_reads=reads["image"],
        text_reads=reads["caption"] + reads["hallucinated"],
        image_read_slots=slots["image"],
        text_read_slots=slots["caption"] + slots["hallucinated"],
    )


def _reads(batch: dict[str, Tensor]) -> tuple[dict[str, int], dict[str, int]]:
    """Representations that are there, and those that are projected, by kind; none without a contrastive loss."""
    found, slots = {}, {}
    for kind in ("image", "caption", "hallucinated"):
        valid = batch.get(f"{kind}_valid")
        found[kind] = 0 if valid is None else int(valid.sum())
        slots[kind] = 0 if valid is None else valid.numel()
    return found, slots


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
