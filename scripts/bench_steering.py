"""What steering adds to the time of greedy generation: static vectors, and a method that reads the prompt.

  python scripts/bench_steering.py --json steering.json                        a small random LLaVA, under a minute
  python scripts/bench_steering.py --model FOLDER --batch 8 --new 256 --rounds 5 --json steering.json

Every round runs each way once, in an order that rotates, and unsteered generation twice: the ratio of those two is the
noise. Reported are medians over rounds of the time divided by the round's first unsteered time, with a bootstrap
interval of the median, and what was counted: hook calls, extra context passes, decoder forwards. On a CPU the time is
CPU time of the process, which other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path


def small_model():
    """A random LLaVA of a few million parameters, its prompts 64 image tokens and 16 of text."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=2000, hidden_size=256, intermediate_size=688, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=2048,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=64, patch_size=8
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=4, image_seq_length=64)
    return LlavaForConditionalGeneration(config).eval()


def prompts(model, batch: int):
    """Token ids, mask and pixels of `batch` prompts of the model's own size."""
    import torch

    vision = model.config.vision_config
    side = getattr(vision, "image_size", None)
    image = [model.config.image_token_id] * model.config.image_seq_length if side else []
    row = [1, *image, *range(10, 26)]
    ids = torch.tensor([row] * batch, device=model.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if side:
        shape = (batch, 3, side, side)
        inputs["pixel_values"] = torch.zeros(shape, device=model.device, dtype=model.dtype)
    return inputs


def ways(model) -> dict:
    """{name: arguments of `steering`}; None for the unsteered model."""
    import torch

    from hacl.models.adapters import find_adapter
    from hacl.steering import ContextSpec, MeanSteerer, Steerer

    adapter = find_adapter(model)
    width, middle = adapter.hidden_size, adapter.num_layers // 2
    draw = torch.Generator().manual_seed(0)
    vector = 0.01 * torch.randn(width, generator=draw)

    class Network(Steerer):
        """W2 tanh(W1 state), of the size Learn-to-Steer uses."""

        kind = "network"

        def __init__(self, read: int, layer: int):
            super().__init__()
            self.spec, self.layer = ContextSpec(read), layer
            self.first = torch.randn(100, width, generator=draw).to(model.device) / width**0.5
            self.second = 0.01 * torch.randn(width, 100, generator=draw).to(model.device)

        @property
        def layers(self):
            return (self.layer,)

        def required_context(self):
            return [self.spec]

        def vectors(self, context, sample_ids):
            return {self.layer: torch.tanh(context[self.spec] @ self.first.T) @ self.second.T}

    one = MeanSteerer({middle: vector.to(model.device)})
    every = MeanSteerer({layer: vector.to(model.device) for layer in range(adapter.num_layers)})
    return {
        "unsteered": None,
        "unsteered again": None,
        "one layer, all positions": {"steerer": one, "policy": "all"},
        "one layer, generated": {"steerer": one, "policy": "generated"},
        "every layer, all positions": {"steerer": every, "policy": "all"},
        "norm preserved": {"steerer": MeanSteerer(one.values, norm="preserve"), "policy": "all"},
        "prompt read in the same pass": {"steerer": Network(middle, middle), "policy": "all"},
        "prompt read in a pass of its own": {"steerer": Network(adapter.num_layers - 1, middle), "policy": "all"},
    }


def run(model, inputs: dict, new: int, way: dict | None) -> tuple[float, dict[str, int]]:
    """Seconds of one generation, and what the session counted."""
    import contextlib

    import torch

    from hacl.steering import steering

    session = contextlib.nullcontext() if way is None else steering(model, way["steerer"], policy=way["policy"])
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    clock = time.perf_counter if model.device.type == "cuda" else time.process_time
    start = clock()
    with session as s:
        model.generate(**inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = clock() - start
    if s is None:
        return seconds, {"forwards": new, "hook_calls": 0, "context_passes": 0}
    return seconds, {name: getattr(s.stats, name) for name in ("forwards", "hook_calls", "context_passes")}


def interval(values: list[float], draws: int = 2000) -> list[float]:
    """95 % bootstrap interval of the median."""
    source = random.Random(0)
    medians = sorted(statistics.median(source.choices(values, k=len(values))) for _ in range(draws))
    return [medians[int(0.025 * draws)], medians[int(0.975 * draws)]]


def measure(model, batch: int, new: int, rounds: int) -> dict[str, dict]:
    """Rounds of all ways, rotated; one round beforehand is not counted."""
    table, inputs = ways(model), prompts(model, batch)
    names, seconds, counts = list(table), {name: [] for name in table}, {}
    for turn in range(rounds + 1):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            taken, counts[name] = run(model, inputs, new, table[name])
            if turn:
                seconds[name].append(taken)
    found = {}
    for name in names:
        ratios = [own / plain for own, plain in zip(seconds[name], seconds["unsteered"], strict=True)]
        found[name] = {
            "seconds": statistics.median(seconds[name]),
            "over_unsteered": {"median": statistics.median(ratios), "interval": interval(ratios)},
            **counts[name],
        }
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder (default: a small random LLaVA)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--device", default=None, choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--batch", type=int, default=1, help="rows (default: 1)")
    parser.add_argument("--new", type=int, default=8, help="new tokens of each row (default: 8)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of all ways (default: 5)")
    parser.add_argument("--json", metavar="OUT", help="write the figures here")
    options = parser.parse_args(arguments)
    if min(options.batch, options.new, options.rounds) < 1:
        parser.error("--batch, --new and --rounds are at least 1")

    import torch

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if options.model:
        from transformers import AutoModelForImageTextToText

        model = AutoModelForImageTextToText.from_pretrained(options.model).eval()
    else:
        model = small_model()
    model = model.to(device, getattr(torch, options.dtype))
    found = measure(model, options.batch, options.new, options.rounds)
    for name, row in found.items():
        ratio, (low, high) = row["over_unsteered"]["median"], row["over_unsteered"]["interval"]
        print(
            f"{name:34} {1000 * row['seconds']:9.1f} ms  x{ratio:.3f} [{low:.3f}, {high:.3f}]  "
            f"{row['hook_calls']} hook calls, {row['context_passes']} context passes"
        )
    if options.json:
        settings = {name: getattr(options, name) for name in ("model", "dtype", "batch", "new", "rounds")}
        from hacl.models.identity import hardware

        content = {"hardware": hardware(device), "settings": settings, "results": found}
        Path(options.json).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(f"written: {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
