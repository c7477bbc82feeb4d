"""Collate samples into the packed batch of one decoder call.

Batches may mix anything: text-only records, several images, records without captions or hallucinated captions. Absent
items are masked, never required, and every batch holds at least one image (a blank one that nothing reads), one text
root and one label slot, so that every rank of a sharded run calls the same modules. So does the batch of no samples,
with which a rank keeps step that has nothing left to do: one row of padding, and it counts in no loss.

Shapes: B samples, C captions and K hallucinated captions per sample (padded to the objective's numbers), R packed rows,
T tokens per row, I images, N tokens per image, D hidden size, Nl label tokens, S sequences with labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hacl.data.dataset import Sample
from hacl.data.packing import pack_tightly
from hacl.data.templates import EncodedSequence, SequenceEncoder

GENERATION, HALLUCINATED_GENERATION = 0, 1


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

        input_ids, position_ids, segment_ids (R, T); image_source (R, T), index into the I*N image tokens or -1;
        pixel_values (I, 3, H, W) or image_features (I, N, Dv); label_read (Nl, 2), the position whose state predicts,
        with label_target and label_sequence (Nl); sequence_kind and sequence_sample (S); image_read (B, 3) and
        image_valid (B); caption_read (B, C, 3) and hallucinated_read (B, K, 3), or caption_states (B, C, D) and
        hallucinated_states (B, K, D) when text is constant; caption_valid, hallucinated_valid, hallucinated_type,
        caption_keys and hallucinated_keys (equal for equal texts); image_ids and sample_index (B); image_tokens (N).
        """
        layout = _Layout(self)
        for b, sample in enumerate(samples):
            layout.add(b, sample)
        batch = layout.build(len(samples))
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
        pixels = [image for sample in samples for image in sample.pixels]
        if not pixels:
            from PIL import Image

            blank = Image.new("RGB", (32, 32))
            pixels = [self.encoder.processor.image_processor(blank, return_tensors="pt")["pixel_values"][0]]
        shapes = {tuple(image.shape) for image in pixels}
        if len(shapes) != 1:
            raise ValueError(f"images of one batch have different shapes after processing: {sorted(shapes)}")
        return {"pixel_values": torch.stack(pixels)}

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


