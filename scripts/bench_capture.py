"""Rows per second of capturing hidden states: the scheme of XL-VLMs, teacher forcing one by one, and batches.

  python scripts/bench_capture.py --json capture.json                      an untrained pocket model, under a minute
  python scripts/bench_capture.py --model FOLDER --records FILE --images ROOT --samples 64 --batch 16 --json OUT

  upstream            batch 1, generation; hooks copy every state of every position of the layers to the host, where the
                      row that is wanted is taken out (github.com/mshukor/xl-vlms@a599fe9); rows stay in memory
  teacher-forced 1    one pass over prompt and caption, batch 1; only the row that is wanted is copied; rows on the disk
  batched             the same, --batch rows left-padded
  batched, free       generation in batches, as upstream generates

All keep one row a sample: the state that predicts the caption's first colour word (in generation: of what was written,
the first position where there is none, as upstream). Every round runs each way once on the same samples, in an order
that rotates; images are read and encoded within the time, the model is not loaded within it. Reported are medians over
rounds, the ratio to upstream in the same round with a bootstrap interval of its median, decoder forwards, and bytes of
features copied from device to host. On a CPU the time is CPU time of the process, which other work on the machine
disturbs least. --memory measures, in processes of their own, how much the largest memory exceeds that after a first
window, for two numbers of rows.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

UPSTREAM = "upstream"
SELECT = "predicts:@colours"


def load(options: argparse.Namespace, folder: Path):
    """Model, processor and samples: those named, or an untrained pocket model and scenes drawn into `folder`."""
    import torch

    from hacl.data.records import read_records
    from hacl.representations import samples_from_records

    torch.set_num_threads(options.threads)
    if options.model:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        model = AutoModelForImageTextToText.from_pretrained(
            options.model, dtype=getattr(torch, options.dtype), use_safetensors=True
        )
        processor = AutoProcessor.from_pretrained(options.model)
    else:
        from hacl.models.pocket import pocket_model, pocket_processor

        model, processor = pocket_model().to(getattr(torch, options.dtype)), pocket_processor()
    records, root = options.records, options.images
    if records is None:
        from hacl.pocket.build import build_split

        records, root = build_split(folder, "test_like", options.samples, seed=0), folder
    samples = samples_from_records(read_records(records), root or Path(records).parent)
    samples = [sample for sample in samples if colour_in(sample.answer)]
    if len(samples) < options.samples:
        raise ValueError(f"{records}: {len(samples)} captions with a colour word, --samples asks for {options.samples}")
    return model.to(options.device).eval(), processor, samples


def colour_in(text: str) -> bool:
    """Whether a caption has a colour word."""
    from hacl.representations.words import WORD_CLASSES, word_pattern

    return word_pattern(WORD_CLASSES["colours"]).search(text) is not None


class Upstream:
    """Batch 1, generation, every state of every hooked layer on the host."""

    def __init__(self, model, encoder, layers, new: int):
        from hacl.representations.parts import find_parts
        from hacl.representations.selectors import Selector

        self.model, self.encoder, self.new = model, encoder, new
        self.parts = find_parts(model)
        self.layers = self.parts.resolve(layers)
        self.selector = Selector.parse(SELECT)

    def __call__(self, samples, folder: Path) -> dict[str, int]:
        from hacl.models.modes import evaluating

        self.rows, self.forwards, self.bytes = [], 0, 0
        with evaluating(self.model):
            for sample in samples:
                self.rows.append(self.one(sample))
        return {"rows": len(self.rows), "forwards": self.forwards, "bytes_copied": self.bytes}

    def one(self, sample):
        import torch

        from hacl.representations.forward import watching
        from hacl.representations.free import write_answers
        from hacl.representations.words import DecodedTokens

        row, kept = self.encoder.row(sample, None), {layer: [] for layer in self.layers}

        def copy(layer, h_RTD):
            kept[layer].append(h_RTD.cpu() if h_RTD.is_cuda else h_RTD.clone())
            self.bytes += h_RTD.nbytes
            self.forwards += layer == self.layers[0]

        with watching(self.parts, self.layers, copy):
            row.ids = row.ids + write_answers(self.model, self.encoder, [row], self.new)[0]
        row.end = len(row.ids)
        states = {layer: torch.cat(steps, dim=1)[0] for layer, steps in kept.items()}
        answer = DecodedTokens(self.encoder.decode, row.ids[row.prompt :])
        picks = self.selector.picks(row.layout(len(row.ids) - 1), answer, "first")
        position = picks[0].positions[0] if picks else 0
        return {layer: states_TD[position].clone() for layer, states_TD in states.items()}


class Ours:
    """The project's capture, without what it does once: the readout and the digest of the weights."""

    def __init__(self, model, encoder, layers, new: int, batch: int, mode: str = "teacher_forced"):
        from hacl.representations.parts import find_parts
        from hacl.representations.settings import Settings

        self.model, self.encoder, self.parts = model, encoder, find_parts(model)
        self.layers = self.parts.resolve(layers)
        self.settings = Settings(SELECT, mode, "first", batch_size=batch, max_new_tokens=new)

    def __call__(self, samples, folder: Path, part_bytes: int = 256 << 20, settings=None) -> dict[str, int]:
        from hacl.models.modes import evaluating
        from hacl.representations.batches import BatchReader
        from hacl.representations.capture import read_into
        from hacl.representations.store import StoreWriter

        config = {"hidden_size": self.parts.hidden_size, "num_layers": len(self.parts.blocks), "layers": self.layers}
        reader = BatchReader(
            self.model, self.parts, self.encoder, settings or self.settings, self.layers, self.model.dtype
        )
        with tempfile.TemporaryDirectory(dir=folder) as out, evaluating(self.model):
            writer = StoreWriter(Path(out) / "store", config, self.layers, part_bytes=part_bytes)
            read_into(writer, reader, samples, progress=False)
        stats = reader.stats
        return {"rows": stats.rows, "forwards": stats.forwards, "bytes_copied": stats.bytes_copied}


