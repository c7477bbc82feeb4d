"""Count what files of records hold, and predict what training on them costs, in one parallel pass.

examples:
  lengths, types, objects
    python data_prep/stats.py hallucinated.jsonl
  also sizes of the images
    python data_prep/stats.py hallucinated.jsonl --images coco/train2017
  also tokens, how tightly they pack, and the arithmetic of a step and an epoch (no weights are loaded)
    python data_prep/stats.py hallucinated.jsonl --images coco/train2017 --config configs/llava15_7b/stage1.yaml

Packing: share of the places of a packed micro-batch that hold a token, mean over 50 micro-batches drawn from 2,000
samples of the file's beginning. Cost: one micro-batch of records drawn from the whole file, as `train.py --dry-run`
predicts it. Records that cannot be read are left out and counted; data_prep/validate.py names them.
"""

import argparse
import json
import sys
from pathlib import Path


def main() -> int:
    from hacl.hallucinate.validate_options import add_reading_options, check_reading_options

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_reading_options(parser)
    arguments = parser.parse_args()
    check_reading_options(parser, arguments)
    try:
        return run(arguments)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(arguments: argparse.Namespace) -> int:
    from hacl.config import load_config
    from hacl.data.parallel import available_cores
    from hacl.hallucinate.validate import validate_file
    from hacl.hallucinate.validate_report import distribution_table

    config = load_config(arguments.config, arguments.set) if arguments.config or arguments.set else None
    rows = []
    for file in arguments.files:
        workers = arguments.workers or available_cores()
        report = validate_file(file, image_root=arguments.images, config=config, workers=workers)
        for line in report.lines():
            print(line)
        print(*distribution_table(report.histograms), sep="\n")
        row = report.to_json()
        for key in ("problems", "notes"):
            del row[key]
        if config is not None and report.sample_lengths:
            row["cost"] = cost(arguments, config, file, report)
        rows.append(row)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


def cost(arguments: argparse.Namespace, config, file: Path, report) -> dict:
    """Predict packing and arithmetic, and print them."""
    from hacl.data.draw import draw_records
    from hacl.training.data_cost import data_cost

    records = draw_records(file, config.train.per_device_batch_size) if arguments.images is not None else ()
    found = data_cost(config, report.sample_lengths, report.records, records=records, image_root=arguments.images)
    print(
        f"packing: {found.packing:.1%} of the places hold a token ({found.unpacked:.1%} with a row per sequence); "
        f"a micro-batch of {found.batch_size} samples is {found.rows:.1f} rows of {found.columns:.0f} tokens"
    )
    if found.tflops_per_step is None:
        print("step cost: give --images to predict it")
    else:
        print(
            f"step cost: {found.tflops_per_step:.4g} TFLOP per micro-batch, {found.steps} micro-batches per epoch: "
            f"{found.tflops_per_epoch:.4g} TFLOP"
        )
    return found.to_json()


if __name__ == "__main__":
    sys.exit(main())
