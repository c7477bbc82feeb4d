"""One training sample as text for people: what the model reads, which tokens it learns, how these were found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

from hacl.config import Config
from hacl.data.dataset import Sample, TrainingDataset
from hacl.data.records import RecordError, iter_raw, parse_record
from hacl.data.templates import EncodedSequence, SequenceEncoder

OPEN, CLOSE = "[[", "]]"
COLOUR, PLAIN = "\033[32m", "\033[0m"
TRIED = 100  # first records of a file that may give no sample
WAYS = {
    "blocks": "labels from the chat template's generation blocks",
    "prefixes": "labels from what each answer adds to the chat template's rendering, which marks none",
    "plain": "labels are the caption and EOS",
}


@dataclass(frozen=True)
class Example:
    """text: the generation sequence decoded, labels in `OPEN` and `CLOSE`, image tokens as `<name>x576`; roots: the
    contrastive texts with their special tokens."""

    record_id: str
    family: str
    way: str
    tokens: int
    labels: int
    images: tuple[int, ...]
    image_moved: bool
    text: str
    roots: tuple[str, ...]

    def lines(self, colour: bool = False) -> Iterator[str]:
        """For a terminal; colour: labels are also green."""
        images = "".join(f", an image of {count}" for count in self.images)
        yield f"record {self.record_id!r} as {self.family} reads it: {self.tokens} tokens{images}, {self.labels} labels"
        yield f"  {self.way}" + ("; its image was moved to the front" if self.image_moved else "")
        text = self.text
        if colour:
            text = text.replace(OPEN, f"{COLOUR}{OPEN}").replace(CLOSE, f"{CLOSE}{PLAIN}")
        yield from (f"  | {line}" for line in text.split("\n"))
        for root in self.roots:
            yield f"  contrastive: {root}"


def first_example(path: Path, config: Config, image_root: Path | str | None, record_id: str | None = None) -> Example:
    """The example of the named record, or of the first that gives a sample.

    image_root: folder of the images, whose sizes some families need.

    Raises:
        ValueError: none of the first `TRIED` records gives a sample, or there is no record of that id.
    """
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(config.model.path, revision=config.model.revision)
    data = config.data
    encoder = SequenceEncoder(
        processor,
        template=data.template,
        prompt=data.prompt,
        max_length=data.max_length,
        max_caption_length=data.max_caption_length,
    )
    dataset = TrainingDataset(
        [], encoder, image_root=image_root, objective=config.objective, seed=data.seed, load_pixels=False
    )
    problem = f"no record {record_id!r}" if record_id else "no records"
    for where, raw in islice(iter_raw(path, lambda error: None), None if record_id else TRIED):
        try:
            record = parse_record(raw, where=where)
            if record_id in (None, record.id):
                return describe(dataset.sample(0, record), encoder)
        except (RecordError, ValueError, FileNotFoundError) as error:
            problem = str(error)
    raise ValueError(f"{path}: no example to show: {problem}")


def describe(sample: Sample, encoder: SequenceEncoder) -> Example:
    """The example of one sample."""
    sequence = sample.generation
    roots = [*sample.caption_roots, *sample.hallucinated_roots]
    return Example(
        record_id=sample.record_id,
        family=type(encoder.processor).__name__.removesuffix("Processor"),
        way=WAYS[encoder.chat.way if encoder.chat else "plain"],
        tokens=len(sequence),
        labels=sum(sequence.is_label),
        images=tuple(sequence.ids[slice(*span)].count(encoder.image_token_id) for span in sequence.image_spans),
        image_moved=sample.image_moved,
        text=marked_text(sequence, encoder),
        roots=tuple(encoder.tokenizer.decode(root, clean_up_tokenization_spaces=False) for root in roots),
    )


def marked_text(sequence: EncodedSequence, encoder: SequenceEncoder) -> str:
    """The sequence decoded, with labels in `OPEN` and `CLOSE`, and each run of image tokens as one name and a count."""
    written, pieces, shown = [], [], ""

    def kind(place: int) -> str:
        return "image" if sequence.ids[place] == encoder.image_token_id else "label" if sequence.is_label[place] else ""

    for which, places in groupby(range(len(sequence)), kind):
        ids = [sequence.ids[place] for place in places]
        if which == "image":
            name = encoder.tokenizer.convert_ids_to_tokens(encoder.image_token_id)
            pieces.append(f"{name}x{len(ids)}")
            written, shown = [], ""
            continue
        # Decoded with what is before it, because some tokenizers drop the blank before the first word of a text.
        written += ids
        text = encoder.tokenizer.decode(written, clean_up_tokenization_spaces=False)
        piece, shown = text[len(shown) :], text
        pieces.append(f"{OPEN}{piece}{CLOSE}" if which == "label" else piece)
    return "".join(pieces)
