"""Layouts of the sequences of one step beside each other: what the decoder costs with each, forward and backward.

Sequences are those of HACL (prefix and image, caption and hallucinated captions per sample) with random contents in a
random LLaMA decoder. Layouts:
  dense          packed rows, one mask over every row (model.attn_implementation=sdpa)
  segments       packed rows, attention in buckets of similar length (segments)
  by_length      packed rows, a bucket for every length
  one_bucket     packed rows, one bucket for all, padded to the longest
  padded         a row for every sequence, plain causal attention
  calls          a decoder call for every bucket of similar length, plain causal attention
  flex, flash    packed rows in FlexAttention and FlashAttention-2, on a GPU (flash without --trees)

With --trees the texts of a sample share their beginning (objective.share_prefixes) and an EOS branches off every image
(objective.form=eos_branch); padded and calls have no trees and run the sequences apart.

Example:
  python scripts/bench_attention.py --out attention.json
  python scripts/bench_attention.py --trees --hallucinated 4 --image-tokens 144 --rounds 3

Every round runs all layouts in an order drawn anew. Times are medians with quartiles, ratios are taken within a round;
the CPU time of the process stands beside the clock, for machines that are shared. `pairs` counts the query-key pairs
that attention computes, padding included; a causal call counts half of its square.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from pathlib import Path


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2, help="decoder blocks (default 2)")
    parser.add_argument("--width", type=int, default=1024, help="hidden size, a multiple of 64 (default 1024)")
    parser.add_argument("--image-tokens", type=int, default=576, help="tokens per image (default 576)")
    parser.add_argument(
        "--caption-tokens", type=int, default=40, help="mean caption length, 30 %% about it (default 40)"
    )
    parser.add_argument("--hallucinated", type=int, default=1, help="hallucinated captions per image (default 1)")
    parser.add_argument("--batch-size", type=int, default=4, help="samples (default 4)")
    parser.add_argument("--trees", action="store_true", help="shared prefixes and an EOS branch per image")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds over all layouts (default 5)")
    parser.add_argument("--device", default=None, help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="write the JSON here as well as to the screen")
    return parser.parse_args(argv)


def draw_sequences(arguments: argparse.Namespace) -> list[list[list[int]]]:
    """Per sample: the generation sequence (image tokens as -1, -2, ...) and the roots of its texts."""
    draw = random.Random(arguments.seed)
    low, high = int(arguments.caption_tokens * 0.7), int(arguments.caption_tokens * 1.3)
    samples = []
    for b in range(arguments.batch_size):
        words = [draw.randint(3, 999) for _ in range(draw.randint(max(1, low), max(2, high)))]
        image = [-1 - b * arguments.image_tokens - i for i in range(arguments.image_tokens)]
        texts = [[1, *words, 2]]
        for _ in range(arguments.hallucinated):
            edited = list(words)
            edited[draw.randrange(len(words))] = draw.randint(3, 999)
            texts.append([1, *edited, 2])
        samples.append([[1, *image, *words, 2], *texts])
    return samples


def place(trees, device, *, share_rows: bool = True):
    """Segment ids, subtree ends and positions (R, T) of packed trees."""
    import torch

    from hacl.data.packing import pack_tightly

    corners, rows, tokens = pack_tightly([len(tree) for tree in trees], share_rows=share_rows)
    segments = torch.zeros(rows, tokens, dtype=torch.long)
    ends = torch.arange(1, tokens + 1).repeat(rows, 1)
    positions = torch.arange(tokens).repeat(rows, 1)
    count = [0] * rows
    for tree, (row, corner) in zip(trees, corners, strict=True):
        span = slice(corner, corner + len(tree))
        count[row] += 1
        segments[row, span], positions[row, span] = count[row], torch.tensor(tree.depth)
        ends[row, span] = corner + torch.tensor(tree.end)
    return segments.to(device), ends.to(device), positions.to(device)


def build_layouts(arguments: argparse.Namespace, device):
    """name -> (function that runs forward and backward, tokens with padding, query-key pairs)."""
    import torch
    from transformers import LlamaConfig, LlamaModel

    from hacl.data.packing import merge_prefixes
    from hacl.models import attention
    from hacl.models.attention_masks import bucket_segments, dense_mask

    heads = arguments.width // 64
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=arguments.width,
        intermediate_size=arguments.width * 11 // 4,
        num_hidden_layers=arguments.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
    )
    torch.manual_seed(arguments.seed)
    decoder = LlamaModel(config).to(device, getattr(torch, arguments.dtype)).train()
    samples = draw_sequences(arguments)
    image_end = 1 + arguments.image_tokens
    apart = [merge_prefixes([sequence]) for sample in samples for sequence in sample]
    if arguments.trees:
        branches = [[sample[0], [*sample[0][:image_end], 2]] for sample in samples]
        packed = [merge_prefixes(part) for b, sample in enumerate(samples) for part in (branches[b], sample[1:])]
        apart += [merge_prefixes([branch]) for _, branch in branches]
    else:
        packed = apart
    segments, ends, positions = place(packed, device)
    ends = ends if arguments.trees else None

    def run(implementation, shapes):
        def step():
            decoder.zero_grad()
            attention.set_attention(decoder, implementation)
            for positions_RT, options in shapes:
                rows, tokens = positions_RT.shape
                embeds = torch.ones(rows, tokens, arguments.width, device=device, dtype=decoder.dtype)
                embeds.requires_grad_()
                made = options() if callable(options) else options
                states = decoder(inputs_embeds=embeds, position_ids=positions_RT, use_cache=False, **made)
                states.last_hidden_state.float().pow(2).mean().backward()

        return step

    def bucketed(slack):
        unused = torch.empty(0, 0, 0, 0, device=device)
        plan = bucket_segments(segments, ends, slack=slack)
        pairs = sum(
            b.queries.numel() * b.keys.shape[1] // (1 if b.mask is not None else 2) for b in plan.buckets
        )  # causal calls run half
        make = lambda: {"attention_mask": unused, "segments": bucket_segments(segments, ends, slack=slack)}  # noqa: E731
        return run("segments", [(positions, make)]), positions.numel(), pairs

    def plain(groups):
        shapes = [(place(group, device, share_rows=False)[2], {"attention_mask": None}) for group in groups]
        sizes = [rows_T.shape for rows_T, _ in shapes]
        return run("sdpa", shapes), sum(r * t for r, t in sizes), sum(r * t * t // 2 for r, t in sizes)

    rows, tokens = segments.shape
    layouts = {
        "dense": (
            run("sdpa", [(positions, lambda: {"attention_mask": dense_mask(segments, ends)})]),
            positions.numel(),
            rows * tokens**2,
        ),
        "segments": bucketed(0.25),
        "by_length": bucketed(0.0),
        "one_bucket": bucketed(1.0),
        "padded": plain([apart]),
        "calls": plain(by_similar_length(apart)),
    }
    if device.type == "cuda":
        names = (
            {"flex": "flex_attention"} if arguments.trees else {"flex": "flex_attention", "flash": "flash_attention_2"}
        )
        for name, implementation in names.items():
            make = lambda i=implementation: attention.packed_attention(i, segments, ends, decoder.dtype)  # noqa: E731
            layouts[name] = run(implementation, [(positions, make)]), positions.numel(), None
    return layouts


def by_similar_length(trees):
    """Groups whose shortest has at least three quarters of the length of the longest."""
    groups: list = []
    for tree in sorted(trees, key=len, reverse=True):
        if not groups or len(tree) < 0.75 * len(groups[-1][0]):
            groups.append([])
        groups[-1].append(tree)
    return groups


def measure(layouts, rounds: int, seed: int, device) -> dict[str, list[tuple[float, float]]]:
    """Seconds and CPU seconds of every layout per round, after one round that does not count."""
    import torch

    draw, seconds = random.Random(seed), {name: [] for name in layouts}
    for number in range(rounds + 1):
        for name in draw.sample(sorted(layouts), len(layouts)):
            if device.type == "cuda":
                torch.cuda.synchronize()
            started, used = time.perf_counter(), time.process_time()
            layouts[name][0]()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number:
                seconds[name].append((time.perf_counter() - started, time.process_time() - used))
    return seconds


def to_dense(seconds: dict[str, list[float]], name: str) -> float:
    """Median over rounds of the ratio to the dense mask."""
    return statistics.median(own / dense for own, dense in zip(seconds[name], seconds["dense"], strict=True))


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    import torch
    import transformers

    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    layouts = build_layouts(arguments, device)
    measured = measure(layouts, arguments.rounds, arguments.seed, device)
    seconds, used = ({name: [pair[i] for pair in found] for name, found in measured.items()} for i in (0, 1))
    result = {
        "settings": {key: str(value) for key, value in vars(arguments).items() if key != "out"},
        "hardware": {
            "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
            "threads": torch.get_num_threads(),
        },
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "layouts": {
            name: {
                "tokens": tokens,
                "pairs": pairs,
                "seconds": statistics.median(seconds[name]),
                "quartiles": statistics.quantiles(seconds[name], n=4)[::2] if arguments.rounds > 1 else None,
                "to_dense": to_dense(seconds, name),
                "cpu_to_dense": to_dense(used, name),
            }
            for name, (_, tokens, pairs) in layouts.items()
        },
    }
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
