"""What is verified before any weight is loaded: records against the objective, images, and the samples they become.

Bounds keep this to minutes on large sets: images are decoded where there are at most `DECODED` of them, else their
headers are read; samples are built from all records where there are at most `BUILT`, else from as many spread evenly.
Of a streamed source the first `STREAMED` records are looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import itemgetter
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from hacl.config import DataConfig, ObjectiveConfig
from hacl.data.dataset import TrainingDataset
from hacl.data.image_formats import BLANK, PROBES
from hacl.data.images import check_header, load_image, resolve_image
from hacl.data.records import Record
from hacl.data.templates import SequenceEncoder
from hacl.models.adapters import check_image_count, find_adapter
from hacl.training import runtime

DECODED = 5_000
BUILT = 20_000
STREAMED = 2_000
LARGE = (640, 480)  # (width, height) that several tiles are cut from


def check_records(records: Sequence[Record], objective: ObjectiveConfig, where: str, data: DataConfig) -> None:
    """Refuse records that the objective cannot use; names the first few.

    A captioned image must have a hallucinated caption when the objective uses them, apart from the share
    `data.allow_missing_hallucinated`; those are counted and train without one.
    """
    if not records:
        raise ValueError(f"{where}: no records")
    captioned = [record for record in records if record.images and record.captions]
    if objective.contrastive_weight > 0 and not captioned:
        raise ValueError(f"{where}: no record has an image and a caption; set objective.contrastive_weight=0")
    uses_terms = objective.contrastive_weight > 0 or objective.likelihood_margin_weight > 0
    if objective.num_hallucinated == 0 or not uses_terms:
        return
    lacking = [record.id for record in captioned if not record.hallucinated]
    if len(lacking) > data.allow_missing_hallucinated * len(captioned):
        raise ValueError(
            f"{where}: {len(lacking)} of {len(captioned)} captioned record(s) have no hallucinated caption, first "
            f"{lacking[:3]}; make them with data_prep/make_hallucinations.py, permit a share with "
            "data.allow_missing_hallucinated, or set objective.num_hallucinated=0"
        )
    if lacking:
        say(f"{where}: {len(lacking)} of {len(captioned)} captioned record(s) train without a hallucinated caption")


def check_images(
    records: Sequence[Record], root: Path | None, *, decode: bool = True, max_bad_fraction: float = 0.0
) -> None:
    """Refuse records whose image is missing, outside the image folder or damaged; names record and file.

    decode: read pixels too, as long as there are at most `DECODED` images. Of several ranks each reads its share; all
    come to the verdict, and raise the error, of one process.
    max_bad_fraction: share of the images that may be bad; these are counted and named.
    """
    owners: dict[str, str] = {}
    for record in records:
        for image in record.images:
            owners.setdefault(image, record.id)
    read = load_image if decode and len(owners) <= DECODED else check_header
    images = list(owners.items())
    found: list[tuple[int, Exception]] = []
    for place in range(runtime.rank(), len(images), runtime.world_size()):
        image, owner = images[place]
        try:
            read(resolve_image(root, image))
        except (ValueError, OSError) as error:
            found.append((place, _named(owner, error)))
            if _is_of_machine(error) or len(found) > max_bad_fraction * len(images):
                break
    bad: list[Exception] = []
    for _, error in sorted(chain(*runtime.all_ranks(found)), key=itemgetter(0)):
        if _is_of_machine(error):
            raise error
        bad.append(error)
        refuse_above(bad, max_bad_fraction, len(images), "image(s)")
    if bad:
        say(f"{len(bad)} of {len(images)} image(s) cannot be read and will be replaced, first: {bad[0]}")


def _is_of_machine(error: Exception) -> bool:
    """Whether an error tells of this machine (a server that does not answer, no permission) and not of the data."""
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError)


def _named(owner: str, error: Exception) -> Exception:
    kind = next(kind for kind in (FileNotFoundError, ValueError, OSError) if isinstance(error, kind))
    named = kind(f"record {owner!r}: {error}")
    named.__cause__ = error
    return named


def refuse_above(bad: Sequence[Exception], allowed: float, count: int, what: str) -> None:
    """Raise the first error as it is where none is allowed, else where more than this share of `count` is bad."""
    if not bad or len(bad) <= allowed * count:
        return
    if not allowed:
        raise bad[0]
    raise ValueError(
        f"more than data.max_bad_fraction={allowed:g} of {count} {what} cannot be read, first: {bad[0]}; list all with "
        "data_prep/validate.py and mend them, or raise that share"
    ) from bad[0]


def check_samples(
    dataset: TrainingDataset, where: str, *, max_bad_fraction: float = 0.0, max_unlabelled_fraction: float = 0.0
) -> None:
    """Build samples without their pixels: image marks, template and data.max_length raise here, naming the record.

    max_bad_fraction: share of the samples that may raise; max_unlabelled_fraction: share that may have no token to
    learn. Both are counted and named, and so are samples whose image was moved to the front.
    """
    count = min(len(dataset), BUILT)
    unlabelled, moved, bad = [], [], []
    for index in (len(dataset) * i // count for i in range(count)):
        try:
            sample = dataset[index]
        except ValueError as error:
            bad.append(error)
            refuse_above(bad, max_bad_fraction, count, "sample(s)")
            continue
        if sample.unlabelled:
            unlabelled.append(sample.unlabelled)
        if sample.image_moved:
            moved.append(sample.record_id)
    if bad:
        say(f"{where}: {len(bad)} of {count} record(s) yield no sample and will be replaced, first: {bad[0]}")
    if moved:
        say(f"{where}: the image of {len(moved)} of {count} record(s) is moved to the front, first {moved[0]!r}")
    if unlabelled:
        found = f"{where}: {len(unlabelled)} of {count} record(s) yield no token to learn, first {unlabelled[0]}"
        if len(unlabelled) > max_unlabelled_fraction * count:
            raise ValueError(
                f"{found}; more than data.max_unlabelled_fraction={max_unlabelled_fraction:g}: raise data.max_length, "
                "see whether data.template fits the records (data_prep/validate.py shows one), or raise that share"
            )
        say(found)


def check_image_tokens(backbone: nn.Module, encoder: SequenceEncoder) -> None:
    """Refuse a processor that makes other tensors of an image than the model takes, or whose image-token count differs
    from what tower and projector produce; where it depends on the shape, of several shapes."""
    adapter = find_adapter(backbone)
    names = encoder.images.format.names
    if set(names) != set(adapter.inputs):
        raise ValueError(
            f"{type(encoder.processor).__name__} makes {', '.join(names)} of an image, and a model of type "
            f"{adapter.model.config.model_type} takes {', '.join(adapter.inputs)}; use the processor of the checkpoint"
        )
    device = next(adapter.vision_tower.parameters()).device
    for size in (BLANK, *PROBES, LARGE) if encoder.images.fixed is None else (BLANK,):
        made = encoder.images.tensors(Image.new("RGB", size), prompt="describe")
        with torch.no_grad():
            produced = len(adapter.image_embeddings({name: tensor.to(device) for name, tensor in made.items()}))
        written = encoder.images.ids(size).count(encoder.image_token_id)
        check_image_count(written=written, produced=produced)


def say(message: str) -> None:
    if runtime.rank() == 0:
        print(message, flush=True)
