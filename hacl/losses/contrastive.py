"""Hallucination-augmented image-text InfoNCE as a pure function of features.

HACL (arXiv 2312.06968, section 3.2) with the hallucinated captions of an image as hard negatives of image to text, for
any number of captions and hallucinated captions per image, on any number of ranks.

Shapes: B samples of this rank, N samples of all W ranks and then of the queue, C captions and K hallucinated captions
per sample, P contrastive size, M captions of those N samples, H hard-negative columns, A = B*C caption anchors, L
labels of texts, X columns of any kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hacl.losses.checks import check_options, check_shapes
from hacl.losses.gather import Gather
from hacl.losses.info_nce import first_is_positive, info_nce, listed_labels
from hacl.losses.queue import Queued
from hacl.losses.union_batch import UnionBatch, union_batch

Report = dict[str, tuple[Tensor, Tensor]]
LOGITS = 2**23  # entries of the widest matrix of a block of anchors
ENTRY_BYTES = 40  # of all matrices of a block for each such entry, at most, forward and backward in fp32


def contrastive_loss(
    image_BP: Tensor,
    caption_BCP: Tensor,
    hallucinated_BKP: Tensor,
    log_inverse_temperature: Tensor,
    *,
    image_mask_B: Tensor,
    caption_mask_BC: Tensor,
    hallucinated_mask_BK: Tensor,
    image_ids_B: Tensor,
    caption_keys_BC: Tensor,
    hallucinated_keys_BK: Tensor | None = None,
    hard_scope: str = "own",
    positives: str = "mean_log",
    exclude_other_positives: bool = False,
    mask_false_negatives: bool = True,
    hard_weight: float = 1.0,
    hard_margin: float = 0.0,
    t2i_hard_weight: float = 0.0,
    text_margin_weight: float = 0.0,
    text_margin: float = 0.0,
    gather: Gather | None = None,
    queue: Queued | None = None,
) -> tuple[Tensor, Report]:
    """(i2t + t2i) / 2 plus the optional terms, and what to log about it.

    Features are as the heads give them, in any floating dtype: they are upcast to fp32 (fp64 stays) and L2-normalised
    here; masked entries are ignored whatever they hold. s is cosine similarity, tau = exp(-log_inverse_temperature),
    a (1,) tensor already bounded. Masks are true for real entries; `image_ids_B`, `caption_keys_BC` and
    `hallucinated_keys_BK` are int64, equal for the same image and the same text; keys of captions and of hallucinated
    captions are of one kind. K may be 0, and C and K may differ between ranks.

    Image to text: anchors are this rank's images; columns are the captions of all ranks and hallucinated captions,
    those of the anchor's own sample (`hard_scope="own"`, the paper), of every sample of this rank ("local", the
    released code) or of all ranks ("global"). Text to image: anchors are this rank's captions, columns the images of
    all ranks. In both directions everything that carries the anchor's image id is a positive, and a caption whose text
    is also given for the other image of a pair makes that pair no negative: it leaves the denominator. So does, image
    to text, a hallucinated caption whose text is a caption of the anchor's image: it is true there, whosever it is.
    The further terms leave out such a pair of an image and its own. `hallucinated_keys_BK=None`: texts of hallucinated
    captions are not looked at, all stay. With `mask_false_negatives=False` ids and texts are not looked at: only a
    sample's own captions are its positives and the rest are negatives. An anchor without a positive is no anchor.

    positives: "mean_log" averages the log-probability over an anchor's positives, "log_sum" takes the log of their
    summed probability; with one positive both are InfoNCE. exclude_other_positives (mean_log only): the denominator
    of a positive holds that positive and the negatives only.
    hard_weight w >= 0 multiplies hard negatives in the denominator (adds log w to the logit; 0 removes them), and
    hard_margin is added to their similarity. Further terms, each off at weight 0: `t2i_hard_weight` times the mean
    over (image, its hallucinated caption) of -log sigmoid(-s / tau), which repels a hallucinated caption from its image
    without reference to others; `text_margin_weight` times the mean over (image, its caption t, its hallucinated
    caption h) of -log sigmoid((s(v,t) - s(v,h) - text_margin) / tau).

    gather: None for one process. With a Gather all ranks must call this together; each rank's loss is W times its share
    of the loss of the union batch, so the mean over ranks, of values and of gradients, is that of a single process
    however anchors are spread. A rank without anchors returns zero with a graph.

    queue: samples of past steps as further columns of both directions (`FeatureQueue.read`), the same on all ranks;
    their hallucinated captions are columns with hard_scope="global" alone. They are candidates and never positives, and
    have no gradient: what carries the anchor's image id, or a text that is said of the anchor's image in the batch or
    in the queue, leaves the denominator as it does in the batch.

    Returns the loss (fp32 or fp64 scalar) and {name: (sum, count)}, detached and of this rank, to be added over ranks
    before dividing: i2t, t2i (losses per anchor), i2t_top1, t2i_top1 (a positive beats every negative),
    positive_similarity, hard_similarity (own pairs), negative_similarity (captions only), hard_negative_win_rate
    (share of own triples with s(v,t) > s(v,h)), effective_negatives (negatives per image anchor after masking), and
    t2i_hard, text_margin where on.

    Raises ValueError for unknown options and shapes that do not belong together.
    """
    check_options(hard_scope, positives, exclude_other_positives, hard_weight)
    check_shapes(
        image_BP, caption_BCP, hallucinated_BKP, image_mask_B, caption_mask_BC, hallucinated_mask_BK, image_ids_B,
        caption_keys_BC, hallucinated_keys_BK,
    )  # fmt: skip
    gather = gather or Gather(alone=True)
    with torch.autocast(image_BP.device.type, enabled=False):
        batch = union_batch(
            image_BP, caption_BCP, hallucinated_BKP, image_mask_B, caption_mask_BC, hallucinated_mask_BK, image_ids_B,
            caption_keys_BC, hallucinated_keys_BK, mask_false_negatives, hard_scope == "global", gather, queue,
        )  # fmt: skip
        scale = log_inverse_temperature.to(batch.image_BP.dtype).exp()

        def images(rows: slice) -> tuple[Tensor, ...]:
            return _image_to_text(
                batch, rows, scale, hard_scope, positives, exclude_other_positives, hard_weight, hard_margin
            )

        def captions(rows: slice) -> tuple[Tensor, ...]:
            return _text_to_image(batch, rows, scale, positives, exclude_other_positives)

        i2t_width, t2i_width = widths(
            hard_scope,
            images=len(batch.image_NP),
            captions=len(batch.caption_MP),
            hallucinated=len(batch.hallucinated_label_H),
            own=batch.is_hallucinated_BK.numel(),
            hard=batch.is_hallucinated_BK.shape[1],
        )
        i2t_B, is_i2t_B, is_own_BK, report = _in_blocks(images, len(batch.image_BP), i2t_width)
        t2i_A, is_t2i_A, t2i_report = _in_blocks(captions, batch.is_caption_BC.numel(), t2i_width)
        report |= t2i_report
        terms = [("i2t", 0.5, i2t_B, is_i2t_B), ("t2i", 0.5, t2i_A, is_t2i_A)]

        own_BC = torch.einsum("bp,bcp->bc", batch.image_BP, batch.caption_BCP)
        own_BK = torch.einsum("bp,bkp->bk", batch.image_BP, batch.hallucinated_BKP)
        gap_BCK = own_BC[:, :, None] - own_BK[:, None, :]
        is_gap_BCK = batch.is_caption_BC[:, :, None] & is_own_BK[:, None, :]
        report["hard_similarity"] = _sum_and_count(own_BK, is_own_BK)
        report["hard_negative_win_rate"] = _sum_and_count(gap_BCK > 0, is_gap_BCK)
        if t2i_hard_weight:
            terms.append(("t2i_hard", t2i_hard_weight, F.softplus(own_BK * scale), is_own_BK))
        if text_margin_weight:
            terms.append(("text_margin", text_margin_weight, F.softplus((text_margin - gap_BCK) * scale), is_gap_BCK))

        report |= {name: _sum_and_count(values, valid) for name, _, values, valid in terms}
        counts = gather.sum(torch.stack([valid.sum() for _, _, _, valid in terms]))
        loss = sum(
            weight * gather.world_size * torch.where(valid, values, 0).sum() / count.clamp_min(1)
            for (_, weight, values, valid), count in zip(terms, counts, strict=True)
        )
    return loss, report


def widths(hard_scope: str, *, images: int, captions: int, hallucinated: int, own: int, hard: int) -> tuple[int, int]:
    """Columns of the widest matrix of image to text and of text to image, which need not be its logits: the first also
    has a column for every text that is looked up, the second one for every caption of the same text.

    images, captions, hallucinated: of all ranks and the queue; own: hallucinated captions of this rank; hard: of a
    sample.
    """
    columns = captions + {"own": hard, "local": own, "global": hallucinated}[hard_scope]
    return max(columns, captions + hallucinated + 1), max(images, captions)


def block_anchors(width: int) -> int:
    """Anchors of a block whose widest matrix has so many columns."""
    return max(1, LOGITS // max(1, width))


def _in_blocks(block: Callable[[slice], tuple], anchors: int, width: int) -> tuple:
    """What `block` returns for all anchors, from blocks of them; reports are added up.

    width: columns of the widest matrix of a block, which has at most `LOGITS` entries (or one row). Losses of anchors
    do not depend on each other. Where there is more than one block its matrices are made again in the backward pass, so
    memory is that of one block, and linear in the number of samples.
    """
    size = block_anchors(width)
    blocks = [slice(start, min(start + size, anchors)) for start in range(0, max(1, anchors), size)]
    if len(blocks) == 1:
        return block(blocks[0])
    found = [checkpoint(block, rows, use_reentrant=False, preserve_rng_state=False) for rows in blocks]
    *tensors, reports = zip(*found, strict=True)
    report = {name: tuple(map(sum, zip(*(part[name] for part in reports), strict=True))) for name in reports[0]}
    return *(torch.cat(parts) for parts in tensors), report


def _image_to_text(
    batch: UnionBatch, rows: slice, scale, hard_scope, positives, exclude_other_positives, hard_weight, hard_margin
):
    """Of the images in `rows`: loss, whether an anchor, which own hallucinated captions are hard negatives, report."""
    image_BP, is_image_B1 = batch.image_BP[rows], batch.is_image_B[rows, None]
    said_BM = batch.captions_of_images(rows)
    # by label, the texts that are captions of each image: no column of such a text is a negative
    said_BL = listed_labels(said_BM, batch.text_label_M, batch.num_texts + 1)
    positive_BM = batch.fresh_captions(said_BM)
    negative_BM = ~said_BL[:, batch.text_label_M] & batch.is_caption_M & is_image_B1
    similarity_BM = image_BP @ batch.caption_MP.T

    own_BKP, own_label_BK = batch.hallucinated_BKP[rows], batch.own_label_BK[rows]
    is_own_BK = batch.is_hallucinated_BK[rows] & is_image_B1 & ~said_BL.gather(1, own_label_BK)
    if hard_scope == "own":
        similarity_BH, hard_BH = torch.einsum("bp,bkp->bk", image_BP, own_BKP), is_own_BK
    else:
        everyone = hard_scope == "global"
        hallucinated_HP = batch.hallucinated_HP if everyone else batch.hallucinated_BKP.flatten(0, 1)
        is_hallucinated_H = batch.is_hallucinated_H if everyone else batch.is_hallucinated_BK.flatten()
        similarity_BH = image_BP @ hallucinated_HP.T
        label_H = batch.hallucinated_label_H if everyone else batch.own_label_BK.flatten()
        hard_BH = is_hallucinated_H & is_image_B1 & ~said_BL[:, label_H]
    if hard_weight == 0:
        hard_BH = torch.zeros_like(hard_BH)
    hard_logit_BH = (similarity_BH + hard_margin) * scale + (math.log(hard_weight) if hard_weight else 0.0)

    positive_BX = torch.cat([positive_BM, torch.zeros_like(hard_BH)], dim=1)
    negative_BX = torch.cat([negative_BM, hard_BH], dim=1)
    logit_BX = torch.cat([similarity_BM * scale, hard_logit_BH], dim=1)
    loss_B, is_anchor_B = info_nce(logit_BX, positive_BX, negative_BX, positives, exclude_other_positives)
    similarity_BX = torch.cat([similarity_BM.detach(), similarity_BH.detach()], dim=1)
    report = {
        "i2t_top1": _sum_and_count(first_is_positive(similarity_BX, positive_BX, negative_BX), is_anchor_B),
        "positive_similarity": _sum_and_count(similarity_BM, positive_BM),
        "negative_similarity": _sum_and_count(similarity_BM, negative_BM),
        "effective_negatives": _sum_and_count(negative_BX.sum(1), is_anchor_B),
    }
    return loss_B, is_anchor_B, is_own_BK, report


def _text_to_image(batch: UnionBatch, rows: slice, scale, positives, exclude_other_positives):
    """Of this rank's captions in `rows` (flat): loss, whether an anchor, report."""
    first = batch.first * batch.is_caption_BC.shape[1]
    anchors = slice(first + rows.start, first + rows.stop)
    image_label_M = batch.image_label_M
    is_caption_A1 = batch.is_caption_M[anchors, None]
    same_text_AM = (batch.text_label_M[anchors, None] == batch.text_label_M) & batch.is_caption_M & is_caption_A1
    described_AN = listed_labels(same_text_AM, image_label_M, len(batch.image_label_N))[:, batch.image_label_N]
    same_image_AN = image_label_M[anchors, None] == batch.image_label_N
    positive_AN = batch.fresh_images(same_image_AN & batch.is_image_N & is_caption_A1)
    negative_AN = ~described_AN & batch.is_image_N & is_caption_A1
    similarity_AN = batch.caption_BCP.flatten(0, 1)[rows] @ batch.image_NP.T
    loss_A, is_anchor_A = info_nce(similarity_AN * scale, positive_AN, negative_AN, positives, exclude_other_positives)
    top1_A = first_is_positive(similarity_AN.detach(), positive_AN, negative_AN)
    return loss_A, is_anchor_A, {"t2i_top1": _sum_and_count(top1_A, is_anchor_A)}


def _sum_and_count(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(valid, values.detach(), 0).sum().float(), torch.count_nonzero(valid)
