"""Write a LLaVA-1.5 model with random weights and a tokenizer trained on your texts; nothing is downloaded.

With it every recipe of configs/llava15_7b can be rehearsed before real weights are there: memory, speed, launchers,
checkpoints and resume do not depend on what the weights know.

Example:
  python scripts/make_random_llava.py --text captions.jsonl --out llava7b   # 7B, 14 GB of bf16 shards
  python scripts/make_random_llava.py --text captions.jsonl --out llava7b --config-only   # for train.py --dry-run
  python scripts/make_random_llava.py --text captions.jsonl --out small --layers 2 --vision-layers 4
  python train.py configs/llava15_7b/stage1.yaml model.path=llava7b data.path=captions.jsonl train.deepspeed=null
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="text file (JSONL too) the tokenizer is trained on")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model; must not hold one yet")
    parser.add_argument("--config-only", action="store_true", help="configuration and processor, no weights")
    parser.add_argument("--layers", type=int, default=32, help="decoder blocks (default 32)")
    parser.add_argument("--width", type=int, default=4096, help="hidden size, a multiple of 128 (default 4096)")
    parser.add_argument("--vision-layers", type=int, default=24, help="blocks of the vision tower (default 24)")
    parser.add_argument("--vision-width", type=int, default=1024, help="its width, a multiple of 64 (default 1024)")
    parser.add_argument("--pixels", type=int, default=336, help="side of the image, a multiple of 14 (default 336)")
    parser.add_argument("--vocabulary", type=int, default=32064, help="rows of the embedding (default 32064)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    from hacl.models.random_llava import Size, write_random_llava

    try:
        size = Size(
            layers=arguments.layers,
            width=arguments.width,
            vision_layers=arguments.vision_layers,
            vision_width=arguments.vision_width,
            pixels=arguments.pixels,
            vocabulary=arguments.vocabulary,
        )
        count = write_random_llava(
            arguments.out, size, _lines(arguments.text), weights=not arguments.config_only, seed=arguments.seed
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    what = "configuration and processor of" if arguments.config_only else "random weights of"
    print(f"{arguments.out}: {what} a LLaVA with {count:,} parameters")
    return 0


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as stream:
        yield from stream


if __name__ == "__main__":
    raise SystemExit(main())
