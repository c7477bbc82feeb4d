"""From a record to one training sample: which captions are drawn, and the token sequences they become.

Drawing is a pure function of (seed, epoch, record id), so it does not depend on workers, ranks or resuming.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL.Image import Image
from torch.utils.data import Dataset

from hacl.data.image_formats import Pixels
from hacl.data.images import decode_image, image_size, load_image, resolve_image
from hacl.data.records import HALLUCINATION_TYPES, HallucinatedCaption, Record
from hacl.data.templates import IMAGE_MARK, EncodedSequence, SequenceEncoder


@dataclass
class Sample:
    """One record as token sequences. C captions and K hallucinated captions are roots (lists of token ids).

    pixels: for each image the tensors that the stock processor makes of it; empty where they are not loaded.
    """

    index: int
    record_id: str
    image_paths: list[str]
    pixels: list[Pixels]
    generation: EncodedSequence
    hallucinated_generations: list[EncodedSequence] = field(default_factory=list)
    image_root: EncodedSequence | None = None
    contrastive_image: bool = False
    caption_roots: list[list[int]] = field(default_factory=list)
    hallucinated_roots: list[list[int]] = field(default_factory=list)
    hallucinated_types: list[int] = field(default_factory=list)
    image_id: int = 0
    caption_keys: list[int] = field(default_factory=list)
    hallucinated_keys: list[int] = field(default_factory=list)
    skipped: tuple[str, str] | None = None  # (reason, message) of the sample that this one stands in for
    unlabelled: str = ""  # why no token is learnt from, with the record's id; "" where some are
    image_moved: bool = False  # to the front of the first turn

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences of the sample: what length grouping sorts by."""
        roots = [self.generation, *self.hallucinated_generations, *self.caption_roots, *self.hallucinated_roots]
        return sum(len(root) for root in roots)


