"""How many tokens a record becomes in training, whether it has a label, and what a limit would cut off."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hacl.config import Config
from hacl.data.records import Record

_UNLIMITED = 10**9


@dataclass(frozen=True)
class Measured:
    """generation: tokens of the generation sequence, uncut; roots: of each caption and hallucinated caption, uncut,
    with BOS and EOS; labels: tokens that would be learnt within data.max_length; lengths: all sequences of the training
    sample as cut; image_moved: to the front of its conversation; problem: why training would refuse the record, ""
    otherwise."""

    generation: int = 0
    roots: list[int] = field(default_factory=list)
    labels: int = 0
    lengths: list[int] = field(default_factory=list)
    image_moved: bool = False
    problem: str = ""


class Measurer:
    """Measures records as a run with this configuration would see them in its first epoch, without images' pixels.

    image_root: folder of the images; read where a family writes as many tokens for an image as its shape asks for.
    """

    def __init__(self, config: Config, image_root: Path | str | None = None):
        from transformers import AutoProcessor

        from hacl.data.dataset import TrainingDataset
        from hacl.data.templates import SequenceEncoder

        processor = AutoProcessor.from_pretrained(config.model.path, revision=config.model.revision)
        self.data = config.data
        encoder = SequenceEncoder(
            processor,
            template=config.data.template,
            prompt=config.data.prompt,
            max_length=_UNLIMITED,
            max_caption_length=_UNLIMITED,
        )
        self._dataset = TrainingDataset(
            [], encoder, image_root=image_root, objective=config.objective, seed=config.data.seed, load_pixels=False
        )

    def __call__(self, record: Record) -> Measured:
        self._dataset.records = [record]
        try:
            sample = self._dataset[0]
        except (ValueError, FileNotFoundError) as error:
            return Measured(problem=str(error).removeprefix(f"record {record.id!r}: "))
        longest, cut = self.data.max_length, self.data.max_caption_length
        generations = [sample.generation, *sample.hallucinated_generations]
        roots = [len(root) for root in (*sample.caption_roots, *sample.hallucinated_roots)]
        image_end = max((end for sequence in generations for _, end in sequence.image_spans), default=0)
        if image_end > longest:
            return Measured(problem=f"data.max_length={longest} would cut an image, which ends at token {image_end}")
        return Measured(
            len(sample.generation),
            roots,
            sum(sample.generation.is_label[:longest]),
            [min(len(s), longest) for s in generations] + [min(n, cut) for n in roots],
            sample.image_moved,
        )
