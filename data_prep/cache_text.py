"""Compute the states of all captions and hallucinated captions once, for training with a frozen language model.

examples:
  before stage 1, once for all runs with this model, tokenizer, layer and pooling
    python data_prep/cache_text.py --config configs/llava15_7b/stage1.yaml --set data.path=captions.jsonl --output texts
    python train.py configs/llava15_7b/stage1.yaml data.path=captions.jsonl train.text_cache=texts
  on eight GPUs, each of which computes its share
    torchrun --nproc_per_node 8 data_prep/cache_text.py --config configs/llava15_7b/stage1.yaml \\
        --set data.path=captions.jsonl --output texts

The folder holds safetensors shards and meta.json, which names weights, tokenizer, form of the text, layer and pooling;
a run with any other refuses it. Run the same command again after a kill, or when records were added: only what is
missing is computed. Size: texts x hidden size x 2 bytes in bf16, 8 kB a text for a 7B model.
"""

import argparse
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="YAML of the training run")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override; repeatable")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="new, or of an earlier run")
    parser.add_argument("--batch-size", type=int, default=64, help="texts per forward pass (default 64)")
    arguments = parser.parse_args()
    if arguments.batch_size < 1:
        parser.error("--batch-size must be at least 1")
    try:
        return run(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 130


def run(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from hacl.config import load_config
    from hacl.training import runtime
    from hacl.training.cache_text import cache_texts

    config = load_config(arguments.config, arguments.set)
    first = runtime.rank() == 0
    report = cache_texts(
        config,
        arguments.output,
        batch=arguments.batch_size,
        progress=lambda texts: tqdm(texts, unit="text", disable=not first),
    )
    runtime.leave_group()
    if not first:
        return 0
    print(
        f"{arguments.output}: {report.texts} different texts, {report.kept} were there already, {report.computed} "
        f"computed; {report.bytes / 2**20:.1f} MiB"
    )
    print(f"next: train with train.text_cache={arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
