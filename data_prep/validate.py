"""Check files of records before training on them: every bad record is named, with what to do.

examples:
  form and texts
    python data_prep/validate.py hallucinated.jsonl
  also open every image below a folder
    python data_prep/validate.py hallucinated.jsonl --images coco/train2017
  for a program to read
    python data_prep/validate.py train.jsonl val.jsonl --json report.json

Checked: JSON, keys and types, empty texts, duplicate ids, captions and hallucinated captions, hallucinated captions
that equal a caption or add an object that is annotated, spans, types, conversations without an answer or with turns out
of order, image marks, image paths; with --images also that each image exists below the folder, is of a sane size and
decodes. Exit status 1 if anything is wrong.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help=".jsonl files or .json lists of records")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="image root; every image is decoded")
    parser.add_argument("--max-errors", type=int, default=50, help="print at most so many per file (default 50)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole report there, all problems included")
    arguments = parser.parse_args()
    if arguments.images is not None and not arguments.images.is_dir():
        parser.error(f"--images {arguments.images}: no such folder")

    from hacl.hallucinate.audit import audit_file

    reports = []
    for file in arguments.files:
        try:
            report = audit_file(file, image_root=arguments.images)
        except FileNotFoundError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        reports.append(report)
        for problem in report.problems[: arguments.max_errors]:
            print(problem)
        if len(report.problems) > arguments.max_errors:
            print(f"... and {len(report.problems) - arguments.max_errors} more (--max-errors, --json)")
        types = ", ".join(f"{name} {count}" for name, count in report.hallucinated.most_common()) or "none"
        print(
            f"{file}: {report.records} records, {report.captions} captions, hallucinated captions: {types}; "
            f"{report.without_hallucinated} captioned records without one"
        )
        kinds = Counter(problem.kind for problem in report.problems)
        print(f"{file}: " + (", ".join(f"{kind} {count}" for kind, count in kinds.most_common()) or "no problems"))
    if arguments.json is not None:
        text = json.dumps([report.to_json() for report in reports], indent=1, ensure_ascii=False)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    return 1 if any(report.problems for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
