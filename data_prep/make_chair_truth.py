"""Write the objects of every image as a small JSON cache, so that CHAIR needs COCO's annotations only once.

examples:
  all 123,287 images of COCO 2014, from the folder with instances_ and captions_{train,val}2014.json
    python data_prep/make_chair_truth.py --annotations annotations/ --output chair_pattern.json
  for the wordnet dialect, with NLTK's tagger and WordNet
    python data_prep/make_chair_truth.py --annotations annotations/ --dialect wordnet --nltk-data nltk_data \\
        --output chair_wordnet.json
  photographs with objects and captions in rows (coco-mini, records)
    python data_prep/make_chair_truth.py --annotations $HACL_DATA/coco-mini/annotations.jsonl --output mini.json
  then
    python scripts/score.py chair --predictions captions.jsonl --references chair_pattern.json --json report.json

The ground truth of an image is its segmentation categories united with the objects that its reference captions name,
read by the same dialect as the predictions; the cache records the dialect and scoring with another is refused. Rows
without annotation (null) are left out, unless they have chair_objects. Output: {"format": "hacl-chair-truth",
"dialect", "source" with the sha256 of every input, "objects": {image id: [names]}}.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, required=True, metavar="PATH", help="COCO folder, or file of rows")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the cache, .json")
    parser.add_argument("--dialect", choices=("pattern", "wordnet"), default="pattern")
    parser.add_argument("--nltk-data", type=Path, metavar="FOLDER", help="wordnet: tagger and WordNet in NLTK's layout")
    arguments = parser.parse_args()

    from hacl.evaluation.scorers.chair_extract import make_extractor
    from hacl.evaluation.scorers.chair_truth import load_truth
    from hacl.evaluation.scorers.reading import sha256_of

    try:
        extractor, notes = make_extractor(arguments.dialect, arguments.nltk_data)
        truth = load_truth(arguments.annotations, extractor, arguments.dialect)
        source = {
            "inputs": {str(path): sha256_of(path) for path in truth.paths},
            "reference_captions": truth.captions,
            "notes": [*notes, *truth.warnings],
        }
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(truth.to_json(source)) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for note in source["notes"]:
        print(f"note: {note}")
    often = Counter(name for names in truth.objects.values() for name in names)
    total = sum(often.values())
    common = ", ".join(f"{name} {count}" for name, count in often.most_common(5))
    print(
        f"{len(truth.objects)} images, {truth.captions} reference captions, {total / len(truth.objects):.2f} objects a"
    )
    print(f"image, {len(often)} different, most often {common}; {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
