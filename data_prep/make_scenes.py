"""Write splits of the offline world (drawn scenes with exact ground truth) as PNG files and JSONL records.

    python data_prep/make_scenes.py --output scenes --split train --size 2000
    python data_prep/make_scenes.py --output coloured --split train --size 2000 --coloured 1 --placed 0
    python data_prep/make_scenes.py --output scenes --split test_broken --size 300 --benchmarks 100
    python scripts/evaluate.py --model M --benchmark pope,chair,caption_margin --data scenes/test_broken --out RUN \\
        --prompt chair=describe/scene --prompt caption_margin=describe/scene
"""

import argparse
from pathlib import Path


def main() -> None:
    from hacl.pocket.scenes import SPLITS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for images/ and one .jsonl per split")
    parser.add_argument("--split", action="append", choices=list(SPLITS), help="repeatable; default: all splits")
    parser.add_argument("--size", type=int, default=500, help="scenes per split")
    parser.add_argument("--captions", type=int, default=2, help="true captions per scene")
    parser.add_argument("--question-share", type=float, default=0.0, help="share of scenes with yes/no questions")
    parser.add_argument("--coloured", type=float, default=0.8, help="chance that a mention names its colour")
    parser.add_argument("--placed", type=float, default=0.4, help="chance of a sentence on where two things stand")
    parser.add_argument(
        "--benchmarks",
        type=int,
        metavar="N",
        help="write OUTPUT/SPLIT/ as scripts/evaluate.py reads it: CHAIR, caption margin, POPE for the first N scenes",
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.size < 1 or arguments.captions < 1:
        parser.error("--size and --captions must be at least 1")
    if not (0 <= arguments.coloured <= 1 and 0 <= arguments.placed <= 1):
        parser.error("--coloured and --placed are chances: between 0 and 1")
    own = ("captions", "question_share", "coloured", "placed")
    if arguments.benchmarks is not None and any(getattr(arguments, n) != parser.get_default(n) for n in own):
        parser.error(
            "--benchmarks writes captions of its own: leave "
            + ", ".join(f"--{n}" for n in own).replace("_", "-")
            + " out"
        )

    from tqdm import tqdm

    from hacl.pocket.build import build_split

    for split in arguments.split or SPLITS:
        if arguments.benchmarks is not None:
            from hacl.pocket.benchmarks import write_benchmarks

            print(
                write_benchmarks(
                    arguments.output,
                    split,
                    arguments.size,
                    seed=arguments.seed,
                    questions=arguments.benchmarks,
                    progress=lambda scenes, name=split: tqdm(scenes, desc=name, unit="scene"),
                )
            )
            continue
        path = build_split(
            arguments.output,
            split,
            arguments.size,
            seed=arguments.seed,
            captions=arguments.captions,
            question_share=arguments.question_share,
            style={"coloured": arguments.coloured, "placed": arguments.placed},
            progress=lambda scenes, name=split: tqdm(scenes, desc=name, unit="scene"),
        )
        print(path)


if __name__ == "__main__":
    main()