class _Layout:
    """Sequences of a batch in the order they were added, and what is read from each."""

    def __init__(self, collator: PackedCollator):
        self.collator = collator
        self.objective = collator.objective
        self.sequences: list[list[int]] = []
        self.sources: list[list[tuple[int, int]]] = []  # (start, index of the image) per image span
        self.label_positions: list[tuple[int, int, int, int]] = []  # sequence, token, target, labelled sequence
        self.kinds: list[int] = []
        self.owners: list[int] = []
        self.image_reads: dict[int, tuple[int, int, int]] = {}
        self.text_reads: dict[tuple[str, int, int], tuple[int, int, int]] = {}
        self.samples: list[Sample] = []
        self.num_images = 0

    def add(self, b: int, sample: Sample) -> None:
        self.samples.append(sample)
        images = list(range(self.num_images, self.num_images + len(sample.image_paths)))
        self.num_images += len(images)
        generation = self._labelled(sample.generation, images, GENERATION, b)
        for sequence in sample.hallucinated_generations:
            self._labelled(sequence, images, HALLUCINATED_GENERATION, b)
        if sample.contrastive_image:
            if sample.image_root is not None:
                index = self._sequence(sample.image_root, images)
                end = len(sample.image_root)
                start = end - 1 if self.objective.image_pool == "last" else 0
                end = end if self.objective.image_pool == "last" else end - 1
            else:
                index, (start, end) = generation, sample.generation.image_spans[0]
                start = end - 1 if self.objective.image_pool == "last" else start
            self.image_reads[b] = (index, start, end)
        if self.collator.text_states is None:
            for kind, roots in (("caption", sample.caption_roots), ("hallucinated", sample.hallucinated_roots)):
                for slot, ids in enumerate(roots):
                    index = self._sequence(EncodedSequence(ids, []), [])
                    span = self.collator.encoder.root_span(ids, self.objective.text_pool)
                    self.text_reads[kind, b, slot] = (index, *span)

    def _sequence(self, sequence: EncodedSequence, images: list[int]) -> int:
        self.sequences.append(sequence.ids)
        self.sources.append([(start, image) for (start, _), image in zip(sequence.image_spans, images, strict=False)])
        return len(self.sequences) - 1

    def _labelled(self, sequence: EncodedSequence, images: list[int], kind: int, b: int) -> int:
        index = self._sequence(sequence, images)
        if self.objective.lm_weight or kind == HALLUCINATED_GENERATION or self.objective.likelihood_margin_weight:
            labelled = len(self.kinds)
            self.label_positions += [
                (index, t - 1, sequence.ids[t], labelled)
                for t, is_label in enumerate(sequence.is_label)
                if t and is_label
            ]
        self.kinds.append(kind)
        self.owners.append(b)
        return index

    def build(self, batch_size: int) -> dict[str, Tensor]:
        collator, objective = self.collator, self.objective
        lengths = [len(ids) for ids in self.sequences]
        places, rows, columns = pack_tightly(lengths, share_rows=collator.share_rows)
        tokens = -(-columns // collator.pad_to_multiple) * collator.pad_to_multiple
        input_ids = torch.full((rows, tokens), collator.pad_id)
        position_ids = torch.arange(tokens).repeat(rows, 1)
        segment_ids = torch.zeros(rows, tokens, dtype=torch.long)
        image_source = torch.full((rows, tokens), -1)
        per_image = collator.encoder.num_image_tokens
        next_segment = [0] * rows
        for sequence, ids in enumerate(self.sequences):
            row, column = places[sequence]
            span = slice(column, column + len(ids))
            next_segment[row] += 1
            input_ids[row, span] = torch.tensor(ids)
            position_ids[row, span] = torch.arange(len(ids))
            segment_ids[row, span] = next_segment[row]
            for start, image in self.sources[sequence]:
                slot = column + start
                image_source[row, slot : slot + per_image] = torch.arange(per_image) + image * per_image

        def place(read: tuple[int, int, int]) -> tuple[int, int, int]:
            row, column = places[read[0]]
            return row, column + read[1], column + read[2]

        labels = [(places[s][0], places[s][1] + t, target, seq) for s, t, target, seq in self.label_positions]
        labels_Nl4 = torch.tensor(labels, dtype=torch.long).reshape(-1, 4)
        batch = {
            "input_ids": input_ids,
            "position_ids": position_ids,
            "segment_ids": segment_ids,
            "image_source": image_source,
            "label_read": labels_Nl4[:, :2].contiguous(),
            "label_target": labels_Nl4[:, 2].contiguous(),
            "label_sequence": labels_Nl4[:, 3].contiguous(),
            "sequence_kind": torch.tensor(self.kinds, dtype=torch.long),
            "sequence_sample": torch.tensor(self.owners, dtype=torch.long),
            "sample_index": torch.tensor([sample.index for sample in self.samples], dtype=torch.long),
            "image_tokens": torch.arange(per_image),
        }
        slots = objective.num_hallucinated
        types = torch.zeros(batch_size, slots, dtype=torch.long)
        for b, sample in enumerate(self.samples):
            for k, kind in enumerate(sample.hallucinated_types):
                types[b, k] = kind
        batch["hallucinated_type"] = types
        if collator.contrastive:
            batch.update(self._contrastive(batch_size, place))
        return batch

    def _contrastive(self, batch_size: int, place) -> dict[str, Tensor]:
        objective = self.objective
        captions, slots = max(1, objective.num_captions), objective.num_hallucinated
        image_read = torch.zeros(batch_size, 3, dtype=torch.long)
        reads = {
            "caption": torch.zeros(batch_size, captions, 3, dtype=torch.long),
            "hallucinated": torch.zeros(batch_size, slots, 3, dtype=torch.long),
        }
        valid = {name: torch.zeros(table.shape[:2], dtype=torch.bool) for name, table in reads.items()}
        caption_keys = torch.zeros(batch_size, captions, dtype=torch.long)
        hallucinated_keys = torch.zeros(batch_size, slots, dtype=torch.long)
        image_valid = torch.zeros(batch_size, dtype=torch.bool)
        for b, read in self.image_reads.items():
            image_read[b] = torch.tensor(place(read))
            image_valid[b] = True
        for (kind, b, slot), read in self.text_reads.items():
            reads[kind][b, slot] = torch.tensor(place(read))
        for b, sample in enumerate(self.samples):
            valid["caption"][b, : len(sample.caption_roots)] = True
            valid["hallucinated"][b, : len(sample.hallucinated_roots)] = True
            caption_keys[b, : len(sample.caption_keys)] = torch.tensor(sample.caption_keys, dtype=torch.long)
            hallucinated_keys[b, : len(sample.hallucinated_keys)] = torch.tensor(
                sample.hallucinated_keys, dtype=torch.long
            )
        table = {
            "image_read": image_read,
            "image_valid": image_valid,
            "caption_valid": valid["caption"],
            "hallucinated_valid": valid["hallucinated"],
            "caption_keys": caption_keys,
            "hallucinated_keys": hallucinated_keys,
            "image_ids": torch.tensor([sample.image_id for sample in self.samples], dtype=torch.long),
        }
        if self.collator.text_states is None:
            table.update(caption_read=reads["caption"], hallucinated_read=reads["hallucinated"])
        return table
