"""Count what the ranks of a run exchange per optimizer step, by ZeRO stage and number of GradCache chunks.

Runs two steps of a random LLaVA for each case and reads DeepSpeed's communication logger. Figures are model sizes: they
do not depend on how large the model is or how many ranks there are.

Example:
  torchrun --standalone --nproc_per_node 2 scripts/count_traffic.py --out traffic_zero3.json
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path

ALL = ["model.preset=stage1-llm", "model.learning_rate.vision=1e-3"]
PROJECTOR = ["model.preset=stage1"]
LORA = [
    "model.preset=stage2-lora",
    "model.lora.rank=8",
    "objective.contrastive_weight=1",
    "objective.num_hallucinated=1",
]
LORA += ["model.learning_rate.heads=1e-3", "data.template=plain"]
ONCE = ["train.reduce_once=true"]
# name, settings, ZeRO stage, chunks, GradCache, decoder calls
CASES = [
    *[("all weights train", ALL, stage, 1, False, 1) for stage in (0, 1, 2, 3)],
    *[("all weights train", ALL, stage, 4, False, 1) for stage in (0, 1, 2, 3)],
    *[("all weights train", ALL, 3, chunks, True, 1) for chunks in (2, 3, 4)],
    *[("all weights train", ALL, stage, 4, True, 1) for stage in (1, 2)],
    *[("projector and heads train", PROJECTOR, 3, chunks, chunks > 1, 1) for chunks in (1, 4)],
    *[("LoRA trains", LORA, 3, chunks, chunks > 1, 1) for chunks in (1, 4)],
    *[("all, reduced once", ALL + ONCE, 3, chunks, True, 1) for chunks in (2, 3, 4)],
    *[("all, reduced once", ALL + ONCE, stage, 4, False, 1) for stage in (2, 3)],
    ("all weights train", ALL, 3, 1, False, 4),
]


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512, help="hidden size of the random model (default 512)")
    parser.add_argument("--out", type=Path, default=None, help="write the JSON here as well as to the screen")
    return parser.parse_args(argv)


def write_records(folder: Path, count: int = 40) -> Path:
    """Plain pictures with a caption and a hallucinated one."""
    from PIL import Image

    draw, lines = random.Random(0), []
    for index in range(count):
        colour, other = draw.sample(["red", "green", "blue", "yellow"], 2)
        Image.new("RGB", (32, 32), colour).save(folder / f"{index}.png")
        hallucinated = {"text": f"a {other} square", "type": "attribute"}
        record = {"id": str(index), "image": f"{index}.png", "captions": [f"a {colour} square"]}
        lines.append(json.dumps(record | {"hallucinated": [hallucinated]}))
    path = folder / "records.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    from hacl.config import load_config
    from hacl.models.identity import hardware
    from hacl.models.random_llava import Size, write_random_llava
    from hacl.training import runtime
    from hacl.training.traffic import count_step

    rows = []
    with tempfile.TemporaryDirectory() as temporary:  # of this rank alone
        folder = Path(temporary)
        records = write_records(folder)
        size = Size(layers=2, width=arguments.width, vision_layers=2, vision_width=64, pixels=28, vocabulary=512)
        parameters = write_random_llava(folder / "model", size, records.read_text().splitlines())
        runtime.join_group()  # only now: in a group rank 0 alone saves a model
        for name, settings, stage, chunks, cached, calls in CASES:
            overrides = [
                f"model.path={folder / 'model'}",
                f"data.path={records}",
                *settings,
                "train.cache_text_states=false",
                "train.per_device_batch_size=2",
                f"train.gradient_accumulation_steps={chunks}",
                f"train.grad_cache={str(cached).lower()}",
                f"train.deepspeed={stage}",
            ]
            counted = count_step(load_config(None, overrides), folder, calls=calls)
            case = {"what": name, "zero": stage, "chunks": chunks, "grad_cache": cached, "decoder_calls": calls}
            rows.append(case | vars(counted) | {"on_the_wire": counted.on_the_wire})
    if runtime.rank() == 0:
        show(rows)
        about = {"ranks": runtime.world_size(), "parameters": parameters, **hardware("cpu")}
        if arguments.out is not None:
            arguments.out.write_text(json.dumps({**about, "unit": "model sizes", "steps": rows}, indent=1) + "\n")
    runtime.leave_group()
    return 0


def show(rows: list[dict]) -> None:
    print(f"{'':<26} ZeRO chunks GradCache calls  gathered scattered all-reduced  wire  feature bytes")
    for row in rows:
        print(
            f"{row['what']:<26} {row['zero']:>4} {row['chunks']:>6} {'yes' if row['grad_cache'] else 'no':>9} "
            f"{row['decoder_calls']:>5} {row['gathered']:>9.2f} {row['scattered']:>9.2f} {row['all_reduced']:>11.2f} "
            f"{row['on_the_wire']:>5.2f} {row['feature_bytes']:>14,}"
        )


if __name__ == "__main__":
    status = main()
    from hacl.training.runtime import end_process

    end_process(status)
