"""Cost of a HACL step beside plain fine-tuning and beside the four-call form, measured side by side in one run.

Variants of the same step on the same samples, run in turn, forward and backward:
  sft        generation sequences alone, logits at label positions
  packed     the training step of this project: one decoder call, captions packed beside the generation sequences
  four_calls the released form of HACL: generation, image, caption and hallucinated-caption batches, each its own call,
             logits at every position of the generation batch

Example:
  python scripts/bench_step.py --out bench_step.json
  python scripts/bench_step.py --layers 4 --width 256 --image-tokens 144 --caption-tokens 20

The JSON has the median and the interquartile range of the seconds of each variant, the counted FLOPs, the ratios to
`sft` (measured and by FLOPs), the hardware and the versions.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4, help="decoder blocks of the random model (default 4)")
    parser.add_argument("--width", type=int, default=256, help="hidden size (default 256)")
    parser.add_argument("--vocabulary", type=int, default=8192, help="vocabulary size (default 8192)")
    parser.add_argument("--image-tokens", type=int, default=144, help="tokens per image, a square number (default 144)")
    parser.add_argument("--caption-tokens", type=int, default=20, help="mean caption length (default 20)")
    parser.add_argument("--hallucinated", type=int, default=1, help="hallucinated captions per image K (default 1)")
    parser.add_argument("--batch-size", type=int, default=8, help="samples per step (default 8)")
    parser.add_argument("--repeats", type=int, default=7, help="timed rounds over all variants (default 7)")
    parser.add_argument("--device", default=None, help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="write the JSON here as well as to the screen")
    return parser.parse_args(argv)


def build_backbone(arguments):
    """A random LLaVA with a one-block tower, so that the decoder is what is measured."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    side = round(arguments.image_tokens**0.5)
    if side * side != arguments.image_tokens:
        raise ValueError(f"--image-tokens {arguments.image_tokens} is not a square number")
    torch.manual_seed(arguments.seed)
    width = arguments.width
    text = LlamaConfig(
        vocab_size=arguments.vocabulary,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=arguments.layers,
        num_attention_heads=max(1, width // 64),
        num_key_value_heads=max(1, width // 64),
        tie_word_embeddings=False,
    )
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=side * 8,
        patch_size=8,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=arguments.vocabulary - 1,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    return LlavaForConditionalGeneration(config)


def draw_sequences(arguments):
    """Token ids: image prefix, caption and K hallucinated captions per sample, lengths within 30 % of the mean."""
    import random

    draw = random.Random(arguments.seed)
    bos, eos, top = 1, 2, arguments.vocabulary - 2

    def caption() -> list[int]:
        low, high = int(arguments.caption_tokens * 0.7), int(arguments.caption_tokens * 1.3)
        return [draw.randint(3, top) for _ in range(draw.randint(max(1, low), max(2, high)))]

    samples = []
    for _ in range(arguments.batch_size):
        words = caption()
        roots = [[bos, *words, eos]]
        for _ in range(arguments.hallucinated):
            edited = list(words)
            edited[draw.randrange(len(edited))] = draw.randint(3, top)
            roots.append([bos, *edited, eos])
        samples.append(roots)
    return samples


def build_variants(arguments, device):
    """name -> function that runs forward and backward of one step."""
    import torch
    from torch import nn

    from hacl.config import ObjectiveConfig
    from hacl.data.collate import PackedCollator
    from hacl.data.dataset import Sample
    from hacl.data.templates import EncodedSequence
    from hacl.losses.contrastive import contrastive_loss
    from hacl.losses.lm import token_losses
    from hacl.training.objective import HaclModel

    image_id, count = arguments.vocabulary - 1, arguments.image_tokens
    roots = draw_sequences(arguments)

    class Encoder:
        num_image_tokens, eos = count, [2]
        tokenizer = argparse.Namespace(pad_token_id=0, eos_token_id=2)

        def root_span(self, ids, pool):
            return len(ids) - 1, len(ids)

    def samples(contrastive: bool) -> list[Sample]:
        made = []
        for index, (caption, *hallucinated) in enumerate(roots):
            ids = [caption[0], *[image_id] * count, *caption[1:]]
            labels = [False] * (count + 1) + [True] * (len(caption) - 1)
            pixels = torch.randn(3, round(count**0.5) * 8, round(count**0.5) * 8)
            sample = Sample(
                index, str(index), ["-"], [pixels], EncodedSequence(ids, labels, [(1, count + 1)]), image_id=index
            )
            if contrastive:
                sample.contrastive_image, sample.caption_roots = True, [caption]
                sample.hallucinated_roots, sample.caption_keys = hallucinated, [index]
                sample.hallucinated_types = [0] * len(hallucinated)
            made.append(sample)
        return made

    def place(batch):
        return {name: tensor.to(device) for name, tensor in batch.items()}

    backbone = build_backbone(arguments).to(device=device, dtype=getattr(torch, arguments.dtype))
    objective = ObjectiveConfig(num_hallucinated=arguments.hallucinated)
    packed = HaclModel(backbone, objective).to(device).train()
    plain = HaclModel(backbone, ObjectiveConfig(contrastive_weight=0.0, num_hallucinated=0)).train()
    packed_batch = place(PackedCollator(Encoder(), objective)(samples(True)))
    plain_batch = place(PackedCollator(Encoder(), plain.objective)(samples(False)))

    def step(model, batch):
        model.zero_grad(set_to_none=True)
        model(**batch).loss.backward()

    text_batches = []
    for kind in range(1 + arguments.hallucinated):
        rows = [torch.tensor(sample[kind]) for sample in roots]
        lengths = torch.tensor([len(row) for row in rows], device=device)
        text_batches.append((nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device), lengths))

    def four_calls():
        packed.zero_grad(set_to_none=True)
        adapter, heads, size = packed.adapter, packed.heads, arguments.batch_size
        batch = plain_batch
        projected = adapter.project(adapter.vision_features(batch["pixel_values"]))
        eos = adapter.embed(torch.full((size, 1), 2, device=device))
        calls = [torch.cat([projected, eos], dim=1), *[adapter.embed(ids) for ids, _ in text_batches]]
        ends = [torch.full((size,), count, device=device), *[lengths - 1 for _, lengths in text_batches]]
        pooled = []
        for embeds, end in zip(calls, ends, strict=True):
            positions = torch.arange(embeds.shape[1], device=device).expand(size, -1)
            states, _ = adapter.decode(embeds, None, positions)
            pooled.append(states[torch.arange(size, device=device), end])
        embeds = adapter.embed(batch["input_ids"])
        is_image = (batch["image_source"] >= 0)[..., None]
        flat = projected.flatten(0, 1)
        embeds = torch.where(is_image, flat[batch["image_source"].clamp_min(0)], embeds)
        states, _ = adapter.decode(embeds, None, batch["position_ids"])
        logits = adapter.logits(states)
        rows, columns = batch["label_read"].unbind(-1)
        language = token_losses(logits[rows, columns], batch["label_target"]).mean()
        table = packed_batch
        contrastive, _ = contrastive_loss(
            heads.project_image(pooled[0]),
            heads.project_text(pooled[1])[:, None],
            heads.project_text(torch.stack(pooled[2:], dim=1)),
            heads.log_inverse_temperature(),
            image_mask_B=table["image_valid"],
            caption_mask_BC=table["caption_valid"],
            hallucinated_mask_BK=table["hallucinated_valid"],
            image_ids_B=table["image_ids"],
            caption_keys_BC=table["caption_keys"],
        )
        (language + contrastive).backward()

    return {
        "sft": lambda: step(plain, plain_batch),
        "packed": lambda: step(packed, packed_batch),
        "four_calls": four_calls,
    }


def measure(arguments) -> dict:
    import torch
    import transformers
    from torch.utils.flop_counter import FlopCounterMode

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    variants = build_variants(arguments, device)
    flops = {}
    for name, run in variants.items():
        with FlopCounterMode(display=False) as counter:
            run()
        flops[name] = counter.get_total_flops()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(arguments.repeats):
        for name, run in variants.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    rows = {}
    for name, values in seconds.items():
        quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
        ratios = [value / base for value, base in zip(values, seconds["sft"], strict=True)]
        rows[name] = {
            "seconds_median": statistics.median(values),
            "seconds_quartiles": [quartiles[0], quartiles[2]],
            "flops": flops[name],
            "ratio_to_sft": statistics.median(ratios),
            "flop_ratio_to_sft": flops[name] / flops["sft"],
        }
    settings = {name: value for name, value in vars(arguments).items() if name != "out"}
    hardware = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }
    versions = {name: module.__version__ for name, module in (("torch", torch), ("transformers", transformers))}
    return {"settings": settings, "hardware": hardware, "versions": versions, "variants": rows}


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    result = measure(arguments)
    print(f"{'variant':<12}{'median s':>10}{'GFLOP':>10}{'x sft (time)':>14}{'x sft (FLOP)':>14}")
    for name, row in result["variants"].items():
        print(
            f"{name:<12}{row['seconds_median']:>10.3f}{row['flops'] / 1e9:>10.1f}"
            f"{row['ratio_to_sft']:>14.2f}{row['flop_ratio_to_sft']:>14.2f}"
        )
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
