"""Make a folder that stock classes open of MiniGPT-4's parts: BLIP-2's tower and Q-Former, Vicuna, one linear map.

examples:
  python scripts/convert_minigpt4.py --blip2 blip2-flan-t5-xxl --llm vicuna-7b-v0 \\
      --projection prerained_minigpt4_7b.pth --out minigpt4-7b
  python scripts/convert_minigpt4.py --blip2 blip2-flan-t5-xxl --llm vicuna-7b-v0 --out minigpt4-untrained

Without --projection the map is new: where stage 1 starts. Pickled weights are read as tensors alone; what is written is
safetensors. docs/interchange.md says what is kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--blip2", type=Path, required=True, help="folder of a stock BLIP-2 checkpoint with its processor")
    add("--llm", type=Path, required=True, help="folder of a Llama (Vicuna v0) with its tokenizer")
    add("--projection", type=Path, help="MiniGPT-4's checkpoint (.pth); default: a new linear map")
    add("--out", type=Path, required=True, help="stock folder to write")
    add("--seed", type=int, default=0, help="of a new map; default: %(default)s")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="default: that of the language model")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    try:
        import torch

        from hacl.training.minigpt4 import compose

        dtype = getattr(torch, options.dtype) if options.dtype else None
        summary = compose(
            options.blip2, options.llm, options.out, projection=options.projection, seed=options.seed, dtype=dtype
        )
    except (ValueError, OSError) as error:
        print(f"convert_minigpt4: {error}", file=sys.stderr)
        return 2
    print(json.dumps(summary))
    print(f"written: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
