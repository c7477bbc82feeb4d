"""Score predictions that are there already: no model, no network, no torch.

  python scripts/score.py BENCHMARK --predictions FILE [--references PATH] [--option value] --json OUT [--items OUT]
  python scripts/score.py BENCHMARK --help        fields, options and an example of one benchmark

Predictions are a JSONL file (read as a stream) or a JSON array, UTF-8. They are joined to the references by id, so the
order of lines does not matter. The report names metrics, 95% intervals over images, options, and the sha256 of every
input; a ratio of 0/0 is null with a warning. Exit status: 0 scored, 2 the inputs do not fit (missing, repeated or
unknown ids, a wrong field or option).
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import sys
from pathlib import Path

EXAMPLES = {
    "pope": """
  python scripts/score.py pope --predictions answers.jsonl --references coco_pope_random.json --json report.json
    answers.jsonl:  {"question_id": 1, "answer": "Yes, there is a snowboard."}
  the same answers as OPERA and PAI read them, and with replies that are neither yes nor no reported:
    ... --parser opera        ... --parser strict""",
    "chair": """
  python scripts/score.py chair --predictions captions.jsonl --references annotations/ --dialect pattern --json out.json
    captions.jsonl: {"image_id": 458755, "caption": "A dog sits on a bench."}
    annotations/:   the four 2014 files of COCO (instances and captions, train and val), or a JSON object cache""",
    "amber": """
  python scripts/score.py amber --predictions responses.json --references AMBER/data --nouns nouns.jsonl \\
      --similarity table:similar.json --rounding official --answer-parser exact --json report.json
    responses.json: [{"id": 1, "response": "A beach with a dog."}, {"id": 1005, "response": "Yes"}]""",
    "mmhal": """
  python scripts/score.py mmhal --predictions reviews.jsonl --judge-parser official --json report.json
    reviews.jsonl:  {"index": 0, "review": "... Rating: 4, somewhat informative, no hallucination"}   96 of them""",
    "mme": """
  python scripts/score.py mme --predictions answers.jsonl --json report.json
    answers.jsonl:  {"category": "existence", "question_id": "existence/0006.png", "answer": "Yes", "prediction": "yes"}
    two rows for each image, one with the gold answer yes and one with no""",
    "sugarcrepe": """
  python scripts/score.py sugarcrepe --predictions scores.jsonl --json report.json
    scores.jsonl:   {"subset": "swap_att", "index": 0, "pos_score": 0.31, "neg_score": 0.29}""",
    "mm_safety": """
  python scripts/score.py mm_safety --predictions replies.jsonl --judge verdicts.jsonl --json report.json
    replies.jsonl:  {"id": "01-0", "scenario": "01-Illegal_Activitiy", "response": "I cannot help with that."}
    verdicts.jsonl: {"id": "01-0", "unsafe_probability": 0.02}""",
    "creative": """
  python scripts/score.py creative --predictions stories.jsonl --json report.json
    stories.jsonl:  {"id": 1, "group": "prompt-1", "response": "Once a lighthouse learned to swim."}""",
    "clip_score": """
  python scripts/score.py clip_score --predictions captions.jsonl --images photos/ --model FOLDER --json report.json
    captions.jsonl: {"image_id": 7, "image": "7.jpg", "caption": "A dog on a bench."}""",
}


def build_parser(benchmarks: list[str], benchmark: str | None) -> argparse.ArgumentParser:
    """The command line; with a benchmark, its own options and example."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("benchmark", choices=benchmarks, help=", ".join(benchmarks), metavar="BENCHMARK")
    parser.add_argument("--predictions", required=True, metavar="FILE", help="JSONL file or JSON array")
    parser.add_argument(
        "--references", nargs="+", metavar="PATH", help="ground-truth file(s) or folder, upstream layout"
    )
    parser.add_argument("--json", metavar="OUT", help="write the report here")
    parser.add_argument(
        "--items", metavar="OUT.jsonl", help="write one JSON object per prediction here, in input order"
    )
    parser.add_argument("--tables", action="store_true", help="put sums by image into the report, for --compare")
    parser.add_argument("--allow-missing", action="store_true", help="score what is there, list the rest in warnings")
    parser.add_argument(
        "--zero-division",
        nargs="?",
        type=float,
        const=0.0,
        metavar="VALUE",
        help="value in place of null for 0/0 (0 if only the flag is given)",
    )
    if benchmark is None:
        parser.epilog = "examples:" + "\n".join(EXAMPLES.values())
        return parser
    from hacl.evaluation.scorers import scorer_class

    kind = scorer_class(benchmark)
    own = parser.add_argument_group(f"options of {benchmark}")
    for option in kind.options:
        default = "" if option.default is None else f" (default: {option.default})"
        text = (option.help + default).replace("%", "%%")
        if option.kind is bool:
            own.add_argument(option.flag, action="store_true", dest=option.name, help=text)
            continue
        shown = "|".join(option.choices) if option.choices else option.name.upper()
        own.add_argument(
            option.flag, type=option.kind, default=option.default, choices=option.choices or None, metavar=shown,
            dest=option.name, help=text,
        )  # fmt: skip
    example = f"\n\nexample:{EXAMPLES[benchmark]}" if benchmark in EXAMPLES else ""
    parser.epilog = f"{benchmark}: {inspect.getdoc(kind)}{example}"
    return parser


def main(arguments: list[str] | None = None) -> int:
    from hacl.evaluation.scorers import SCORERS

    given = sys.argv[1:] if arguments is None else arguments
    benchmark = next((word for word in given if word in SCORERS), None)
    options = vars(build_parser(list(SCORERS), benchmark).parse_args(given))
    try:
        return run(options)
    except (ValueError, OSError) as error:
        print(f"score: {error}", file=sys.stderr)
        return 2


def run(options: dict) -> int:
    """Score, write what was asked for, print the metrics."""
    from hacl.evaluation.scorers import score_to

    taken = ("benchmark", "predictions", "references", "json", "items", "tables")
    benchmark, predictions, references, report_path, items_path, tables = (options.pop(name) for name in taken)
    if references is not None and len(references) == 1:
        references = references[0]
    if items_path is None:
        report = score_to(None, benchmark, predictions, references, **options)
    else:
        partial = Path(items_path + ".partial")  # a refused run leaves no file that looks complete
        try:
            with partial.open("w", encoding="utf-8", errors="backslashreplace") as file:

                def write(item: dict) -> None:
                    file.write(json.dumps(item, ensure_ascii=False) + "\n")

                report = score_to(write, benchmark, predictions, references, **options)
            os.replace(partial, items_path)
        finally:
            partial.unlink(missing_ok=True)
    if report_path is not None:
        content = report.to_json(items=False, tables=tables)
        text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
        Path(report_path).write_text(text, encoding="utf-8", errors="backslashreplace")  # half a surrogate pair
    print_report(report)
    for path in filter(None, (report_path, items_path)):
        print(f"written: {path}")
    return 0


def print_report(report) -> None:
    """Metrics with their intervals and groups on standard output, warnings on standard error."""
    for name, value in report.metrics.items():
        interval = report.intervals.get(name)
        print(f"{name:24} {_shown(value)}" + (f"  [{_shown(interval[0])}, {_shown(interval[1])}]" if interval else ""))
    for group, metrics in report.groups.items():
        print(f"{group:24} " + "  ".join(f"{name} {_shown(value)}" for name, value in metrics.items()))
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _shown(value: float | None) -> str:
    return "null" if value is None else str(value) if isinstance(value, int) else f"{value:.4f}"


if __name__ == "__main__":
    sys.exit(main())
