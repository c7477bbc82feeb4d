"""Collate samples into the packed batch of one decoder call.

Batches may mix anything: text-only records, several images, records without captions or hallucinated captions. Absent
items are masked, never required, and every batch holds at least one image (a blank one that nothing reads), one text
root and one label slot, so that every rank of a sharded run calls the same modules. So does the batch of no samples,
with which a rank keeps step that has nothing left to do: one row of padding, and it counts in no loss.

Shapes: B samples, C captions and K hallucinated captions per sample (padded to the objective's numbers), R packed rows,
T tokens per row, I images, N tokens per image, F tokens of all images, D hidden size, Nl label tokens, S sequences with
labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hacl.data.dataset import Sample
from hacl.data.layout import GENERATION, HALLUCINATED_GENERATION, Layout
from hacl.data.templates import SequenceEncoder

__all__ = ["GENERATION", "HALLUCINATED_GENERATION", "PackedCollator"]


class PackedCollator:
    """`collator(samples) -> batch` (see `__call__`).

    text_states: with `.lookup(list of token-id tuples) -> (M, D)`, pooled constant text states; image_features: with
    `.lookup(list of image paths) -> (I, N, Dv)`, features of a frozen tower; share_rows: pack several sequences in one
    row; pad_to_multiple: row lengths are rounded up to it.
    """

    def __init__(
        self,
        encoder: SequenceEncoder,
        objective,
        *,
        text_states=None,
        image_features=None,
        share_rows: bool = True,
        pad_to_multiple: int = 1,
    ):
        self.encoder = encoder
        self.objective = objective
        self.text_states = text_states
        self.image_features = image_features
        self.share_rows = share_rows
        self.pad_to_multiple = pad_to_multiple
        tokenizer = encoder.tokenizer
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Returns int64 index tensors, boolean masks and pixels (or features); every read is (row, start, end).

        input_ids, position_ids, segment_ids (R, T); islands (R, T) in families whose tokens see later ones, equal for
        those that see each other, else -1; subtree_end (R, T) where sequences form trees, and shared_tokens,
        how many tokens that saved, with share_prefixes; image_source (R, T), index into the F image tokens or -1; what
        the family's processor makes of all images (pixel_values and others) or image_features (I, N, Dv); label_read
        (Nl, 2), the position whose state predicts, with label_target and label_sequence (Nl); sequence_kind and
        sequence_sample (S); image_read (B, 3) and image_valid (B); caption_read (B, C, 3) and hallucinated_read (B, K,
        3), with caption_places and hallucinated_places (..., L) where a mean is read in a tree, or caption_states (B,
        C, D) and hallucinated_states (B, K, D) when text is constant; caption_valid, hallucinated_valid,
        hallucinated_type, caption_keys and hallucinated_keys (equal for equal texts); image_ids and sample_index (B);
        image_tokens (F), the image of each.
        """
        layout = Layout(self.encoder, self.objective, has_text=self.text_states is None)
        for b, sample in enumerate(samples):
            layout.add(b, sample)
        batch = layout.build(
            len(samples), pad_id=self.pad_id, share_rows=self.share_rows, multiple=self.pad_to_multiple
        )
        batch.update(self._images(samples))
        if self.text_states is not None:
            batch.update(self._cached_text(samples))
        return batch

    @property
    def contrastive(self) -> bool:
        return bool(self.objective.contrastive_weight)

    def _images(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        if self.image_features is not None:
            paths = [path for sample in samples for path in sample.image_paths]
            if paths:
                return {"image_features": self.image_features.lookup(paths)}
            return {"image_features": self.image_features.blank()}
        images = self.encoder.images
        pixels = [image for sample in samples for image in sample.pixels] or [images.blank()]
        return images.format.collate(pixels)

    def _cached_text(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        if not self.contrastive:
            return {}
        slots = {"caption_states": max(1, self.objective.num_captions)}
        slots["hallucinated_states"] = self.objective.num_hallucinated
        states = {}
        for (name, count), kind in zip(slots.items(), ("caption_roots", "hallucinated_roots"), strict=True):
            roots = [tuple(root) for sample in samples for root in getattr(sample, kind)]
            found = iter(self.text_states.lookup(roots)) if roots else iter(())
            filled = torch.zeros(len(samples), count, self.text_states.width, dtype=self.text_states.dtype)
            for b, sample in enumerate(samples):
                for slot in range(len(getattr(sample, kind))):
                    filled[b, slot] = next(found)
            states[name] = filled
        return states