def stable_key(text: str) -> int:
    """A 63-bit integer that names a text in every process: equal texts, equal keys."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class TrainingDataset(Dataset):
    """Map-style dataset of `Sample`s.

    records: parsed records; encoder: token sequences; image_root: folder that image paths are relative to; objective:
    an ObjectiveConfig (how many captions, which form, which terms are on); seed: of the caption draw; load_pixels:
    false when features of the images are cached.
    """

    def __init__(
        self,
        records: Sequence[Record],
        encoder: SequenceEncoder,
        *,
        image_root: Path | str | None,
        objective,
        seed: int,
        load_pixels: bool = True,
    ):
        self.records = records
        self.encoder = encoder
        self.image_root = None if image_root is None else Path(image_root)
        self.objective = objective
        self.seed = seed
        self.load_pixels = load_pixels
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.records)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> Sample:
        return self.sample(index, self.records[index])

    def sample(self, index: int, record: Record, held: Mapping[str, bytes] | None = None) -> Sample:
        """The sample of any record. held: image path -> content, for images that are not on disk.

        Raises ValueError, FileNotFoundError and (the machine fails, not the data) OSError naming record and file.
        """
        try:
            return self._sample(index, record, held or {})
        except FileNotFoundError as error:
            raise FileNotFoundError(f"record {record.id!r}: {error}") from error
        except OSError as error:
            raise OSError(f"record {record.id!r}: {error}") from error
        except ValueError as error:
            raise ValueError(f"record {record.id!r}: {error}") from error

    def texts(self) -> list[str]:
        """Every caption and hallucinated caption a sample may draw: what a cache of text states must hold."""
        found: dict[str, None] = {}
        for record in self.records:
            if self._is_contrastive(record):
                found.update(dict.fromkeys(record.captions))
                if self.objective.num_hallucinated:
                    found.update(dict.fromkeys(h.text for h in record.hallucinated))
        return list(found)

    def _sample(self, index: int, record: Record, held: Mapping[str, bytes]) -> Sample:
        draw = random.Random(f"{self.seed}/{self.epoch}/{record.id}")
        captions = self._draw_captions(record, draw)
        hallucinated = self._draw_hallucinated(record, captions, draw)
        given = record
        if self.encoder.template == "chat":
            record = self._image_first(record)
        opened = [self._opened(path, held) for path in record.images] if self.load_pixels else []
        pixels = [self.encoder.images.tensors(image, len(opened), self.encoder.prompt) for image in opened]
        images = self._written(record, held, opened)
        generation = self._generation(record, captions, images)
        sample = Sample(
            index=index,
            record_id=record.id,
            image_paths=list(record.images),
            pixels=pixels,
            generation=generation,
            image_id=stable_key(record.image_id),
            unlabelled=self._unlabelled(record, generation),
            image_moved=record is not given,
        )
        if len(generation.image_spans) != len(record.images):
            raise ValueError(
                f"{len(record.images)} image(s) but {len(generation.image_spans)} in the text; write one {IMAGE_MARK} "
                "mark per image in the conversation (the plain template takes one image)"
            )
        if self.objective.likelihood_margin_weight and record.images and self._answers_with_caption(record):
            sample.hallucinated_generations = [
                self.encoder.caption_sequence(h.text, image=images[0]) for h in hallucinated
            ]
            sample.hallucinated_types = [HALLUCINATION_TYPES.index(h.type) for h in hallucinated]
        if self.objective.contrastive_weight and self._is_contrastive(record):
            strict = self.objective.form == "strict"
            if not strict:
                self._check_image_is_first(generation)
            sample.contrastive_image = True
            sample.image_root = self.encoder.strict_image_root(images[0]) if strict else None
            sample.caption_roots = [self.encoder.root(text) for text in captions]
            sample.caption_keys = [stable_key(text) for text in captions]
            sample.hallucinated_roots = [self.encoder.root(h.text) for h in hallucinated]
            sample.hallucinated_keys = [stable_key(h.text) for h in hallucinated]
            sample.hallucinated_types = [HALLUCINATION_TYPES.index(h.type) for h in hallucinated]
        return sample

    def _answers_with_caption(self, record: Record) -> bool:
        """Whether the generation sequence is a caption, so that a hallucinated caption can stand in its place."""
        return bool(record.captions) and (self.encoder.template == "plain" or not record.conversation)

    def _is_contrastive(self, record: Record) -> bool:
        return len(record.images) == 1 and bool(record.captions)

    def _check_image_is_first(self, generation: EncodedSequence) -> None:
        """In-place reading is exact only when nothing specific to the sample precedes the image."""
        start, _ = generation.image_spans[0]
        if generation.ids[:start] != self.encoder.image_prefix:
            raise ValueError(
                f"text of the conversation stands before the image, whose state is read in place; begin the first turn "
                f"with {IMAGE_MARK}, set objective.form=strict, or remove the captions to learn from the answers alone"
            )

    def _unlabelled(self, record: Record, generation: EncodedSequence) -> str:
        if not self.objective.lm_weight or any(generation.is_label):
            return ""
        why = "there is no answer"
        if generation.cut_labels:
            why = f"data.max_length={self.encoder.max_length} cuts off the whole answer"
        return f"record {record.id!r}: {why}"

    def _draw_captions(self, record: Record, draw: random.Random) -> list[str]:
        wanted = max(1, self.objective.num_captions)
        indices = draw.sample(range(len(record.captions)), min(wanted, len(record.captions)))
        return [record.captions[i] for i in indices]

    def _draw_hallucinated(self, record: Record, captions: list[str], draw: random.Random) -> list[HallucinatedCaption]:
        """Edits of the first drawn caption come first, then edits of the record's other captions."""
        pool = list(record.hallucinated)
        draw.shuffle(pool)
        first = record.captions.index(captions[0]) if captions else None
        pool.sort(key=lambda h: h.of is not None and h.of != first)
        return pool[: self.objective.num_hallucinated]

    def _generation(self, record: Record, captions: list[str], images: list[list[int]]) -> EncodedSequence:
        needs_answer = bool(self.objective.lm_weight or self.objective.likelihood_margin_weight)
        if record.conversation and self.encoder.template == "chat":
            turns = [(turn.role, turn.text) for turn in record.conversation]
            return self.encoder.conversation_sequence(turns, images)
        if not captions:
            captions = [turn.text for turn in record.conversation if turn.role == "assistant"][:1]
        if not captions:
            raise ValueError("neither a caption nor an assistant turn to learn from")
        image = images[0] if images else None
        return self.encoder.caption_sequence(captions[0], with_image=bool(images), answer=needs_answer, image=image)

    def _image_first(self, record: Record) -> Record:
        """Move the one image mark of a captioned record to the front of the first user turn.

        Also where no image state is read, so that a run without the contrastive loss sees the same sequences.
        """
        turns = record.conversation
        if not self._is_contrastive(record) or not turns or turns[0].text.count(IMAGE_MARK) != 1:
            return record
        if turns[0].text.lstrip().startswith(IMAGE_MARK):
            return record
        text = turns[0].text.replace(IMAGE_MARK, "").strip()
        return replace(record, conversation=(replace(turns[0], text=f"{IMAGE_MARK}\n{text}"), *turns[1:]))

    def _written(self, record: Record, held: Mapping[str, bytes], opened: list[Image]) -> list[list[int]]:
        """Tokens of each image; its size is read where they depend on it, from the header where nothing is loaded."""
        texts = self.encoder.images
        if texts.fixed is not None:
            return [texts.fixed] * len(record.images)
        if opened:
            return [texts.ids(image.size, len(opened)) for image in opened]
        sizes = [self._opened(p, held).size if p in held else image_size(self._file(p)) for p in record.images]
        return [texts.ids(size, len(sizes)) for size in sizes]

    def _opened(self, path: str, held: Mapping[str, bytes]) -> Image:
        return decode_image(held[path], path) if path in held else load_image(self._file(path))

    def _file(self, path: str) -> Path:
        if self.image_root is None:
            raise ValueError("the record names an image but data.image_root is not set")
        return resolve_image(self.image_root, path)
