"""Add hallucinated captions (close in wording, wrong about the image) to records, offline and resumably.

examples:
  three hallucinated captions for each caption
    python data_prep/make_hallucinations.py --input captions.jsonl --output hallucinated.jsonl
  one per image, of the types that wording alone betrays least
    python data_prep/make_hallucinations.py --input captions.jsonl --output subtle.jsonl \\
        --num-hallucinated 1 --captions-per-image 1 --types object,action,attribute
  with another generator, whose options --backend NAME --help lists
    python data_prep/make_hallucinations.py --input captions.jsonl --output naive.jsonl --backend naive --select first
  look at a few before the long run
    python data_prep/make_hallucinations.py --input captions.jsonl --output try.jsonl --limit 20

More candidates are made than kept (--candidates), and those are chosen (--select balanced) by which words, pairs of
words and lengths are as frequent as in the true captions. What the choice needs to know about the whole input is learnt
in a first pass and kept beside the output.
With --captions-per-image N the first N captions that offer an edit are used; one that offers none is passed over.
Run the same command again after an interrupt or a kill: it goes on where it ended. The result is a function of input
and settings, byte for byte, whatever --workers says; memory does not grow with the number of records.
Records may be JSONL or a JSON list, in this project's form or that of the HACL and LLaVA files. Annotated objects
("objects": {"dog": 1}) and several captions per image make it rarer that a hallucinated caption happens to be true.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def parse(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The arguments, and those that belong to the chosen backend."""
    from hacl.hallucinate.generators import BACKENDS, backend_options
    from hacl.hallucinate.select import CANDIDATES

    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--backend", choices=tuple(BACKENDS), default="lexical")
    backend = first.parse_known_args(argv)[0].backend

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="records with captions")
    parser.add_argument("--output", type=Path, required=True, help="JSONL to write or to go on with")
    parser.add_argument("--backend", choices=tuple(BACKENDS), default="lexical", help="what writes them")
    parser.add_argument("--num-hallucinated", type=int, default=3, metavar="K", help="per caption (default 3)")
    parser.add_argument("--types", help="comma-separated; default: every type the generator knows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--captions-per-image", type=int, metavar="N", help="only so many (default: all)")
    parser.add_argument("--limit", type=int, help="only the first so many records")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    parser.add_argument(
        "--select",
        choices=("balanced", "first"),
        default="balanced",
        help="balanced: choose so that wording betrays none (default); first: the generator's own choice",
    )
    parser.add_argument("--candidates", type=int, default=CANDIDATES, metavar="N", help="per caption, to choose from")
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="ray: a Ray cluster (RAY_ADDRESS; needs ray[data])"
    )
    parser.add_argument("--overwrite", action="store_true", help="start again instead of going on")
    group = parser.add_argument_group(f"options of the backend {backend}")
    own = backend_options(backend)
    for option in own:
        flag = f"--{option.name.replace('_', '-')}"
        if option.kind is bool:
            action = argparse.BooleanOptionalAction if option.default else "store_true"
            group.add_argument(flag, action=action, default=option.default or False, help=option.help)
        else:
            choices = option.choices or None
            group.add_argument(flag, type=option.kind, default=option.default, choices=choices, help=option.help)
    arguments = parser.parse_args(argv)
    for name in ("num_hallucinated", "captions_per_image", "limit", "workers", "candidates"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if arguments.output.suffix == ".json":
        parser.error("--output is written line by line: give it the ending .jsonl")
    return arguments, {option.name: getattr(arguments, option.name) for option in own}


def main() -> int:
    from hacl.chat_api import ChatError

    arguments, options = parse()
    try:
        return run(arguments, options)
    except (ValueError, FileNotFoundError, ChatError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def run(arguments: argparse.Namespace, options: dict[str, Any]) -> int:
    from functools import partial

    from tqdm import tqdm

    from hacl.data.parallel import available_cores, ordered_map
    from hacl.hallucinate.annotate import annotate
    from hacl.hallucinate.first_pass import take_balance, take_survey
    from hacl.hallucinate.generators import backend_class, make_hallucinator
    from hacl.hallucinate.select import Balanced

    types = sorted(set(arguments.types.split(","))) if arguments.types else None
    workers = arguments.workers or available_cores()
    beside = arguments.output.with_name(arguments.output.name + ".survey.json")
    summary = take_survey(arguments.input, workers=workers, beside=beside)
    recipe = partial(
        make_hallucinator, arguments.backend, seed=arguments.seed, types=types, survey=summary.survey, **options
    )
    shared = None
    if not backend_class(arguments.backend).is_local_cpu and arguments.engine == "local":
        workers = 1  # a server or a GPU is shared by one process with batches of its own, and by one generator
        shared = recipe()
        recipe = partial(_same, shared)
        _print_estimate(shared, summary.survey, arguments)
    if arguments.select == "balanced":
        wanted = {"k": arguments.num_hallucinated, "candidates": arguments.candidates, "seed": arguments.seed}
        weights = arguments.output.with_name(arguments.output.name + ".balance.json")
        balance = take_balance(recipe(), summary, beside=weights, **wanted)
        if shared is None:
            recipe = partial(recipe, balance=balance, candidates=arguments.candidates)
        else:
            recipe = partial(_same, Balanced(shared, balance, arguments.candidates, arguments.seed))
    made_by = recipe().settings()
    settings = {
        "backend": arguments.backend,
        "backend_settings": json.loads(json.dumps(made_by)),
        "num_hallucinated": arguments.num_hallucinated,
        "captions_per_image": arguments.captions_per_image,
        "input_sha256": summary.sha256,
    }
    mapped = ordered_map
    if arguments.engine == "ray":
        from hacl.hallucinate.ray_engine import ray_map as mapped
    total = min(summary.records, arguments.limit or summary.records)

    def progress(counts, resumed):
        with tqdm(total=total, initial=resumed, unit="record") as bar:
            for count in counts:
                bar.update(count)
                yield count

    report = annotate(
        arguments.input,
        arguments.output,
        recipe,
        num_hallucinated=arguments.num_hallucinated,
        captions_per_image=arguments.captions_per_image,
        limit=arguments.limit,
        settings=settings,
        overwrite=arguments.overwrite,
        workers=workers,
        mapped=mapped,
        progress=progress,
    )
    made = sum(report.types.values())
    print(f"{arguments.output}: {report.records} records written, {report.resumed} were there already")
    print(f"{made} hallucinated captions for {report.captions} captions")
    print("by type:   " + (", ".join(f"{name} {count}" for name, count in report.types.most_common()) or "none"))
    print("rejected:  " + (", ".join(f"{why} {count}" for why, count in report.rejected.most_common()) or "none"))
    short = [f"{count} with {number}" for number, count in sorted(report.fewer.items())]
    if hasattr(shared, "cost_report"):
        print(f"requests:  {shared.cost_report()}")
    print(f"captions with fewer than {arguments.num_hallucinated}: {', '.join(short) or 'none'}")
    if report.without:
        print(
            f"captioned records without any: {report.without} of {report.resumed + report.records}; remove them, write "
            "some by hand, or train with data.allow_missing_hallucinated=SHARE, the largest share of them to accept"
        )
    if report.stopped:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


def _same(generator):
    return generator


def _print_estimate(generator, survey, arguments: argparse.Namespace) -> None:
    """What the requests of the survey's sample would cost, before any is made; a larger input costs in proportion."""
    if hasattr(generator, "estimate"):
        items = [(record, index) for record in survey.sampled() for index in range(len(record.captions))]
        k = arguments.candidates if arguments.select == "balanced" else arguments.num_hallucinated
        print(f"estimate for {len(items)} of {survey.captions} captions: {generator.estimate(items, k)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
