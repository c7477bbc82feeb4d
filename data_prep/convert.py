"""Convert caption collections to records: JSONL, one image per line.

examples:
  LLaVA's pre-training file, or instruction data
    python data_prep/convert.py --input llava_pretrain.json --output captions.jsonl
  the released HACL form ("Hallucination caption")
    python data_prep/convert.py --input hacl_stage1.json --output records.jsonl --format hacl
  the mini COCO collection, split by photograph into train, val and test
    python data_prep/convert.py --input coco-mini/annotations.jsonl --output coco --split 0.8,0.1,0.1

The form is told from the first record unless --format says it. Image paths stay as they are, relative to the image
root (for the mini COCO collection: the folder of its annotations). Keys that are not used, such as licence and origin
of a photograph, are kept.
"""

import argparse
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="a .jsonl file; with --split a folder")
    parser.add_argument("--format", choices=("coco-mini", "llava", "hacl"), help="default: told from the first record")
    parser.add_argument("--split", metavar="TRAIN,VAL,TEST", help="shares of the images, for example 0.8,0.1,0.1")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    parser.add_argument(
        "--captions",
        choices=("auto", "answers", "none"),
        default="auto",
        help="LLaVA data: are answers captions? auto: if every record is one question and one answer on one image",
    )
    arguments = parser.parse_args()
    try:
        shares = dict(zip(("train", "val", "test"), map(float, arguments.split.split(",")), strict=True))
    except (ValueError, AttributeError):
        shares = None
        if arguments.split is not None:
            parser.error(f"--split {arguments.split}: expected three shares such as 0.8,0.1,0.1")

    from hacl.data.convert import convert, split_by_image
    from hacl.data.records import write_records

    try:
        answers = {"auto": None, "answers": True, "none": False}[arguments.captions]
        records = convert(arguments.input, arguments.format, answers_are_captions=answers)
        parts = {None: records} if shares is None else split_by_image(records, shares, arguments.seed)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for part, chosen in parts.items():
        path = arguments.output if part is None else arguments.output / f"{part}.jsonl"
        write_records(path, chosen)
        print(f"{path}: {len(chosen)} records, {sum(len(record.captions) for record in chosen)} captions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
