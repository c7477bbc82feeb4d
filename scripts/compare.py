"""Compare an original model with its tuned version: concepts, shift vectors, training-free recovery.

python scripts/compare.py --original A --tuned B --records R.jsonl --image-root IMAGES --out OUT
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def coco() -> dict[str, str]:
    from hacl.evaluation.coco_objects import coco_vocabulary

    return coco_vocabulary()


def pocket() -> dict[str, str]:
    from hacl.pocket.world import object_vocabulary

    return object_vocabulary()


def main(argv: Sequence[str] | None = None) -> int:
    from hacl.compare.arguments import parse

    options = parse(sys.argv[1:] if argv is None else argv)
    from hacl.compare.command import execute
    from hacl.report.comparison import write_comparison

    try:
        return execute(options, {"coco": coco, "pocket": pocket}, write_comparison)
    except (ValueError, OSError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
