"""What one rank sees of the contrastive batch of all ranks, with the samples of a queue behind it.

Shapes: B samples of this rank, N samples of all W ranks and then of the queue, C captions and K hallucinated captions
per sample, P contrastive size, M captions and H hallucinated captions of those N samples, X entries of any kind.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hacl.losses.gather import Gather
from hacl.losses.queue import Queued


@dataclass(frozen=True)
class UnionBatch:
    """This rank's unit features, and the columns that they meet. Labels are equal where identities are."""

    image_BP: Tensor
    caption_BCP: Tensor
    hallucinated_BKP: Tensor
    is_image_B: Tensor
    is_caption_BC: Tensor
    is_hallucinated_BK: Tensor
    own_label_BK: Tensor  # labels of this rank's hallucinated captions
    image_NP: Tensor
    caption_MP: Tensor
    hallucinated_HP: Tensor | None  # None unless hard negatives are gathered
    is_image_N: Tensor
    is_caption_M: Tensor
    is_hallucinated_H: Tensor
    image_label_N: Tensor
    image_label_M: Tensor
    text_label_M: Tensor
    hallucinated_label_H: Tensor  # of the same texts as text_label_M; num_texts where the text is not looked at
    num_texts: int
    first: int  # this rank's samples are first .. first + B of the union batch
    num_images: int  # entries of the union batch; those after them are of the queue
    num_captions: int

    def captions_of_images(self, rows: slice) -> Tensor:
        """(B, M): which captions, of the queue too, are of each of these images of this rank."""
        image_label_B = self.image_label_N[self.first : self.first + len(self.image_BP)][rows]
        return (image_label_B[:, None] == self.image_label_M) & self.is_caption_M & self.is_image_B[rows, None]

    def fresh_captions(self, entries_BM: Tensor) -> Tensor:
        """The same without the entries of the queue."""
        return _clear_from(entries_BM, self.num_captions)

    def fresh_images(self, entries_AN: Tensor) -> Tensor:
        """The same without the entries of the queue."""
        return _clear_from(entries_AN, self.num_images)


def _clear_from(entries_AX: Tensor, first: int) -> Tensor:
    return entries_AX & (torch.arange(entries_AX.shape[1], device=entries_AX.device) < first)


