"""Measure the lexical generator: yield against leak on captions its choice has not seen, and the tables of the docs.

examples:
  the curve over the strength of balancing, three splits by photograph
    python data_prep/measure_generator.py --input coco-mini/annotations.jsonl --seeds 3 --strengths 0,0.5,0.75,1
  with the naive swap beside it, as Markdown for docs/hallucinated_captions.md
    python data_prep/measure_generator.py --input coco-mini/annotations.jsonl --naive --markdown curve.md

Half of the photographs (by hash) give survey, phrases and weights; captions of the other half are chosen and probed
with TF-IDF and length; then the halves change places. A large file is nearer to this than to a figure of captions that
the weights were fitted on.
"""

import argparse
import json
import sys
import time
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--input", type=Path, required=True, help="records, or COCO captions as data_prep/convert.py reads"
    )
    parser.add_argument("--num-hallucinated", type=int, default=4, metavar="K", help="per caption (default 4)")
    parser.add_argument("--seeds", type=int, default=3, help="splits, each judged both ways (default 3)")
    parser.add_argument("--strengths", default="0,0.75", help="of the weights, comma-separated (default 0,0.75)")
    parser.add_argument("--tagger", default="rules", help="rules or spacy")
    parser.add_argument("--spacy-pipeline", default="en_core_web_sm")
    parser.add_argument("--naive", action="store_true", help="also the naive swap, unbalanced")
    parser.add_argument("--limit", type=int, help="only the first so many records")
    parser.add_argument("--json", type=Path, help="write the figures")
    parser.add_argument("--markdown", type=Path, help="write the tables")
    arguments = parser.parse_args()
    try:
        return run(arguments)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def run(arguments: argparse.Namespace) -> int:
    from hacl.data.convert import convert
    from hacl.hallucinate import make_hallucinator
    from hacl.hallucinate.held_out import held_out

    strengths = [float(part) for part in arguments.strengths.split(",")]
    records = list(convert(arguments.input))[: arguments.limit]
    options = {"tagger": arguments.tagger}
    if arguments.tagger == "spacy":
        options["spacy_pipeline"] = arguments.spacy_pipeline
    wanted = {"seeds": range(arguments.seeds), "k": arguments.num_hallucinated}
    started = time.process_time()
    rows = [
        (f"balanced, strength {row.strength:g}", row)
        for row in held_out(
            records,
            lambda survey: make_hallucinator("lexical", survey=survey, **options),
            strengths=strengths,
            **wanted,
        )
    ]
    if arguments.naive:
        naive = held_out(records, lambda survey: make_hallucinator("naive", survey=survey), strengths=[0.0], **wanted)
        rows += [("naive swap", row) for row in naive]
    kinds = sorted({kind for _, row in rows for kind in row.by_type})
    lines = [
        f"| choice | yield | AUC [range of {rows[0][1].splits} halves] | paired | {' | '.join(kinds)} |",
        "| --- | --- | --- | --- |" + " --- |" * len(kinds),
    ]
    for name, row in rows:
        each = " | ".join(f"{row.by_type[kind]:.2f}" if kind in row.by_type else "" for kind in kinds)
        spread = f"{row.auc:.3f} [{row.low:.3f}, {row.high:.3f}]"
        lines.append(f"| {name} | {row.complete:.1%} | {spread} | {row.paired:.3f} | {each} |")
    print("\n".join(lines))
    print(f"{time.process_time() - started:.0f} s of one core")
    if arguments.json is not None:
        content = [{"choice": name, **row.to_json()} for name, row in rows]
        arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if arguments.markdown is not None:
        arguments.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
