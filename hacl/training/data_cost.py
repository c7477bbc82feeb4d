"""What training on some records would cost: how tightly their sequences pack, and the arithmetic of an epoch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hacl.config import Config
from hacl.data.packing import pack_tightly
from hacl.data.records import Record
from hacl.training import build, dryrun, run


@dataclass(frozen=True)
class DataCost:
    """packing: tokens over places of the packed rows, mean over drawn micro-batches; rows and columns: their means;
    tflops_per_step: one micro-batch of one rank, forward and backward; steps: micro-batches of an epoch on one rank."""

    batch_size: int
    packing: float
    unpacked: float
    rows: float
    columns: float
    steps: int
    tflops_per_step: float | None = None
    tflops_per_epoch: float | None = None

    def to_json(self) -> dict:
        return asdict(self)


def packing_efficiency(lengths: Sequence[Sequence[int]], batch_size: int, *, draws: int = 50, seed: int = 0) -> dict:
    """lengths: tokens of the sequences of each sample. Means over `draws` micro-batches: `packing` with shared rows,
    `unpacked` with a row per sequence (shares of places that hold a token), and rows and columns when packed."""
    draw = random.Random(seed)
    sums = dict.fromkeys(("packing", "unpacked", "rows", "columns"), 0.0)
    for _ in range(draws):
        batch = draw.sample(range(len(lengths)), min(batch_size, len(lengths)))
        tokens = [length for index in batch for length in lengths[index]]
        _, rows, columns = pack_tightly(tokens)
        sums["packing"] += sum(tokens) / (rows * columns)
        sums["unpacked"] += sum(tokens) / (len(tokens) * max(tokens))
        sums["rows"] += rows
        sums["columns"] += columns
    return {name: total / draws for name, total in sums.items()}


def data_cost(
    config: Config,
    lengths: Sequence[Sequence[int]],
    count: int,
    *,
    records: Sequence[Record] = (),
    image_root: Path | None = None,
) -> DataCost:
    """Packing from measured lengths; with `records` (one micro-batch, drawn at random) and their images also the
    arithmetic, predicted as `train.py --dry-run` does, without loading weights. count: records of an epoch."""
    batch = config.train.per_device_batch_size
    packed = packing_efficiency(lengths, batch)
    steps = max(1, count // batch)
    if not records:
        return DataCost(batch, steps=steps, **packed)
    processor = build.load_processor(config.model)
    inputs = run.Inputs(processor, build.build_encoder(processor, config.data), list(records), [], image_root)
    tflops = dryrun.predict(config, inputs).tflops
    return DataCost(batch, steps=steps, tflops_per_step=tflops, tflops_per_epoch=tflops * steps, **packed)
