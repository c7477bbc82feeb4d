"""Go between folders of the original LLaVA code base (also HACL's, a fork of it) and folders that stock classes open.

`join` makes the checkpoint that stage 1 starts from, `tower` a stock CLIP tower of an open_clip checkpoint.

examples:
  python scripts/convert_llava.py import llava-v1.5-7b --vision openai/clip-vit-large-patch14-336 --out llava-stock
  python scripts/convert_llava.py import pretrain/ --base vicuna-7b-v1.5 --out stage1-stock     (mm_projector.bin)
  python scripts/convert_llava.py import llava-lora/ --base vicuna-7b-v1.5 --out merged-stock   (LoRA is merged)
  python scripts/convert_llava.py export runs/stage1/model --out for-llava
  python scripts/convert_llava.py export runs/stage1/model --projector-only --out for-llava
  python scripts/convert_llava.py join vicuna-7b-v1.5 --vision openai/clip-vit-large-patch14-336 --out untrained
  python scripts/convert_llava.py join vicuna-7b-v1.3 --vision openai/clip-vit-large-patch14 --projector linear \\
      --out untrained-v1
  python scripts/convert_llava.py tower CLIP-ViT-L-14-laion2B-s32B-b82K --out laion-tower
  python scripts/convert_llava.py tower epoch_32.pt --architecture ViT-B-32 --out own-tower

Pickled weights are read as tensors alone; what is written is safetensors. docs/interchange.md says what is kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DTYPES = ("float32", "bfloat16", "float16")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("import", help="original folder to stock folder").add_argument
    add("folder", type=Path, help="original folder: whole model, mm_projector.bin, or LoRA matrices")
    add("--out", type=Path, required=True, help="stock folder to write")
    add("--vision", help="folder or hub id of the CLIP checkpoint (default: what the folder's config names)")
    add("--base", type=Path, help="folder of the language model, where the original folder has only what trained")
    add("--dtype", choices=DTYPES, help="default: that of the weights")
    add = commands.add_parser("export", help="stock folder to original folder").add_argument
    add("folder", type=Path, help="stock LLaVA folder, as scripts/export.py writes it")
    add("--out", type=Path, required=True, help="original folder to write")
    add("--vision-name", help="what mm_vision_tower will say (default: the OpenAI checkpoint of the tower's size)")
    add("--projector-only", action="store_true", help="only mm_projector.safetensors and config.json")
    add = commands.add_parser("join", help="language model and CLIP tower to stock folder").add_argument
    add("llm", type=Path, help="folder of a Llama (Vicuna) with its tokenizer")
    add("--vision", required=True, help="folder or hub id of a stock CLIP checkpoint")
    add("--out", type=Path, required=True, help="stock folder to write")
    add("--projector", choices=("mlp2x_gelu", "linear"), default="mlp2x_gelu", help="default: %(default)s (LLaVA-1.5)")
    add("--feature", choices=("patch", "cls_patch"), default="patch", help="tokens of the tower; default: %(default)s")
    add("--layer", type=int, default=-2, help="of the tower's states; default: %(default)s, as LLaVA")
    add(
        "--aspect",
        choices=("square", "pad"),
        default="square",
        help="pad images to squares, or not; default: %(default)s",
    )
    add("--seed", type=int, default=0, help="of the projector's weights; default: %(default)s")
    add("--dtype", choices=DTYPES, help="default: that of the language model")
    add = commands.add_parser("tower", help="open_clip checkpoint to stock CLIP tower").add_argument
    add("source", type=Path, help="folder with open_clip_config.json and weights, or a weight file")
    add("--architecture", help="of a weight file alone: one of open_clip.list_models(), as ViT-L-14")
    add("--out", type=Path, required=True, help="stock folder to write")
    return parser.parse_args(argv)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The command's work; returns its summary."""
    if options.command == "export":
        from hacl.training.interchange import export_original

        return export_original(
            options.folder, options.out, vision_name=options.vision_name, projector_only=options.projector_only
        )
    from hacl.training import join

    if options.command == "tower":
        return join.convert_tower(options.source, options.out, architecture=options.architecture)
    import torch

    dtype = getattr(torch, options.dtype) if options.dtype else None
    if options.command == "join":
        names = ("projector", "feature", "layer", "aspect", "seed")
        chosen = {name: getattr(options, name) for name in names}
        return join.join(options.llm, options.vision, options.out, dtype=dtype, **chosen)
    from hacl.training.interchange import import_original

    return import_original(options.folder, options.out, vision=options.vision, base=options.base, dtype=dtype)


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    try:
        summary = run(options)
    except (ValueError, OSError) as error:
        print(f"convert_llava {options.command}: {error}", file=sys.stderr)
        return 2
    print(json.dumps(summary))
    print(f"written: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
