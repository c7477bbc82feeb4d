"""Check files of records before training on them, in one parallel pass: every bad record is named, with what to do.

examples:
  form and texts
    python data_prep/validate.py hallucinated.jsonl
  also open every image below a folder
    python data_prep/validate.py hallucinated.jsonl --images coco/train2017
  also tokens against the limits of a run, and samples without a label
    python data_prep/validate.py hallucinated.jsonl --images coco/train2017 --config configs/llava15_7b/stage1.yaml
  see what a model reads and learns of a record, decoded, its labels in [[...]] (green on a terminal)
    python data_prep/validate.py hallucinated.jsonl --model llava-hf/llava-1.5-7b-hf --template chat
    python data_prep/validate.py hallucinated.jsonl --config configs/llava15_7b/stage1.yaml --example 139
  does the training file hold images of the validation file?
    python data_prep/validate.py train.jsonl --eval val.jsonl --images coco
  for a program to read
    python data_prep/validate.py train.jsonl val.jsonl --json report.json

Problems: JSON, keys and types, empty texts, duplicate ids, repeated captions of a record, hallucinated captions that
repeat or equal a caption or add an object that is annotated, spans, types, conversations without an answer or with
turns out of order, image marks, image paths; with --images each image exists below the folder, is of a sane size and
decodes; with --eval no image of the other file (path, or sha256 of its bytes); with --config or --model samples can be
built and at most the share data.max_unlabelled_fraction has no token to learn. Notes do not fail the check unless
--strict: records, captions and image files that occur twice, images that look like one of the other file, sequences and
captions that are cut, samples without a label, images that training moves to the front of a conversation.

The example is the first record that gives a sample, or the one of --example. Its first line counts tokens, tokens of
each image and labels; the second says how the labels were found: from the generation blocks of the chat template, or,
where it has none, from what each answer adds to the rendering. Read it once for every model: a wrong template shows.
Exit status: 0 nothing wrong, 1 something is, 2 the check could not run.
"""

import argparse
import json
import sys
from pathlib import Path


def main() -> int:
    from hacl.hallucinate.validate_options import add_reading_options, check_reading_options

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_reading_options(parser)
    parser.add_argument("--eval", type=Path, metavar="FILE", help="validation records whose images must not occur")
    parser.add_argument("--eval-images", type=Path, metavar="FOLDER", help="their image root (default: --images)")
    parser.add_argument("--max-errors", type=int, default=50, help="print at most so many per file (default 50)")
    parser.add_argument("--model", metavar="PATH", help="folder or hub id; short for --set model.path=PATH")
    parser.add_argument("--template", choices=("plain", "chat"), help="short for --set data.template=...")
    parser.add_argument("--example", metavar="ID", help="record to show with --model or --config (default: the first)")
    parser.add_argument("--strict", action="store_true", help="notes fail the check too")
    arguments = parser.parse_args()
    check_reading_options(parser, arguments, arguments.eval_images)
    for key, value in (("model.path", arguments.model), ("data.template", arguments.template)):
        arguments.set += [f"{key}={value}"] if value else []
    if arguments.example and not (arguments.config or arguments.set):
        parser.error("--example needs the model that reads it: --model or --config")
    try:
        return run(arguments)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(arguments: argparse.Namespace) -> int:
    from hacl.config import load_config
    from hacl.data.parallel import available_cores
    from hacl.hallucinate.validate import Seen, validate_file

    config = load_config(arguments.config, arguments.set) if arguments.config or arguments.set else None
    workers = arguments.workers or available_cores()
    against = None
    reports = []
    if arguments.eval is not None:
        against = Seen(arguments.eval)
        root = arguments.eval_images or arguments.images
        reports.append(validate_file(arguments.eval, image_root=root, config=config, seen=against, workers=workers))
    for file in arguments.files:
        options = {"image_root": arguments.images, "config": config, "against": against, "workers": workers}
        reports.append(validate_file(file, **options))
    shown = False
    for report in reports:
        for problem in [*report.problems, *report.notes][: arguments.max_errors]:
            print(problem)
        left = sum(report.problem_kinds.values()) + sum(report.note_kinds.values()) - arguments.max_errors
        if left > 0:
            print(f"... and {left} more (--max-errors, --json)")
        for line in report.lines():
            print(line)
        shown |= config is not None and show_example(Path(report.file), config, arguments)
    if arguments.json is not None:
        text = json.dumps([report.to_json() for report in reports], indent=1, ensure_ascii=False)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    if arguments.example and not shown:
        raise ValueError(f"no file has a record {arguments.example!r} that gives a sample")
    wrong = any(report.problem_kinds or (arguments.strict and report.note_kinds) for report in reports)
    return 1 if wrong else 0


def show_example(file: Path, config, arguments: argparse.Namespace) -> bool:
    """Print the example of a file, or why there is none; returns whether there was one."""
    from hacl.data.example import first_example
    from hacl.hallucinate.validate import images_of

    try:
        example = first_example(file, config, images_of(file, arguments.images, config), arguments.example)
    except ValueError as error:
        print(error)
        return False
    print(*example.lines(colour=sys.stdout.isatty()), sep="\n")
    return True


if __name__ == "__main__":
    sys.exit(main())
