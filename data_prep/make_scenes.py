"""Write splits of the offline world (drawn scenes with exact ground truth) as PNG files and JSONL records."""

import argparse
from pathlib import Path


def main() -> None:
    from hacl.pocket.scenes import SPLITS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for images/ and one .jsonl per split")
    parser.add_argument("--split", action="append", choices=list(SPLITS), help="repeatable; default: all splits")
    parser.add_argument("--size", type=int, default=500, help="scenes per split")
    parser.add_argument("--captions", type=int, default=2, help="true captions per scene")
    parser.add_argument("--question-share", type=float, default=0.0, help="share of scenes with yes/no questions")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.size < 1 or arguments.captions < 1:
        parser.error("--size and --captions must be at least 1")

    from tqdm import tqdm

    from hacl.pocket.build import build_split

    for split in arguments.split or SPLITS:
        path = build_split(
            arguments.output,
            split,
            arguments.size,
            seed=arguments.seed,
            captions=arguments.captions,
            question_share=arguments.question_share,
            progress=lambda scenes, name=split: tqdm(scenes, desc=name, unit="scene"),
        )
        print(path)


if __name__ == "__main__":
    main()
