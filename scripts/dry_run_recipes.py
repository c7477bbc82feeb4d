"""Plan every training recipe at full size on the meta device: parameters, memory by ZeRO stage, arithmetic, hours.

No weights are loaded and nothing is downloaded; the shapes are those of the papers' models. Lengths of texts are those
of the records that you give. Stage 2 of LLaVA is planned twice: on these captions, and on sequences of data.max_length,
the longest there can be. Its own instruction records lie between.

Examples:
  python scripts/dry_run_recipes.py --records hallucinated.jsonl --images images
  python scripts/dry_run_recipes.py --records hallucinated.jsonl --images images --only llava_v1 --out plan.json
  python scripts/dry_run_recipes.py --table benchmarks/recipes_dry_run.json   # the table of docs/reproduce.md
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--records", type=Path, help="captions with hallucinated captions (data_prep/make_hallucinations.py)")
    add("--images", type=Path, help="their image folder")
    add("--only", nargs="+", default=[], help="folders of configs/, or FOLDER/RECIPE (default: every training recipe)")
    add("--peak-tflops", type=float, default=312.0, help="of a GPU; default: %(default)s (A100 in bf16)")
    add(
        "--ranks", type=int, default=8, choices=(1, 2, 4, 8, 16), help="GPUs of the memory column; default: %(default)s"
    )
    add("--out", type=Path, help="write the plans as JSON")
    add("--table", type=Path, metavar="FILE", help="print the table of such a file and end")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    try:
        from hacl.training import recipes

        if options.table:
            print(recipes.table(json.loads(options.table.read_text(encoding="utf-8"))["recipes"]))
            return 0
        if options.records is None or options.images is None:
            raise ValueError("--records and --images are needed: they say how long texts are")
        chosen = recipes.find(ROOT / "configs", options.only)
        rows = []
        with tempfile.TemporaryDirectory() as folder:
            for recipe in chosen:
                print(f"{recipe.name} ...", file=sys.stderr, flush=True)
                rows += recipes.plan(
                    recipe, options.records, options.images, Path(folder), peak=options.peak_tflops, ranks=options.ranks
                )
        content = {"settings": recipes.settings(options.records, options.peak_tflops, options.ranks), "recipes": rows}
        if options.out:
            options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(recipes.table(rows))
    except (ValueError, OSError) as error:
        print(f"dry_run_recipes: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