def ways(model, processor, options) -> dict:
    """{name: callable(samples, folder) -> counts}."""
    from hacl.representations.encoding import RowEncoder

    common = (model, RowEncoder(processor, template=options.template), options.layers, options.new)
    return {
        UPSTREAM: Upstream(*common),
        "teacher-forced 1": Ours(*common, batch=1),
        "batched": Ours(*common, batch=options.batch),
        "batched, free": Ours(*common, batch=options.batch, mode="free"),
    }


def timed(way, samples, folder: Path, device: str) -> tuple[float, dict[str, int]]:
    """Seconds, and what was counted."""
    import torch

    clock = time.perf_counter if device == "cuda" else time.process_time
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    counts = way(samples, folder)
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start, counts


def interval(values: list[float], draws: int = 2000) -> list[float]:
    """95 % bootstrap interval of the median."""
    source = random.Random(0)
    medians = sorted(statistics.median(source.choices(values, k=len(values))) for _ in range(draws))
    return [medians[int(0.025 * draws)], medians[int(0.975 * draws)]]


def measure(table: dict, samples, folder: Path, rounds: int, device: str) -> dict[str, dict]:
    """Rounds of all ways, rotated; one round beforehand, on a few samples, is not counted."""
    names, seconds, counts = list(table), {name: [] for name in table}, {}
    for name in names:
        table[name](samples[:2], folder)
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            taken, counts[name] = timed(table[name], samples, folder, device)
            seconds[name].append(taken)
    found = {}
    for name in names:
        gains = [base / own for base, own in zip(seconds[UPSTREAM], seconds[name], strict=True)]
        taken = statistics.median(seconds[name])
        found[name] = {
            "rows_per_second": counts[name]["rows"] / taken,
            "seconds": taken,
            "over_upstream": {"median": statistics.median(gains), "interval": interval(gains)},
            **counts[name],
        }
    return found


def memory_of(options: argparse.Namespace, count: int) -> dict[str, float]:
    """MiB by which the largest memory of a capture of `count` samples, every position, exceeds that after a window."""
    import resource
    from dataclasses import replace

    import torch

    from hacl.representations.encoding import RowEncoder
    from hacl.representations.settings import Settings

    cuda = options.device == "cuda"

    def largest() -> float:
        return (
            torch.cuda.max_memory_allocated() / 2**20
            if cuda
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        )

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model, processor, samples = load(options, folder)
        encoder = RowEncoder(processor, template=options.template)
        way = Ours(model, encoder, options.layers, options.new, options.batch)
        settings = Settings("all", batch_size=options.batch)
        many = [replace(samples[i % len(samples)], id=str(i)) for i in range(max(count, 2 * settings.window))]
        way(many[: 2 * settings.window], folder, 1 << 20, settings)
        before = largest()
        counts = way(many[:count], folder, 1 << 20, settings)
        stored = counts["bytes_copied"] / 2**20
    return {"rows": counts["rows"], "stored_mib": stored, "more_mib": largest() - before}


def memory(options: argparse.Namespace) -> list[dict[str, float]]:
    """One fresh process for each number of samples."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    found = []
    for count in options.memory:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            found.append(process.submit(memory_of, options, count).result())
    return found


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder (default: an untrained pocket model)")
    parser.add_argument("--records", help="records with captions (default: pocket scenes)")
    parser.add_argument("--images", help="folder that image paths are relative to (default: that of the records)")
    parser.add_argument("--template", default="plain", choices=("plain", "chat"))
    parser.add_argument("--layers", default="all", help="as capture takes them, for example 2-3 (default: all)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--device", default=None, choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--samples", type=int, default=32, help="rows of each round (default: 32)")
    parser.add_argument("--batch", type=int, default=16, help="rows of a batch (default: 16)")
    parser.add_argument("--new", type=int, default=50, help="most new tokens, upstream's default (default: 50)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of all ways (default: 5)")
    parser.add_argument("--memory", type=int, nargs="+", default=[0], metavar="N", help="numbers of samples to compare")
    parser.add_argument("--json", metavar="OUT", help="write the figures here")
    options = parser.parse_args(arguments)
    if min(options.batch, options.new, options.rounds, options.samples) < 1:
        parser.error("--batch, --new, --rounds and --samples are at least 1")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    import torch

    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as place:
        model, processor, samples = load(options, Path(place))
        table = ways(model, processor, options)
        found = measure(table, samples[: options.samples], Path(place), options.rounds, options.device)
    for name, row in found.items():
        gain, (low, high) = row["over_upstream"]["median"], row["over_upstream"]["interval"]
        print(
            f"{name:17} {row['rows_per_second']:8.1f} rows/s  x{gain:.1f} [{low:.1f}, {high:.1f}]  "
            f"{row['forwards']} forwards, {row['bytes_copied']:,} bytes copied"
        )
    from hacl.models.identity import hardware

    content = {"hardware": hardware(options.device), "settings": vars(options), "results": found}
    if any(options.memory):
        content["memory"] = memory(options)
        for row in content["memory"]:
            print(f"{row['rows']} rows ({row['stored_mib']:.1f} MiB stored): {row['more_mib']:.1f} MiB more memory")
    if options.json:
        Path(options.json).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(f"written: {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
