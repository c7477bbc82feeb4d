"""Build POPE questions (random, popular, adversarial) from object annotations of any images.

examples:
  coco-mini, every photograph with at least 3 objects
    python data_prep/make_pope.py --annotations $HACL_DATA/coco-mini/annotations.jsonl --output pope/ --name mini
  as the published benchmark: 500 images of COCO val2014, 6 questions each, counted on these images
    python data_prep/make_pope.py --annotations instances_val2014.json --images 500 --output pope/ --name coco
  frequency and co-occurrence of the training images, whose prior a model has learnt
    python data_prep/make_pope.py --annotations val.jsonl --counts-from train.jsonl --output pope/ --name scenes
  then
    python scripts/score.py pope --predictions answers.jsonl --references pope/mini_pope_random.json --json report.json

Input: COCO instances_*.json, rows with file_name and instances (coco-mini), or records with image and objects (scenes).
Images without annotation (null) are left out. Annotations miss small things: a "no" on a photograph whose objects were
never all marked may be wrong. Where there are captions, such cases are counted, and --skip-mentioned avoids them.
Output: NAME_pope_{random,popular,adversarial}.json, one JSON object a line with question_id, image, text, label (and
object, image_id), and NAME_pope_manifest.json with counts, settings, seed and the sha256 of input and files.
"""

import argparse
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, required=True, metavar="FILE", help="objects of the images")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where the files go")
    parser.add_argument("--name", default="own", help="begins the file names (default: own)")
    parser.add_argument("--images", type=int, metavar="N", help="draw so many images (default: all that fit)")
    parser.add_argument("--per-image", type=int, default=6, metavar="N", help="questions per image, even (default: 6)")
    parser.add_argument("--counts-from", type=Path, metavar="FILE", help="count popularity and co-occurrence there")
    parser.add_argument("--captions", type=Path, metavar="FILE", help="COCO captions_*.json of the same images")
    parser.add_argument(
        "--skip-mentioned", action="store_true", help="never ask with answer no for what a caption of the image names"
    )
    parser.add_argument("--template", default="Is there {article} {object} in the image?", help="with {object}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print the questions of the first N images")
    arguments = parser.parse_args()
    if arguments.per_image < 2 or arguments.per_image % 2:
        parser.error(f"--per-image {arguments.per_image}: use an even number, half of the answers are yes")
    if "{object}" not in arguments.template:
        parser.error("--template: needs {object}")

    from hacl.evaluation.object_lists import read_object_lists
    from hacl.evaluation.pope_files import choose_images, make_questions, write_files
    from hacl.evaluation.scorers.reading import sha256_of

    try:
        lists = read_object_lists(arguments.annotations)
        counted = read_object_lists(arguments.counts_from).objects if arguments.counts_from else None
        if arguments.captions:
            lists.add_captions(arguments.captions)
        if arguments.skip_mentioned and not lists.mentioned:
            raise ValueError("--skip-mentioned: the annotations have no captions; give COCO's with --captions")
        truth = choose_images(
            lists, arguments.images, arguments.per_image, arguments.seed, skip_mentioned=arguments.skip_mentioned
        )
        splits = make_questions(
            truth,
            seed=arguments.seed,
            per_image=arguments.per_image,
            counts_from=counted,
            template=arguments.template,
            never_absent=lists.mentioned if arguments.skip_mentioned else None,
        )
        sources = [path for path in (arguments.annotations, arguments.captions, arguments.counts_from) if path]
        settings = {
            "source": {str(path): sha256_of(path) for path in sources},
            "seed": arguments.seed,
            "per_image": arguments.per_image,
            "template": arguments.template,
            "images": {"annotated": len(lists.objects), "not_annotated": lists.unannotated, "used": len(truth)},
            "skip_mentioned": arguments.skip_mentioned,
            "counted_on": str(arguments.counts_from or "the images used"),
        }
        manifest = write_files(arguments.output, arguments.name, splits, lists, settings)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for image in list(truth)[: arguments.show]:
        print(f"{image}: {', '.join(truth[image])}")
        for split, questions in splits.items():
            shown = (f"{question.object} {question.label}" for question in questions if question.image_id == image)
            print(f"  {split}: {', '.join(shown)}")
    for split, counts in manifest["splits"].items():
        often = ", ".join(f"{name} {count}" for name, count in counts["most_asked_absent"].items())
        print(
            f"{split}: {counts['questions']} questions on {counts['images']} images, {counts['absent_objects']} "
            f"different absent objects, most often {often}"
        )
        if counts["absent_but_mentioned"]:
            print(
                f"  {counts['absent_but_mentioned']} of the {counts['no']} no-questions ask for what a caption of the "
                "image names: the annotation missed it; --skip-mentioned leaves such objects out"
            )
    print(f"{manifest['distinct_questions']} different questions of {manifest['all_questions']}; {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
