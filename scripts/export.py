"""Write a training checkpoint as a folder that stock `transformers` opens, with processor and model card.

Example: python scripts/export.py --checkpoint runs/stage1/checkpoint-2180 --out runs/stage1/model
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint-N of a run, or the run folder")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not exist")
    parser.add_argument("--base", default=None, help="folder of the base checkpoint, if it moved since training")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: as the base checkpoint")
    parser.add_argument("--metrics", type=Path, help="JSON object of further numbers for the model card")
    parser.add_argument("--no-verify", action="store_true", help="skip the reload in a fresh process")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    from hacl.training.export import export_checkpoint, find_checkpoint

    try:
        checkpoint, why = find_checkpoint(arguments.checkpoint)
        print(f"checkpoint {checkpoint} ({why})", flush=True)
        metrics = json.loads(arguments.metrics.read_text(encoding="utf-8")) if arguments.metrics else None
        out = export_checkpoint(
            checkpoint,
            arguments.out,
            base=arguments.base,
            dtype=arguments.dtype,
            metrics=metrics,
            verify=not arguments.no_verify,
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"exported {checkpoint} to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
