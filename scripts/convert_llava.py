"""Go between folders of the original LLaVA code base (also HACL's, a fork of it) and folders that stock classes open.

examples:
  python scripts/convert_llava.py import llava-v1.5-7b --vision openai/clip-vit-large-patch14-336 --out llava-stock
  python scripts/convert_llava.py import pretrain/ --base vicuna-7b-v1.5 --out stage1-stock     (mm_projector.bin)
  python scripts/convert_llava.py import llava-lora/ --base vicuna-7b-v1.5 --out merged-stock   (LoRA is merged)
  python scripts/convert_llava.py export runs/stage1/model --out for-llava
  python scripts/convert_llava.py export runs/stage1/model --projector-only --out for-llava

Pickled weights are read as tensors alone; what is written is safetensors. docs/interchange.md says what is kept.
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
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("import", help="original folder to stock folder").add_argument
    add("folder", type=Path, help="original folder: whole model, mm_projector.bin, or LoRA matrices")
    add("--out", type=Path, required=True, help="stock folder to write")
    add("--vision", help="folder or hub id of the CLIP checkpoint (default: what the folder's config names)")
    add("--base", type=Path, help="folder of the language model, where the original folder has only what trained")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="default: that of the weights")
    add = commands.add_parser("export", help="stock folder to original folder").add_argument
    add("folder", type=Path, help="stock LLaVA folder, as scripts/export.py writes it")
    add("--out", type=Path, required=True, help="original folder to write")
    add("--vision-name", help="what mm_vision_tower will say (default: the OpenAI checkpoint of the tower's size)")
    add("--projector-only", action="store_true", help="only mm_projector.safetensors and config.json")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    try:
        if options.command == "import":
            import torch

            from hacl.training.interchange import import_original

            dtype = getattr(torch, options.dtype) if options.dtype else None
            summary = import_original(
                options.folder, options.out, vision=options.vision, base=options.base, dtype=dtype
            )
        else:
            from hacl.training.interchange import export_original

            summary = export_original(
                options.folder, options.out, vision_name=options.vision_name, projector_only=options.projector_only
            )
    except (ValueError, OSError) as error:
        print(f"convert_llava {options.command}: {error}", file=sys.stderr)
        return 2
    print(json.dumps(summary))
    print(f"written: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
