"""The training records of a run as a stream (`data.stream`): which source, and which of its batches this rank reads."""

from __future__ import annotations

from collections.abc import Sized
from itertools import islice
from typing import Any

from hacl.config import Config, ConfigError
from hacl.data.dataset import TrainingDataset
from hacl.data.images import decode_image
from hacl.data.records import Record
from hacl.data.sources import Source
from hacl.data.stream import BLOCK, RecordStream
from hacl.data.stream_dataset import StreamDataset
from hacl.training import build, checks, runtime


def open_stream(config: Config) -> Source:
    """The source of data.path. Raises ConfigError where only train.max_steps could end the run and is not set."""
    if not config.data.path:
        raise ConfigError("data.path is empty: name the records to stream")
    source = build.open_data(config.data.path, config.data.max_records)
    if config.train.max_steps is None and source.count() is None:
        raise ConfigError(
            f"data.stream: how many records {', '.join(config.data.path)} holds is not known before all were read, so "
            f"train.epochs={config.train.epochs:g} is no number of steps; set train.max_steps"
        )
    watched = [name for name in ("sample_steps", "diagnostic_steps") if getattr(config.log, name)]
    if watched and not config.data.eval_path and source.holds_images:
        raise ConfigError(
            f"log.{watched[0]} looks at fixed images, and {', '.join(config.data.path)} holds its own inside; give "
            "data.eval_path, whose images lie below data.image_root"
        )
    return source


def read_head(source: Source, count: int, max_bad_fraction: float = 0.0) -> list[Record]:
    """The first records of a source; images it holds itself are decoded on the way.

    Raises ValueError naming the record where more than this share of them is bad; bad ones are left out and counted.
    """
    records: list[Record] = []
    bad: list[Exception] = []
    for where, row in islice(source.rows(), count):
        try:
            records.append(_checked(source, where, row))
        except ValueError as error:
            bad.append(error)
            checks.refuse_above(bad, max_bad_fraction, count, "first records")
    checks.refuse_above(bad, max_bad_fraction, len(records) + len(bad), "first records")
    if bad:
        checks.say(f"{len(bad)} of the first {len(records) + len(bad)} rows will be replaced, first: {bad[0]}")
    return records


def _checked(source: Source, where: str, row: Any) -> Record:
    record = source.decode(where, row)
    for name, data in source.pictures(row).items():
        try:
            decode_image(data, name)
        except ValueError as error:
            raise ValueError(f"{where}: record {record.id!r}: {error}") from error
    return record


def train_set(config: Config, source: Source, samples: TrainingDataset) -> StreamDataset:
    """The batches of this rank. samples: a data set over no records."""
    stream = RecordStream(
        source,
        batch_size=config.train.per_device_batch_size,
        seed=config.data.seed,
        rank=runtime.rank(),
        ranks=runtime.world_size(),
        block=config.data.shuffle_buffer or BLOCK,
    )
    known = stream.batches_per_epoch()
    number = "an unknown number of" if known is None else known
    checks.say(
        f"streaming {', '.join(config.data.path)}: {number} global batches per epoch, shuffled within {stream.block} "
        f"records; at most the first {checks.STREAMED} were checked"
    )
    return StreamDataset(
        stream, samples, known, chunk=config.train.grad_cache_chunk, tolerant=config.data.max_bad_fraction > 0
    )


def epoch_samples(config: Config, train_set: Sized) -> int | None:
    """Samples drawn in an epoch over all ranks; None where a stream does not know."""
    size = config.train.per_device_batch_size * runtime.world_size()
    if isinstance(train_set, StreamDataset):
        batches = train_set.batches_per_epoch
        return None if batches is None else batches * size
    return len(train_set) // size * size or len(train_set)
