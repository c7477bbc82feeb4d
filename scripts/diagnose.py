"""Modality gap, entanglement, their controls and the caption margin of one model or several, on the same records.

python scripts/diagnose.py --model BASE --model TUNED --records eval.jsonl --image-root images --out diagnosis
"""

from __future__ import annotations

import argparse
import sys


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        action="append",
        required=True,
        help="folder of a model, a training checkpoint or a run, or hub:owner/name@REVISION; repeat to compare",
    )
    parser.add_argument("--base", help="folder of the base model of the checkpoints, if it moved since")
    parser.add_argument(
        "--records", required=True, help="JSON or JSONL records with captions and hallucinated captions"
    )
    parser.add_argument("--image-root", required=True, help="folder that image paths are relative to")
    parser.add_argument("--out", required=True, help="folder for diagnosis.json, .csv, .md, .html and states.png")
    parser.add_argument(
        "--config",
        help="configuration to take objective, prompt and template from (default: the first trained model's)",
    )
    parser.add_argument(
        "--layers",
        type=int,
        nargs="+",
        default=[],
        help="decoder blocks (1..L) to read states at besides the objective's",
    )
    parser.add_argument("--limit", type=int, help="use at most this many records")
    parser.add_argument("--batch-size", type=int, default=16, help="rows per forward pass (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=200, help="bootstrap draws per interval (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: %(default)s)")
    parser.add_argument("--no-likelihood", action="store_true", help="leave out the caption margin by likelihood")
    options = parser.parse_args(arguments)

    from hacl.config import Config, load_config
    from hacl.data.records import read_records
    from hacl.evaluation.diagnose import diagnose, exported_config
    from hacl.report.diagnosis import diagnosis_table, write_diagnosis

    try:
        exported = (exported_config(folder) for folder in options.model)
        config = load_config(options.config) if options.config else next(filter(None, exported), Config())
        result = diagnose(
            options.model,
            read_records(options.records, limit=options.limit),
            options.image_root,
            objective=config.objective,
            prompt=config.data.prompt,
            template=config.data.template,
            layers=options.layers,
            base=options.base,
            batch_size=options.batch_size,
            draws=options.draws,
            device=options.device,
            likelihood=not options.no_likelihood,
        )
    except (ValueError, OSError) as error:
        print(f"diagnose: {error}", file=sys.stderr)
        return 2
    print(diagnosis_table(result))
    print("written: " + ", ".join(map(str, write_diagnosis(result, options.out))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
