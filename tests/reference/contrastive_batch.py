"""Random contrastive batches, as the tensors that the loss takes and as the samples that the loop takes.

Shapes: B samples, C captions and K hallucinated captions per sample, P contrastive size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.reference.contrastive_loop import LoopSample

FEATURES = ("image_BP", "caption_BCP", "hallucinated_BKP")
Batch = dict[str, Tensor]


def random_batch(
    seed: int, B: int, C: int = 1, K: int = 1, P: int = 6, *, dtype=torch.float64, images: int = 1000, texts: int = 1000
) -> Batch:
    """A batch of one rank, everything valid. Small `images` or `texts` make image ids or caption keys repeat."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "image_BP": normal(B, P),
        "caption_BCP": normal(B, C, P),
        "hallucinated_BKP": normal(B, K, P),
        "image_mask_B": torch.ones(B, dtype=torch.bool),
        "caption_mask_BC": torch.ones(B, C, dtype=torch.bool),
        "hallucinated_mask_BK": torch.ones(B, K, dtype=torch.bool),
        "image_ids_B": distinct_or_drawn(images, (B,), generator),
        "caption_keys_BC": distinct_or_drawn(texts, (B, C), generator),
        "hallucinated_keys_BK": distinct_or_drawn(texts, (B, K), generator),
    }


def distinct_or_drawn(among: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """int64 labels, spread over the whole range as hashes are; all different where `among` is large."""
    count = torch.Size(shape).numel()
    if among < 1000:
        labels = torch.randint(among, (count,), generator=generator) * 2**40
    else:
        labels = torch.randint(2**62, (count,), generator=generator)
    return labels.reshape(shape)


def drop_some(batch: Batch, seed: int, share: float = 0.4) -> Batch:
    """The same batch with a share of every mask turned off."""
    generator = torch.Generator().manual_seed(seed)
    masks = {
        name: value & (torch.rand(value.shape, generator=generator) > share)
        for name, value in batch.items()
        if "mask" in name
    }
    return batch | masks


def loop_samples(batch: Batch, rank: int = 0) -> list[LoopSample]:
    """The valid entries of a batch; vectors are views, so gradients reach the batch's tensors."""
    samples = []
    for b in range(len(batch["image_BP"])):
        captions = [
            (vector, int(key))
            for vector, key, valid in zip(
                batch["caption_BCP"][b], batch["caption_keys_BC"][b], batch["caption_mask_BC"][b], strict=True
            )
            if valid
        ]
        keys = batch.get("hallucinated_keys_BK")
        hallucinated = [
            (vector, None if keys is None else int(keys[b, k]))
            for k, vector in enumerate(batch["hallucinated_BKP"][b])
            if batch["hallucinated_mask_BK"][b, k]
        ]
        image = batch["image_BP"][b] if batch["image_mask_B"][b] else None
        samples.append(LoopSample(image, int(batch["image_ids_B"][b]), captions, hallucinated, rank))
    return samples


def with_gradients(batch: Batch) -> Batch:
    return batch | {name: batch[name].detach().clone().requires_grad_() for name in FEATURES}
