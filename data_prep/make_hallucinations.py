"""Add hallucinated captions (close in wording, wrong about the image) to records, offline and resumably.

examples:
  three hallucinated captions for each caption
    python data_prep/make_hallucinations.py --input captions.jsonl --output hallucinated.jsonl
  one per image, of the types that wording alone betrays least
    python data_prep/make_hallucinations.py --input captions.jsonl --output subtle.jsonl \\
        --num-hallucinated 1 --captions-per-image 1 --types object,action,attribute
  look at a few before the long run
    python data_prep/make_hallucinations.py --input captions.jsonl --output try.jsonl --limit 20

With --captions-per-image N the first N captions that offer an edit are used; one that offers none is passed over.
Run the same command again after an interrupt: it goes on where it ended. The result is a function of input and seed.
Records may be JSONL or a JSON list, in this project's form or that of the HACL and LLaVA files. Annotated objects
("objects": {"dog": 1}) and several captions per image make it rarer that a hallucinated caption happens to be true.
"""

import argparse
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="records with captions")
    parser.add_argument("--output", type=Path, required=True, help="JSONL to write or to go on with")
    parser.add_argument("--num-hallucinated", type=int, default=3, metavar="K", help="per caption (default 3)")
    parser.add_argument("--types", help="comma-separated; default: every type the generator knows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--captions-per-image", type=int, metavar="N", help="only so many (default: all)")
    parser.add_argument("--limit", type=int, help="only the first so many records")
    parser.add_argument("--overwrite", action="store_true", help="start again instead of going on")
    arguments = parser.parse_args()
    for name in ("num_hallucinated", "captions_per_image", "limit"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if arguments.output.suffix == ".json":
        parser.error("--output is written line by line: give it the ending .jsonl")
    try:
        return run(arguments)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def run(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from hacl.hallucinate.annotate import annotate, survey
    from hacl.hallucinate.generators import make_hallucinator

    types = sorted(set(arguments.types.split(","))) if arguments.types else None
    summary = survey(arguments.input)
    generator = make_hallucinator("lexical", seed=arguments.seed, types=types, cooccurrence=summary.cooccurrence)
    settings = {
        "generator": "lexical",
        "seed": arguments.seed,
        "num_hallucinated": arguments.num_hallucinated,
        "types": types,
        "captions_per_image": arguments.captions_per_image,
        "input_sha256": summary.digest,
    }
    total = min(summary.records, arguments.limit or summary.records)
    report = annotate(
        arguments.input,
        arguments.output,
        generator,
        num_hallucinated=arguments.num_hallucinated,
        captions_per_image=arguments.captions_per_image,
        limit=arguments.limit,
        settings=settings,
        overwrite=arguments.overwrite,
        progress=lambda records, _: tqdm(records, total=total, unit="record"),
    )
    made = sum(report.types.values())
    print(f"{arguments.output}: {report.records} records written, {report.resumed} were there already")
    print(f"{made} hallucinated captions for {report.captions} captions")
    print("by type:   " + (", ".join(f"{name} {count}" for name, count in report.types.most_common()) or "none"))
    print("rejected:  " + (", ".join(f"{why} {count}" for why, count in generator.rejections.most_common()) or "none"))
    short = [f"{count} with {number}" for number, count in sorted(report.fewer.items())]
    print(f"captions with fewer than {arguments.num_hallucinated}: {', '.join(short) or 'none'}")
    if report.without:
        print(
            f"captioned records without any: {report.without} of {report.resumed + report.records}; remove them, write "
            "some by hand, or train with data.allow_missing_hallucinated=SHARE, the largest share of them to accept"
        )
    if report.stopped:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
