"""Cost of a HACL step beside plain fine-tuning and beside the four-call form, measured in turn in one run.

Variants of one step on the same samples, forward and backward (docs/performance.md says what they stand for):
  sft            generation alone, logits at label positions
  sft_plain      generation alone, logits at every position
  packed         the step of this project: one decoder call, captions packed beside the generation sequences
  four_calls     the released form: generation, image, caption and hallucinated captions each in a call of its own
  stage1_sft     as sft, with the LLM frozen and the projector trained
  stage1_cached  HACL with the LLM frozen and the states of texts cached, as stage 1 trains

Every round runs them all, in an order drawn anew; ratios are taken within a round. The optimizer is left out unless
--optimizer asks for it, as the target of the MFU does. Beside the clock stand the CPU time, the FLOPs that torch counts
(with attention in sdpa, which its counter sees, whatever is timed), and the least FLOPs of the cost model. The run ends
with each target and whether it was met; --strict makes a missed one an error.

Examples:
  python scripts/bench_step.py --out benchmarks/step_cpu.json
  python scripts/bench_step.py --layers 1 --width 256 --image-tokens 144 --rounds 3 --only sft packed
  python scripts/bench_step.py --preset llava15_7b --device cuda --dtype bfloat16 --batch-size 8 --out step_gpu.json
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import sys
import time
from pathlib import Path

VARIANTS = ("sft", "sft_plain", "packed", "four_calls", "stage1_sft", "stage1_cached")
RATIOS = {
    "packed/sft": ("packed", "sft"),
    "packed/sft_plain": ("packed", "sft_plain"),
    "four_calls/sft": ("four_calls", "sft"),
    "four_calls/packed": ("four_calls", "packed"),
    "stage1_cached/stage1_sft": ("stage1_cached", "stage1_sft"),
}
DRAWS = 2000  # of the bootstrap
NEAR = 0.98, 1.02


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=["small", "llava15_7b"], default="small", help="sizes of the random model")
    parser.add_argument("--layers", type=int, default=None, help="decoder blocks (small: 2)")
    parser.add_argument("--width", type=int, default=None, help="hidden size, a multiple of 128 (small: 1024)")
    parser.add_argument("--vocabulary", type=int, default=None, help="rows of the embedding (small: 2048)")
    parser.add_argument("--image-tokens", type=int, default=576, help="tokens per image, a square number (default 576)")
    parser.add_argument("--caption-tokens", type=int, default=40, help="tokens of a caption with BOS, EOS (default 40)")
    parser.add_argument("--hallucinated-tokens", type=int, default=45, help="of a hallucinated one (default 45)")
    parser.add_argument("--hallucinated", type=int, default=1, help="hallucinated captions per image K (default 1)")
    parser.add_argument("--spread", type=float, default=0.0, help="share by which lengths vary (default 0)")
    parser.add_argument("--batch-size", type=int, default=4, help="samples per step (default 4)")
    parser.add_argument("--head", choices=["linear", "mlp", "none"], default="linear", help="contrastive heads")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="variants to run")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds over all variants (default 7)")
    parser.add_argument("--attention", default="auto", help="as model.attn_implementation (default auto)")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="recompute activations")
    parser.add_argument("--compile", action="store_true", help="compile the decoder blocks")
    parser.add_argument("--optimizer", action="store_true", help="a step of AdamW (fused on a GPU) within the time")
    parser.add_argument("--device", default=None, help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--peak-tflops", type=float, default=None, help="of the device, for MFU (default: known GPUs)")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a target is missed")
    parser.add_argument("--out", type=Path, default=None, help="write the JSON here as well as to the screen")
    return parser.parse_args(argv)


def build_case(arguments: argparse.Namespace):
    import torch

    from hacl.models.random_llava import PATCH, Size
    from hacl.training.step_variants import Case

    side = round(arguments.image_tokens**0.5)
    if side * side != arguments.image_tokens:
        raise ValueError(f"--image-tokens {arguments.image_tokens} is not a square number")
    large = arguments.preset == "llava15_7b"
    size = Size(
        layers=arguments.layers or (32 if large else 2),
        width=arguments.width or (4096 if large else 1024),
        vocabulary=arguments.vocabulary or (32064 if large else 2048),
        vision_layers=24 if large else 2,
        vision_width=1024 if large else 64,
        pixels=side * PATCH,
    )
    return Case(
        size,
        batch=arguments.batch_size,
        caption=arguments.caption_tokens,
        hallucinated=arguments.hallucinated_tokens,
        count=arguments.hallucinated,
        spread=arguments.spread,
        head=arguments.head,
        dtype=getattr(torch, arguments.dtype),
        device=arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        attention=arguments.attention,
        recompute=arguments.gradient_checkpointing,
        compiled=arguments.compile,
        seed=arguments.seed,
    )


class Clock:
    """Seconds by the clock, seconds of CPU, and GiB at the peak of the GPU (None on a CPU)."""

    def __init__(self, device: str):
        self.on_gpu = device.startswith("cuda")

    def time(self, call) -> tuple[float, float, float | None]:
        self._wait()
        if self.on_gpu:
            self._cuda().reset_peak_memory_stats()
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        self._wait()
        taken = time.perf_counter() - wall, time.process_time() - cpu
        return (*taken, self._cuda().max_memory_allocated() / 2**30 if self.on_gpu else None)

    def _wait(self) -> None:
        if self.on_gpu:
            self._cuda().synchronize()

    def _cuda(self):
        import torch

        return torch.cuda


def matmul_tflops(clock: Clock, case) -> float:
    """What a large product of matrices reaches on this device in this dtype: the best of five."""
    import torch

    size = 8192 if clock.on_gpu else 1536
    left, right = (torch.randn(size, size, device=case.device, dtype=case.dtype) for _ in range(2))
    return 2 * size**3 / min(clock.time(lambda: left @ right)[0] for _ in range(5)) / 1e12


def measure(arguments: argparse.Namespace) -> dict:
    import torch

    from hacl.training.flops import counting
    from hacl.training.step_variants import Variants

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    case = build_case(arguments)
    clock = Clock(case.device)
    matmul = matmul_tflops(clock, case)
    steps = Variants(case)
    optimizer = None
    if arguments.optimizer:
        everything = [p for n, p in steps.packed.named_parameters() if "vision_tower" not in n]
        optimizer = torch.optim.AdamW(everything, lr=1e-6, fused=clock.on_gpu)

    def run(name: str) -> None:
        steps.variants[name].loss().backward()
        if optimizer is not None:
            optimizer.step()

    counted = {}
    for name in arguments.only:
        steps.select(name)
        with steps.countable(), counting() as counter:
            run(name)
        counted[name] = counter.get_total_flops()
        steps.select(name)
        run(name)  # the kernel that is timed, warmed up
    times: dict[str, list] = {name: [] for name in arguments.only}
    draw = random.Random(arguments.seed)
    for _ in range(arguments.rounds):
        for name in draw.sample(arguments.only, len(arguments.only)):
            steps.select(name)
            times[name].append(clock.time(lambda name=name: run(name)))
    return {
        "settings": settings_of(arguments, case, steps),
        "hardware": hardware_of(case, matmul),
        "versions": versions(),
        "variants": {
            name: {
                "seconds": [wall for wall, _, _ in times[name]],
                "cpu_seconds": [cpu for _, cpu, _ in times[name]],
                "peak_gib": times[name][-1][2],
                "counted_flops": counted[name],
                "countable_flops": steps.executed(name, counter=True),
                "executed_flops": steps.executed(name),
                "minimal_flops": steps.minimal(name),
            }
            for name in arguments.only
        },
    }


def settings_of(arguments: argparse.Namespace, case, steps) -> dict:
    """What was asked for, and what it came to."""
    given = {name: value for name, value in vars(arguments).items() if name not in ("out", "strict")}
    given.update(device=case.device, layers=case.size.layers, width=case.size.width, vocabulary=case.size.vocabulary)
    return {**given, "attention": steps.attention, "optimizer": bool(arguments.optimizer)}


def hardware_of(case, matmul: float) -> dict:
    import torch

    name = platform.processor() or platform.machine()
    if case.device.startswith("cuda"):
        name = torch.cuda.get_device_name()
    return {"device": name, "threads": torch.get_num_threads(), "matmul_tflops": matmul}


def versions() -> dict:
    import torch
    import transformers

    return {"torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version()}


def summarise(result: dict, peak: float | None, seed: int) -> None:
    """Add medians, ratios with intervals, utilisation and targets to what was measured."""
    rows = result["variants"]
    for row in rows.values():
        row["seconds_median"] = statistics.median(row["seconds"])
        row["of_matmul"] = row["minimal_flops"] / row["seconds_median"] / result["hardware"]["matmul_tflops"] / 1e12
        if peak:
            row["mfu"] = row["minimal_flops"] / row["seconds_median"] / peak / 1e12
            if row["executed_flops"] is not None:
                row["hfu"] = row["executed_flops"] / row["seconds_median"] / peak / 1e12
    result["ratios"] = {
        name: {
            "seconds": interval(rows[top]["seconds"], rows[bottom]["seconds"], seed),
            "cpu_seconds": interval(rows[top]["cpu_seconds"], rows[bottom]["cpu_seconds"], seed),
            "counted_flops": rows[top]["counted_flops"] / rows[bottom]["counted_flops"],
            "minimal_flops": rows[top]["minimal_flops"] / rows[bottom]["minimal_flops"],
        }
        for name, (top, bottom) in RATIOS.items()
        if top in rows and bottom in rows
    }
    result["targets"] = targets(result)


def interval(top: list[float], bottom: list[float], seed: int) -> dict[str, float]:
    """Median over rounds of the ratio within a round, and the bootstrap interval of that median (95 %)."""
    ratios = [a / b for a, b in zip(top, bottom, strict=True)]
    draw = random.Random(seed)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(DRAWS))
    return {
        "median": statistics.median(ratios),
        "low": medians[round(0.025 * (DRAWS - 1))],
        "high": medians[round(0.975 * (DRAWS - 1))],
    }


def targets(result: dict) -> list[dict]:
    """What a step is held to: each with its value, its bound and whether it is met."""
    settings, ratios = result["settings"], result["ratios"]
    found: list[dict] = []

    def add(name: str, value: float, low: float, high: float) -> None:
        found.append({"target": name, "value": value, "low": low, "high": high, "met": low <= value <= high})

    for name, row in result["variants"].items():
        if row.get("countable_flops"):
            add(
                f"{name}, counted FLOPs over those of the cost model",
                row["counted_flops"] / row["countable_flops"],
                *NEAR,
            )
    if "packed/sft" in ratios:
        packed = ratios["packed/sft"]
        lengths = tuple(settings[f"{name}_tokens"] for name in ("image", "caption", "hallucinated"))
        if (*lengths, settings["hallucinated"]) == (576, 40, 45, 1):
            add("packed/sft, counted FLOPs (1.14 at 7B)", packed["counted_flops"], 0.95 * 1.14, 1.05 * 1.14)
            add("packed/sft, seconds", packed["seconds"]["median"], 0.0, 1.20)
    on_gpu = settings["device"].startswith("cuda")
    if "four_calls/packed" in ratios:
        add(
            "four_calls/packed, seconds", ratios["four_calls/packed"]["seconds"]["median"], 1.8 if on_gpu else 1.6, 99.0
        )
    if "stage1_cached/stage1_sft" in ratios:
        add("stage1_cached/stage1_sft, seconds", ratios["stage1_cached/stage1_sft"]["seconds"]["median"], 0.0, 1.05)
    packed_row = result["variants"].get("packed", {})
    asked = settings["preset"] == "llava15_7b" and settings["optimizer"] and not settings["gradient_checkpointing"]
    if "mfu" in packed_row and asked:
        add("packed, MFU", packed_row["mfu"], 0.40, 1.0)
    return found


def show(result: dict) -> None:
    settings, hardware = result["settings"], result["hardware"]
    print(
        f"{settings['layers']} blocks of {settings['width']}, batch {settings['batch_size']}, {settings['dtype']}, "
        f"attention {settings['attention']}, head {settings['head']}, optimizer "
        f"{'within' if settings['optimizer'] else 'left out'}; {hardware['device']}, "
        f"matrix products {hardware['matmul_tflops']:.3g} TFLOP/s"
    )
    print(f"{'variant':<15}{'median s':>10}{'TFLOP':>9}{'least':>9}{'of matmul':>11}{'MFU':>7}")
    for name, row in result["variants"].items():
        print(
            f"{name:<15}{row['seconds_median']:>10.3f}{row['counted_flops'] / 1e12:>9.3f}"
            f"{row['minimal_flops'] / 1e12:>9.3f}{row['of_matmul']:>11.2f}"
            + (f"{row['mfu']:>7.2f}" if "mfu" in row else f"{'-':>7}")
        )
    print(f"\n{'ratio':<26}{'seconds (95 %)':>24}{'CPU s':>8}{'counted':>9}{'least':>8}")
    for name, row in result["ratios"].items():
        seconds = row["seconds"]
        span = f"{seconds['median']:.3f} ({seconds['low']:.3f}-{seconds['high']:.3f})"
        print(
            f"{name:<26}{span:>24}{row['cpu_seconds']['median']:>8.3f}{row['counted_flops']:>9.3f}"
            f"{row['minimal_flops']:>8.3f}"
        )
    print()
    for target in result["targets"]:
        bound = f"within {target['low']:.3f}-{target['high']:.3f}" if target["low"] else f"at most {target['high']:.2f}"
        if target["high"] == 99.0:
            bound = f"at least {target['low']:.2f}"
        print(f"{'pass' if target['met'] else 'FAIL'}  {target['target']}: {target['value']:.3f} ({bound})")


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        result = measure(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from hacl.training.hardware import peak_tflops

    on_gpu = result["settings"]["device"].startswith("cuda")
    peak = peak_tflops(arguments.peak_tflops, bf16=on_gpu and arguments.dtype == "bfloat16")
    summarise(result, peak, arguments.seed)
    result["hardware"]["peak_tflops"] = peak
    show(result)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(f"wrote {arguments.out}")
    return 1 if arguments.strict and not all(target["met"] for target in result["targets"]) else 0


if __name__ == "__main__":
    sys.exit(main())
