"""Arrange the sequences of a batch in rows: which of them form a tree, where each token lies, what is read from where.

Generation sequences and contrastive roots are roots of their own, apart from two options of the objective. With
`form=eos_branch` an EOS hangs on the image of a generation sequence: it sees prefix, image and itself, and nothing
later sees it. With `share_prefixes` the texts of a sample store their common beginning once, and so do its generation
sequences.

Shapes: B samples, C captions and K hallucinated captions per sample, R packed rows, T tokens per row, F image tokens,
Nl label tokens, S sequences with labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hacl.config_rules import makes_trees
from hacl.data.dataset import Sample
from hacl.data.image_formats import BLANK
from hacl.data.packing import Tree, merge_prefixes, pack_tightly
from hacl.data.templates import EncodedSequence, SequenceEncoder

GENERATION, HALLUCINATED_GENERATION = 0, 1

Read = tuple[int, int, int]


class Layout:
    """Sequences of a batch in the order they were added, and what is read from each.

    has_text: whether captions and hallucinated captions are sequences here (false where their states are constants).
    """

    def __init__(self, encoder: SequenceEncoder, objective, *, has_text: bool):
        self.encoder = encoder
        self.objective = objective
        self.has_text = has_text
        self.sequences: list[list[int]] = []  # image tokens as negative numbers, apart for every image and place
        self.islands: list[list[int]] = []  # of each sequence, see `ImageText.islands`
        self.trees: list[list[int]] = []  # sequences of each tree
        self.home: dict[int, int] = {}  # the tree of a sequence
        self.label_positions: list[tuple[int, int, int, int]] = []  # sequence, token, target, labelled sequence
        self.kinds: list[int] = []
        self.owners: list[int] = []
        self.image_reads: dict[int, Read] = {}
        self.text_reads: dict[tuple[str, int, int], Read] = {}
        self.samples: list[Sample] = []
        self.image_places: list[range] = []  # where the features of each image lie among the F of the batch
        self.num_features = 0
        self.unshared_tokens = 0

    def add(self, b: int, sample: Sample) -> None:
        self.samples.append(sample)
        images = [self._place_image(sample.generation, span) for span in sample.generation.image_spans]
        generations = [self._labelled(sample.generation, images, GENERATION, b)]
        for sequence in sample.hallucinated_generations:
            generations.append(self._labelled(sequence, images, HALLUCINATED_GENERATION, b))
        self._plant(generations)
        if sample.contrastive_image:
            self._read_image(b, sample, images, generations[0])
        if self.has_text:
            texts = []
            for kind, roots in (("caption", sample.caption_roots), ("hallucinated", sample.hallucinated_roots)):
                for slot, ids in enumerate(roots):
                    texts.append(self._sequence(EncodedSequence(ids, []), []))
                    span = self.encoder.root_span(ids, self.objective.text_pool)
                    self.text_reads[kind, b, slot] = (texts[-1], *span)
            self._plant(texts)

    def _place_image(self, sequence: EncodedSequence, span: tuple[int, int]) -> range:
        count = sequence.ids[slice(*span)].count(self.encoder.image_token_id)
        self.image_places.append(range(self.num_features, self.num_features + count))
        self.num_features += count
        return self.image_places[-1]

    def _plant(self, sequences: list[int]) -> None:
        self.unshared_tokens += sum(len(self.sequences[index]) for index in sequences)
        for members in [sequences] if self.objective.share_prefixes and sequences else [[i] for i in sequences]:
            self.home.update(dict.fromkeys(members, len(self.trees)))
            self.trees.append(members)

    def _read_image(self, b: int, sample: Sample, images: list[range], generation: int) -> None:
        is_last = self.objective.image_pool == "last"
        if self.objective.form == "strict":
            index = self._sequence(sample.image_root, images)
            self._plant([index])
            end = len(sample.image_root)
            self.image_reads[b] = (index, end - 1, end) if is_last else (index, 0, end - 1)
            return
        start, end = sample.generation.image_spans[0]
        if self.objective.form == "eos_branch":
            index = self._sequence(sample.generation.cut(end, *self.encoder.eos), images)
            self.home[index] = self.home[generation]
            self.trees[self.home[generation]].append(index)
            self.unshared_tokens += 1
            self.image_reads[b] = (index, end, end + 1)
        else:
            self.image_reads[b] = (generation, end - 1 if is_last else start, end)

    def _sequence(self, sequence: EncodedSequence, images: list[range]) -> int:
        ids, token = list(sequence.ids), self.encoder.image_token_id
        for (start, end), places in zip(sequence.image_spans, images, strict=False):
            if end - start == len(places):  # nothing but image tokens
                ids[start:end] = [-1 - place for place in places]
                continue
            following = iter(places)
            ids[start:end] = [-1 - next(following) if each == token else each for each in ids[start:end]]
        self.sequences.append(ids)
        self.islands.append(sequence.islands)
        return len(self.sequences) - 1

    def _labelled(self, sequence: EncodedSequence, images: list[range], kind: int, b: int) -> int:
        index = self._sequence(sequence, images)
        if self.objective.lm_weight or kind == HALLUCINATED_GENERATION or self.objective.likelihood_margin_weight:
            labelled = len(self.kinds)
            self.label_positions += [(index, t - 1, sequence.ids[t], labelled) for t in sequence.predicted]
        self.kinds.append(kind)
        self.owners.append(b)
        return index

    def build(self, batch_size: int, *, pad_id: int, share_rows: bool = True, multiple: int = 1) -> dict[str, Tensor]:
        """The batch but for images and cached text; see `PackedCollator.__call__`."""
        objective = self.objective
        trees = [merge_prefixes([self.sequences[index] for index in tree]) for tree in self.trees]
        lengths = [len(tree) for tree in trees]
        corners, rows, tokens = pack_tightly(lengths, share_rows=share_rows, multiple=multiple)
        batch = self._rows(trees, corners, (rows, tokens), pad_id, multiple)
        paths = {
            index: path
            for tree, members in zip(trees, self.trees, strict=True)
            for index, path in zip(members, tree.columns, strict=True)
        }

        def columns(read: Read) -> tuple[int, list[int]]:
            row, corner = corners[self.home[read[0]]]
            return row, [corner + column for column in paths[read[0]][read[1] : read[2]]]

        def place(read: Read) -> Read:
            row, found = columns(read)
            return row, found[0], found[-1] + 1

        labels = [(*place((s, t, t + 1))[:2], target, seq) for s, t, target, seq in self.label_positions]
        labels_Nl4 = torch.tensor(labels, dtype=torch.long).reshape(-1, 4)
        batch |= {
            "label_read": labels_Nl4[:, :2].contiguous(),
            "label_target": labels_Nl4[:, 2].contiguous(),
            "label_sequence": labels_Nl4[:, 3].contiguous(),
            "sequence_kind": torch.tensor(self.kinds, dtype=torch.long),
            "sequence_sample": torch.tensor(self.owners, dtype=torch.long),
            "sample_index": torch.tensor([sample.index for sample in self.samples], dtype=torch.long),
            "image_tokens": self._image_tokens(),
        }
        if objective.share_prefixes:
            batch["shared_tokens"] = torch.tensor(self.unshared_tokens - sum(len(tree) for tree in trees))
        types = torch.zeros(batch_size, objective.num_hallucinated, dtype=torch.long)
        for b, sample in enumerate(self.samples):
            for k, kind in enumerate(sample.hallucinated_types):
                types[b, k] = kind
        batch["hallucinated_type"] = types
        if objective.contrastive_weight:
            batch |= self._contrastive(batch_size, place)
            if self.has_text and objective.share_prefixes and objective.text_pool == "mean":
                batch |= self._places(batch_size, columns)
        return batch

    def _image_tokens(self) -> Tensor:
        """(F,) the image of each feature; of the blank image where the batch has none."""
        counts = [len(places) for places in self.image_places]
        if not counts:
            counts = [self.encoder.images.ids(BLANK).count(self.encoder.image_token_id)]
        return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))

    def _rows(
        self, trees: list[Tree], corners: list[tuple[int, int]], shape: tuple[int, int], pad_id: int, multiple: int
    ) -> dict[str, Tensor]:
        """Tokens, positions, trees and image sources of every row.

        Padding has no position beyond those of sequences (rounded up to `multiple`), which some decoders would heed.
        """
        rows, tokens = shape
        deepest = max((max(tree.depth) for tree in trees), default=0)
        input_ids = torch.full(shape, pad_id)
        position_ids = torch.arange(tokens).clamp(max=deepest // multiple * multiple + multiple - 1).repeat(rows, 1)
        segment_ids = torch.zeros(shape, dtype=torch.long)
        image_source = torch.full(shape, -1)
        subtree_end = torch.arange(1, tokens + 1).repeat(rows, 1)
        islands = torch.full(shape, -1)
        next_segment = [0] * rows
        for tree, members, (row, corner) in zip(trees, self.trees, corners, strict=True):
            span = slice(corner, corner + len(tree))
            for island in _islands_of(tree, [self.islands[index] for index in members]):
                islands[row, [corner + column for column in island]] = corner + island[0]
            next_segment[row] += 1
            content = torch.tensor(tree.tokens)
            input_ids[row, span] = torch.where(content < 0, self.encoder.image_token_id, content)
            image_source[row, span] = torch.where(content < 0, -1 - content, -1)
            position_ids[row, span] = torch.tensor(tree.depth)
            segment_ids[row, span] = next_segment[row]
            subtree_end[row, span] = corner + torch.tensor(tree.end)
        batch = {
            "input_ids": input_ids,
            "position_ids": position_ids,
            "segment_ids": segment_ids,
            "image_source": image_source,
        }
        if makes_trees(self.objective):
            batch["subtree_end"] = subtree_end
        if any(self.islands):
            batch["islands"] = islands
        return batch

    def _contrastive(self, batch_size: int, place: Callable[[Read], Read]) -> dict[str, Tensor]:
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
            caption_keys[b, : len(sample.caption_keys)] = _row(sample.caption_keys)
            hallucinated_keys[b, : len(sample.hallucinated_keys)] = _row(sample.hallucinated_keys)
        table = {
            "image_read": image_read,
            "image_valid": image_valid,
            "caption_valid": valid["caption"],
            "hallucinated_valid": valid["hallucinated"],
            "caption_keys": caption_keys,
            "hallucinated_keys": hallucinated_keys,
            "image_ids": torch.tensor([sample.image_id for sample in self.samples], dtype=torch.long),
        }
        if self.has_text:
            table.update(caption_read=reads["caption"], hallucinated_read=reads["hallucinated"])
        return table

    def _places(self, batch_size: int, columns: Callable[[Read], tuple[int, list[int]]]) -> dict[str, Tensor]:
        """Columns of every text whose mean is read: in a tree they need not be neighbours."""
        found = {key: columns(read)[1] for key, read in self.text_reads.items()}
        longest = max(map(len, found.values()), default=1)
        slots = {"caption": max(1, self.objective.num_captions), "hallucinated": self.objective.num_hallucinated}
        tables = {name: torch.full((batch_size, count, longest), -1) for name, count in slots.items()}
        for (kind, b, slot), own in found.items():
            tables[kind][b, slot, : len(own)] = torch.tensor(own)
        return {f"{name}_places": table for name, table in tables.items()}


def _islands_of(tree: Tree, members: Sequence[list[int]]) -> set[tuple[int, ...]]:
    """Columns of each island of a tree. members: the islands of its sequences.

    Raises ValueError where a token that sequences share belongs to different islands in them.
    """
    held: dict[int, tuple[int, ...]] = {}
    for path, numbers in zip(tree.columns, members, strict=True):
        found: dict[int, list[int]] = {}
        for column, number in zip(path, numbers or [-1] * len(path), strict=True):
            found.setdefault(number, []).append(column)
        own = {column: tuple(island) for number, island in found.items() for column in island if number >= 0}
        for column in path:
            if held.setdefault(column, own.get(column, ())) != own.get(column, ()):
                raise ValueError(
                    "a token of a beginning that sequences share sees later tokens that only some of them have; set "
                    "objective.share_prefixes=false and objective.form=strict"
                )
    return {island for island in held.values() if island}


def _row(keys: Sequence[int]) -> Tensor:
    return torch.tensor(keys, dtype=torch.long)