def union_batch(
    image_BP, caption_BCP, hallucinated_BKP, is_image_B, is_caption_BC, is_hallucinated_BK, image_ids_B,
    caption_keys_BC, hallucinated_keys_BK, use_identities: bool, gather_hallucinated: bool, gather: Gather,
    queue: Queued | None,
) -> UnionBatch:  # fmt: skip
    """Three exchanges whatever the rank holds: shapes, integers, features. The queue needs none."""
    features = (image_BP, caption_BCP, hallucinated_BKP)
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in features) else torch.float32
    wants_grad = torch.is_grad_enabled() and any(x.requires_grad for x in features)
    shapes_W = gather.agree(
        len(image_BP), caption_BCP.shape[1], hallucinated_BKP.shape[1], int(wants_grad), device=image_BP.device
    )
    counts_W = [shape[0] for shape in shapes_W]
    C, K = max(shape[1] for shape in shapes_W), max(shape[2] for shape in shapes_W)
    is_caption_BC, caption_keys_BC = _widen(is_caption_BC, C), _widen(caption_keys_BC, C)
    is_keyed_BK = torch.full_like(is_hallucinated_BK, hallucinated_keys_BK is not None)
    if hallucinated_keys_BK is None:
        hallucinated_keys_BK = torch.zeros_like(is_hallucinated_BK, dtype=torch.int64)
    hallucinated_BK = [_widen(x, K) for x in (is_hallucinated_BK, is_keyed_BK, hallucinated_keys_BK)]
    is_hallucinated_BK = hallucinated_BK[0]
    image_BP = _unit(image_BP, is_image_B, dtype)
    caption_BCP = _unit(_widen(caption_BCP, C), is_caption_BC, dtype)
    hallucinated_BKP = _unit(_widen(hallucinated_BKP, K), is_hallucinated_BK, dtype)

    integers = [is_image_B[:, None], image_ids_B[:, None], is_caption_BC, caption_keys_BC, *hallucinated_BK]
    integers_N = gather.rows(torch.cat([x.to(torch.int64) for x in integers], dim=1), counts_W)
    is_image_N, image_ids_N, is_caption_NC, keys_NC, *hallucinated_NK = integers_N.split([1, 1, C, C, K, K, K], dim=1)
    is_hallucinated_NK, is_keyed_NK, hallucinated_keys_NK = hallucinated_NK

    blocks = [image_BP[:, None], caption_BCP] + ([hallucinated_BKP] if gather_hallucinated else [])
    packed = torch.cat(blocks, dim=1)
    if any(shape[3] for shape in shapes_W) and torch.is_grad_enabled() and not packed.requires_grad:
        packed.requires_grad_()  # the backward of the gather is a collective: no rank may skip it
    packed_N = gather.rows(packed, counts_W)

    images = [packed_N[:, 0]]
    captions = [packed_N[:, 1 : 1 + C].flatten(0, 1)]
    hallucinated = [packed_N[:, 1 + C :].flatten(0, 1)] if gather_hallucinated else []
    is_image, is_caption, is_hallucinated = (
        [is_image_N[:, 0]],
        [is_caption_NC.flatten()],
        [is_hallucinated_NK.flatten()],
    )
    image_ids, per_image = [image_ids_N[:, 0]], [C]
    caption_keys, hallucinated_keys = [keys_NC.flatten()], [hallucinated_keys_NK.flatten()]
    is_keyed = [is_keyed_NK.flatten()]
    if queue is not None:
        images.append(_unit(queue.image_QP, queue.image_mask_Q, dtype))
        captions.append(_unit(queue.caption_QCP, queue.caption_mask_QC, dtype).flatten(0, 1))
        is_image.append(queue.image_mask_Q)
        is_caption.append(queue.caption_mask_QC.flatten())
        image_ids.append(queue.image_ids_Q)
        per_image.append(queue.caption_mask_QC.shape[1])
        caption_keys.append(queue.caption_keys_QC.flatten())
        hallucinated_keys.append(queue.hallucinated_keys_QK.flatten())
        is_keyed.append(torch.ones_like(hallucinated_keys[-1]))
        is_hallucinated.append(queue.hallucinated_mask_QK.flatten())
        if gather_hallucinated:
            hallucinated.append(_unit(queue.hallucinated_QKP, queue.hallucinated_mask_QK, dtype).flatten(0, 1))

    ids_N, texts_X = torch.cat(image_ids), torch.cat([*caption_keys, *hallucinated_keys])
    is_keyed_H = torch.cat(is_keyed).bool()
    if use_identities:
        image_label_N = torch.unique(ids_N, return_inverse=True)[1]
        text_label_X = torch.unique(texts_X, return_inverse=True)[1]
    else:
        image_label_N = torch.arange(len(ids_N), device=ids_N.device)
        text_label_X = torch.arange(len(texts_X), device=ids_N.device)
        is_keyed_H = torch.zeros_like(is_keyed_H)
    text_label_M, label_H = text_label_X.split([sum(map(len, caption_keys)), len(is_keyed_H)])
    label_H = torch.where(is_keyed_H, label_H, len(texts_X))
    of_image = image_label_N.split([len(ids) for ids in image_ids])
    first = sum(counts_W[: gather.rank])
    own = slice(first * K, (first + len(image_BP)) * K)
    return UnionBatch(
        image_BP=image_BP,
        caption_BCP=caption_BCP,
        hallucinated_BKP=hallucinated_BKP,
        is_image_B=is_image_B,
        is_caption_BC=is_caption_BC,
        is_hallucinated_BK=is_hallucinated_BK,
        own_label_BK=label_H[own].view_as(is_hallucinated_BK),
        image_NP=torch.cat(images),
        caption_MP=torch.cat(captions),
        hallucinated_HP=torch.cat(hallucinated) if gather_hallucinated else None,
        is_image_N=torch.cat(is_image).bool(),
        is_caption_M=torch.cat(is_caption).bool(),
        is_hallucinated_H=torch.cat(is_hallucinated).bool(),
        image_label_N=image_label_N,
        image_label_M=torch.cat([labels.repeat_interleave(n) for labels, n in zip(of_image, per_image, strict=True)]),
        text_label_M=text_label_M,
        hallucinated_label_H=label_H,
        num_texts=len(texts_X),
        first=first,
        num_images=len(integers_N),
        num_captions=len(caption_keys[0]),
    )


def _unit(features: Tensor, valid: Tensor, dtype: torch.dtype) -> Tensor:
    return F.normalize(torch.where(valid[..., None], features.to(dtype), 0), dim=-1)


def _widen(entries_BX: Tensor, width: int) -> Tensor:
    return F.pad(entries_BX, [0, 0] * (entries_BX.dim() - 2) + [0, width - entries_BX.shape[1]])
