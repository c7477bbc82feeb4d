"""Convert caption collections to records (JSONL, one image per line), and records to other forms. Everything streams.

examples:
  LLaVA's pre-training file (558K), or instruction data (665K)
    python data_prep/convert.py --input llava_pretrain.json --output captions.jsonl
  the released HACL form ("Hallucination caption")
    python data_prep/convert.py --input hacl_stage1.json --output records.jsonl
  COCO captions joined with instances
    python data_prep/convert.py --input captions_train2017.json --instances instances_train2017.json --output coco.jsonl
  Flickr30k, by Karpathy's file or by the original one
    python data_prep/convert.py --input dataset_flickr30k.json --output flickr.jsonl
    python data_prep/convert.py --input results_20130124.token --output flickr.jsonl
  Visual Genome regions with objects; GQA questions with scene graphs
    python data_prep/convert.py --input region_descriptions.json --instances objects.json --output vg.jsonl
    python data_prep/convert.py --input train_questions.json --instances train_sceneGraphs.json --output gqa.jsonl
  webdataset shards, with their images extracted
    python data_prep/convert.py --input shards/00000.tar shards/00001.tar --images images --output records.jsonl
  back: another form of the records
    python data_prep/convert.py --input records.jsonl --to llava --output llava.json
    python data_prep/convert.py --input records.jsonl --to webdataset --images images --output shards/train.tar
    python data_prep/convert.py --input records.jsonl --to parquet --output records.parquet
  a collection split by photograph into train, val and test
    python data_prep/convert.py --input coco-mini/annotations.jsonl --output coco --split 0.8,0.1,0.1

The form of the input is told from its beginning unless --format says it; that of the output from its suffix (.parquet,
.tar) unless --to says it. Image paths stay as they are, relative to the
image root. Keys that are not used, such as licence and origin of a photograph, are kept.
"""

import argparse
import sys
from pathlib import Path

FORMATS = (
    "records", "llava", "hacl", "coco-mini", "coco", "karpathy", "flickr-token", "visual-genome", "visual-genome-qa",
    "gqa", "webdataset", "parquet",
)  # fmt: skip
TARGETS = ("records", "llava", "hacl", "coco", "karpathy", "flickr-token", "webdataset", "parquet")
SUFFIXES = {".parquet": "parquet", ".tar": "webdataset"}  # a file of this name is read as this form


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, nargs="+", help="a file; several shards of a webdataset")
    parser.add_argument("--output", type=Path, required=True, help="a file; with --split a folder")
    parser.add_argument("--format", choices=FORMATS, help="of the input; default: told from its beginning")
    parser.add_argument("--to", choices=TARGETS, help="form of the output (default: by its suffix, else records)")
    parser.add_argument("--instances", type=Path, metavar="FILE", help="annotations of the same images (see examples)")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="webdataset: where images go to, or come from")
    parser.add_argument("--shard-size", type=int, default=10_000, help="webdataset: records per shard (default 10000)")
    parser.add_argument("--split", metavar="TRAIN,VAL,TEST", help="shares of the images, for example 0.8,0.1,0.1")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    parser.add_argument(
        "--captions",
        choices=("auto", "answers", "none"),
        default="auto",
        help="LLaVA data: are answers captions? auto: if every record is one question and one answer on one image",
    )
    arguments = parser.parse_args()
    meant = SUFFIXES.get(arguments.output.suffix)
    arguments.to = arguments.to or meant or "records"
    if arguments.to != (meant or arguments.to) or (arguments.to == "parquet" and meant is None):
        parser.error(f"--output {arguments.output}: its name does not fit --to {arguments.to}; change one of them")
    if arguments.split is not None and arguments.to != "records":
        parser.error("--split writes records; convert its parts in a second step")
    if arguments.shard_size < 1:
        parser.error("--shard-size must be at least 1")
    try:
        shares = dict(zip(("train", "val", "test"), map(float, arguments.split.split(",")), strict=True))
    except (ValueError, AttributeError):
        shares = None
        if arguments.split is not None:
            parser.error(f"--split {arguments.split}: expected three shares such as 0.8,0.1,0.1")
    try:
        return run(arguments, shares)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def run(arguments: argparse.Namespace, shares: dict[str, float] | None) -> int:
    from contextlib import ExitStack

    from hacl.data.convert import parts_of
    from hacl.data.records import RecordWriter

    if shares is None:
        count = write(arguments, read(arguments))
        print(f"{arguments.output}: {count}")
        return 0
    part_of = parts_of((record.image_id for record in read(arguments)), shares, arguments.seed)
    with ExitStack() as stack:
        outputs = {part: stack.enter_context(RecordWriter(arguments.output / f"{part}.jsonl")) for part in shares}
        for record in read(arguments):
            outputs[part_of[record.image_id]].write(record)
    for out in outputs.values():
        print(f"{out.path}: {out.count} records, {out.captions} captions")
    return 0


def read(arguments: argparse.Namespace):
    """The records of the input, one at a time."""
    from hacl.data.convert import iter_converted
    from hacl.data.sources import parquet_records
    from hacl.data.webdataset import read_shards

    first = arguments.input[0]
    form = arguments.format or {".tar": "webdataset", ".gz": "webdataset", ".parquet": "parquet"}.get(first.suffix)
    if form == "webdataset":
        return read_shards(arguments.input, None if arguments.to == "webdataset" else arguments.images)
    if form == "parquet":
        return parquet_records(arguments.input)
    if len(arguments.input) > 1:
        raise ValueError("several --input files are the shards of a webdataset or of a Parquet table; give one file")
    answers = {"auto": None, "answers": True, "none": False}[arguments.captions]
    return iter_converted(first, form, answers_are_captions=answers, instances=arguments.instances)


def write(arguments: argparse.Namespace, records) -> str:
    """Write the output; says how much."""
    from hacl.data.convert_back import WRITERS
    from hacl.data.parquet import write_parquet
    from hacl.data.records import RecordWriter
    from hacl.data.webdataset import write_shards

    output = arguments.output
    if arguments.to == "webdataset":
        return f"{write_shards(output, records, arguments.images, arguments.shard_size)} records"
    if arguments.to == "parquet":
        return f"{write_parquet(output, records)} records"
    if arguments.to != "records":
        return f"{WRITERS[arguments.to](output, records)} records or entries"
    with RecordWriter(output) as out:
        for record in records:
            out.write(record)
    return f"{out.count} records, {out.captions} captions"


if __name__ == "__main__":
    sys.exit(main())
