"""Hold what a dry run predicts against a few real steps on this machine: peak memory, and seconds per step.

Memory is that of tensors: followed operation by operation on a CPU, as the allocator reports it on a GPU. Time is
predicted as the dry run does, from the least work, a peak and an assumed MFU; the peak is log.peak_tflops, that of a
known GPU, or what a large product of matrices reaches here. One process, without
DeepSpeed and without caches.

Examples:
  python scripts/make_random_llava.py --text captions.jsonl --out small --layers 4 --width 512 --vision-layers 3
  python scripts/check_dry_run.py run.yaml model.path=small data.path=captions.jsonl --steps 3
  python scripts/check_dry_run.py run.yaml model.path=small train.gradient_checkpointing=true --out check.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file of a run, as for train.py")
    parser.add_argument("overrides", nargs="*", help="section.key=value, as for train.py")
    parser.add_argument("--steps", type=int, default=3, help="timed steps (default 3)")
    parser.add_argument("--out", type=Path, default=None, help="write the JSON here as well as to the screen")
    return parser.parse_intermixed_args(argv)


def predict(config, inputs) -> tuple[float, float]:
    """(peak bytes, least TFLOP of a step)."""
    from hacl.training import dryrun

    prediction = dryrun.predict(config, inputs)
    total = dryrun.peak_bytes(config, prediction, dryrun.first_step(config, inputs), stage=None, ranks=1)
    samples = dryrun.samples_per_step(config, len(inputs.records), 1)
    return total, prediction.minimal_tflops * samples / prediction.batch["samples"]


def chunks_of_step(config, records: int) -> list[range]:
    """Which samples run at once in a step of one rank: the last chunk of a batch may be smaller than the others."""
    from hacl.training.dryrun import samples_per_step

    batch, chunk = config.train.per_device_batch_size, config.train.chunk_size
    samples = samples_per_step(config, records, 1)
    return [
        range(start, min(start + chunk, first + batch, samples))
        for first in range(0, samples, batch)
        for start in range(first, min(first + batch, samples), chunk)
    ]


class Steps:
    """Steps of a real model over the first records, with AdamW."""

    def __init__(self, config, inputs):
        import torch

        from hacl.training import run, runtime
        from hacl.training.groups import parameter_groups

        self.config, self.device = config, runtime.local_device()
        self.model = run.build_model(config, inputs).to(self.device)
        if config.train.gradient_checkpointing:
            self.model.gradient_checkpointing_enable()
        self.model.train()
        groups = parameter_groups(self.model, config.model.learning_rate, config.train.weight_decay)
        on_gpu = self.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(groups, lr=1e-6, fused=on_gpu, foreach=None if on_gpu else False)
        self.batches = self._batches(inputs)

    def _batches(self, inputs) -> list:
        from hacl.data.collate import PackedCollator
        from hacl.training import run

        dataset = run.build_samples(self.config, inputs, inputs.records, pixels=True)
        collator = PackedCollator(inputs.encoder, self.config.objective)
        parts = [collator([dataset[i] for i in chunk]) for chunk in chunks_of_step(self.config, len(dataset))]
        return [{name: tensor.to(self.device) for name, tensor in part.items()} for part in parts]

    def run(self) -> None:
        import torch

        self.optimizer.zero_grad(set_to_none=True)
        for batch in self.batches:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.train.bf16):
                loss = self.model(**batch).loss
            loss.backward()
            del loss
        self.optimizer.step()

    def peak_bytes(self) -> float:
        """Of a step after the first, which makes the optimizer's state."""
        import torch

        from hacl.training.live_memory import LiveBytes

        self.run()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.run()
            return float(torch.cuda.max_memory_allocated())
        self.optimizer.zero_grad(set_to_none=True)
        moments = [t for state in self.optimizer.state.values() for t in state.values() if t.dim()]
        inputs = [tensor for batch in self.batches for tensor in batch.values()]
        kept = [*self.model.parameters(), *moments]
        with LiveBytes([*kept, *self.model.buffers(), *inputs]) as live:
            self.run()
        return float(live.peak + sum(t.numel() * t.element_size() for t in kept))

    def seconds(self, count: int) -> float:
        import torch

        def wait() -> None:
            if self.device.type == "cuda":
                torch.cuda.synchronize()

        taken = []
        for _ in range(count):
            wait()
            began = time.perf_counter()
            self.run()
            wait()
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)


def matmul_tflops(device, dtype) -> float:
    """What a large product of matrices reaches: the best of five."""
    import torch

    size, times = 8192 if device.type == "cuda" else 1536, []
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(5):
        began = time.perf_counter()
        float((left @ right)[0, 0])
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times) / 1e12


def check(config, steps: int) -> dict:
    import torch

    from hacl.training import run
    from hacl.training.dryrun import ASSUMED_MFU
    from hacl.training.hardware import peak_tflops

    config.train.deepspeed = None
    config.train.cache_text_states = config.train.cache_vision_features = False
    inputs = run.read_inputs(config)
    predicted, least = predict(config, inputs)
    real = Steps(config, inputs)
    measured = real.peak_bytes()
    seconds = real.seconds(steps)
    matmul = matmul_tflops(real.device, torch.bfloat16 if config.train.bf16 else torch.float32)
    peak = peak_tflops(config.log.peak_tflops, bf16=config.train.bf16) or matmul
    return {
        "memory_gib": {"predicted": predicted / 2**30, "measured": measured / 2**30, "ratio": predicted / measured},
        "seconds_per_step": {"predicted": least / (peak * ASSUMED_MFU), "measured": seconds},
        "mfu": {"assumed": ASSUMED_MFU, "measured": least / (peak * seconds)},
        "peak_tflops": peak,
        "matmul_tflops": matmul,
        "device": torch.cuda.get_device_name() if real.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    from hacl.config import load_config

    try:
        result = check(load_config(arguments.config, arguments.overrides), arguments.steps)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
