"""From records to the preference pairs of a DPO run, and from pairs to TRL's batches.

A pair is one image with a true caption (chosen) and a hallucinated caption made from it (rejected). The draw is the one
of the training arms (`TrainingDataset`): a function of (seed, epoch, record id), so DPO sees the pairs they see.

Shapes: B pairs, T tokens; batches hold 2B rows, the chosen captions first.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hacl.data.images import load_image, resolve_image
from hacl.data.records import Record
from hacl.data.templates import EncodedSequence, SequenceEncoder
from hacl.training.sampler import plan_epoch


@dataclass(frozen=True)
class Preference:
    """One row of TRL's preference format for vision-language models; type: of the hallucination."""

    record_id: str
    image: str
    prompt: str
    chosen: str
    rejected: str
    type: str


def usable_records(records: Sequence[Record], types: Sequence[str] = ()) -> list[Record]:
    """Records with one image, a caption and a hallucinated caption of these types (all if empty).

    Raises:
        ValueError: there is none.
    """
    found = [
        r for r in records if len(r.images) == 1 and r.captions and any(_wanted(h.type, types) for h in r.hallucinated)
    ]
    if not found:
        raise ValueError(
            f"none of {len(records)} records has one image, a caption and a hallucinated caption"
            + (f" of type {', '.join(types)}" if types else "")
            + "; make them with data_prep/make_hallucinations.py"
        )
    return found


def draw_pair(record: Record, *, prompt: str, types: Sequence[str] = (), seed: int = 0, epoch: int = 0) -> Preference:
    """The pair of a usable record in an epoch.

    A caption is drawn, and then an edit of it; where it has none, another caption that has one takes its place.
    """
    draw = random.Random(f"{seed}/{epoch}/{record.id}")
    first = draw.sample(range(len(record.captions)), 1)[0]
    pool = list(record.hallucinated)
    draw.shuffle(pool)
    pool = [edit for edit in pool if _wanted(edit.type, types)]
    edit = min(pool, key=lambda h: h.of is not None and h.of != first)
    chosen = record.captions[first if edit.of is None else edit.of]
    return Preference(record.id, record.images[0], prompt, chosen, edit.text, edit.type)


def plan_pairs(
    records: Sequence[Record], *, prompt: str, count: int, global_batch: int, types: Sequence[str] = (), seed: int = 0
) -> list[Preference]:
    """The pairs of a whole run in the order they are seen: `count` of them, epoch after epoch, shuffled by seed.

    global_batch: pairs per micro-batch over all ranks; an incomplete last one of an epoch is left out.
    """
    pairs: list[Preference] = []
    epoch = 0
    while len(pairs) < count:
        for batch in plan_epoch(len(records), global_batch, seed=seed, epoch=epoch):
            pairs += [draw_pair(records[i], prompt=prompt, types=types, seed=seed, epoch=epoch) for i in batch]
        epoch += 1
    return pairs[:count]


class PreferenceCollator:
    """Pairs as the tensors TRL's DPOTrainer takes.

    Sequences are those of `SequenceEncoder`, which generation and likelihood also use: TRL's own collator tokenises
    prompt and caption apart (which changes tokens at the seam where a tokenizer marks word starts) and writes no BOS
    where the chat template has none. dtype: of the pixels.

    Raises:
        ValueError: an image that cannot be read, or a pair cut to nothing by max_length; names the record.
    """

    def __init__(self, encoder: SequenceEncoder, image_root: Path | str, dtype: torch.dtype = torch.float32):
        self.encoder, self.image_root, self.dtype = encoder, Path(image_root), dtype
        tokenizer = encoder.tokenizer
        self.pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    def __call__(self, rows: Sequence[dict]) -> dict[str, Tensor]:
        """input_ids, attention_mask and completion_mask, each (2B, T), padded on the right; pixel_values (2B, ...)."""
        sequences = [self._sequence(row, "chosen") for row in rows] + [self._sequence(row, "rejected") for row in rows]
        longest = max(map(len, sequences))
        pixels = torch.stack([self._pixels(row) for row in rows]).to(self.dtype)
        return {
            "input_ids": _padded([s.ids for s in sequences], longest, self.pad),
            "attention_mask": _padded([[1] * len(s) for s in sequences], longest, 0),
            "completion_mask": _padded([list(map(int, s.is_label)) for s in sequences], longest, 0),
            "pixel_values": torch.cat([pixels, pixels]),
        }

    def _sequence(self, row: dict, which: str) -> EncodedSequence:
        encoder = copy.copy(self.encoder)
        encoder.prompt = row["prompt"]
        sequence = encoder.caption_sequence(row[which])
        if not any(sequence.is_label):
            raise ValueError(f"record {row['record_id']!r}: max_length cuts off the whole {which} caption; raise it")
        return sequence

    def _pixels(self, row: dict) -> Tensor:
        try:
            image = load_image(resolve_image(self.image_root, row["image"]))
        except (ValueError, OSError) as error:
            raise ValueError(f"record {row['record_id']!r}: {error}") from error
        return self.encoder.images.tensors(image)["pixel_values"][0]


def _wanted(kind: str, types: Sequence[str]) -> bool:
    return not types or kind in types


def _padded(rows: Sequence[Sequence[int]], longest: int, value: int) -> Tensor:
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])
