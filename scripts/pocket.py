"""The offline world: train base models, tune them by every arm, measure, report.

    python scripts/pocket.py quickstart                  # one base, three seeds, four arms: a demonstration
    python scripts/pocket.py quickstart --full           # six fresh bases, five arms: the source of verdicts
    python scripts/pocket.py quickstart --smoke          # does everything run? numbers mean nothing
    python scripts/pocket.py base --seed 0               # only make (or find) a base; prints its folder

Bases are kept under --cache and found again; finished runs are not repeated, so a stopped run continues where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

ARMS = ("control", "contrastive", "hacl_paper", "hacl_ours", "margin")
DEMONSTRATED = ("control", "contrastive", "hacl_paper", "margin")  # what fits in ten minutes on two cores


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    start = steps.add_parser("quickstart", help="bases, arms, measures, table and report.html")
    start.add_argument("--full", action="store_true", help="six fresh bases instead of one, more scenes; runs for long")
    start.add_argument("--out", type=Path, help="results and report (default: runs/pocket or runs/pocket-full)")
    start.add_argument("--cache", type=Path, default=Path("cache/pocket"), help="bases (default: %(default)s)")
    start.add_argument(
        "--arms", nargs="+", choices=ARMS, help="default: all in a full run, else all but hacl_ours; control is needed"
    )
    start.add_argument("--bases", type=int, nargs="+", help="numbers of the bases (default: 0, or 100 to 105)")
    start.add_argument("--seeds", type=int, nargs="+", help="tuning seeds per base (default: 0 1 2, or 0 for --full)")
    start.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each (default: %(default)s)")
    start.add_argument("--split", choices=("val", "test"), default="test", help="val is for choosing settings")
    start.add_argument("--smoke", action="store_true", help="a minute, hardly trained: checks the machinery only")
    start.add_argument("--set", nargs="*", default=[], metavar="SECTION.KEY=VALUE", help="override every arm's config")
    start.add_argument(
        "--base-set", nargs="*", default=[], metavar="KEY=N", help="other bases, e.g. tower_steps=130 for a weak tower"
    )
    base = steps.add_parser("base", help="train one base, or find it")
    base.add_argument("--seed", type=int, default=0)
    base.add_argument("--cache", type=Path, default=Path("cache/pocket"))
    return parser.parse_args(arguments)


def prepare(threads: int) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch

    torch.set_num_threads(threads)


def quickstart(arguments: argparse.Namespace) -> int:
    arms = arguments.arms or list(ARMS if arguments.full else DEMONSTRATED)
    if "control" not in arms:
        print("error: --arms must contain control, which every arm is compared with", file=sys.stderr)
        return 2
    from hacl.pocket.base import BaseSettings, find_or_make_bases, parse_settings

    try:
        changed = parse_settings(arguments.base_set)
    except ValueError as error:
        print(f"error: --base-set {error}", file=sys.stderr)
        return 2
    from hacl.pocket.evaluate import Sizes
    from hacl.pocket.experiment import UNTUNED, Unit, World, run_units
    from hacl.pocket.results import assemble, write_results
    from hacl.report.page import build_report
    from hacl.report.tables import text_table

    full, smoke = arguments.full, arguments.smoke
    started = time.perf_counter()
    out = arguments.out or Path("runs/pocket-smoke" if smoke else "runs/pocket-full" if full else "runs/pocket")
    bases = arguments.bases or (list(range(100, 106)) if full else [0])
    seeds = arguments.seeds or ([0] if smoke or full else [0, 1, 2])
    laws = ("like", "broken", "independent") if full else ("like", "broken")
    sizes = Sizes(6, 4, 3, 6) if smoke else Sizes(500, 200, 100, 200) if full else Sizes(160, 60, 40, 100)
    world = World(
        (out / "world").resolve(),
        tuning=64 if smoke else 4600,
        test=max(sizes.captions, sizes.states),
        splits=tuple(f"{arguments.split}_{law}" for law in laws),
        seed=2 if full else 1,
    )
    small = {"scenes": 1600, "tower_steps": 3, "text_steps": 2, "align_steps": 2, "image_steps": 3} if smoke else {}
    overrides = (*(["train.max_steps=2"] if smoke else []), *arguments.set)
    prepare(arguments.workers)
    settings = [BaseSettings(seed=number, **{**small, **changed}) for number in bases]
    made = find_or_make_bases(arguments.cache, settings, workers=arguments.workers)
    folders = {number: folder.resolve() for number, folder in zip(bases, made, strict=True)}
    world.prepare()
    print(f"bases and scenes ready after {time.perf_counter() - started:.0f} s")
    prepare(1)
    units = [
        Unit(arm, base, seed, folders[base], (out / f"{arm}-{base}-{seed}").resolve(), world, sizes, overrides)
        for base in bases
        for seed in seeds
        for arm in arms
    ]
    units += [
        Unit(UNTUNED, base, seeds[0], folders[base], (out / f"{UNTUNED}-{base}").resolve(), world, sizes)
        for base in bases
    ]
    runs = run_units(units, workers=arguments.workers)
    records = {number: json.loads((folder / "base.json").read_text("utf-8")) for number, folder in folders.items()}
    kind = "machinery check, numbers mean nothing" if smoke else "full run" if full else "demonstration"
    header = f"{kind}: {len(bases)} base(s), {len(seeds)} seed(s) each, {arguments.split} scenes"
    if len(bases) < 6:
        header += "; too few bases to conclude from"
    results = assemble(
        runs,
        world,
        header=header,
        command="python scripts/pocket.py " + " ".join(sys.argv[1:]),
        bases=records,
        folders={(unit.arm, unit.base, unit.seed): unit.folder for unit in units},
        notes=[f"Wall-clock time of this call: {time.perf_counter() - started:.0f} s."],
    )
    write_results(results, out)
    page = build_report(results, out)
    print(text_table(results))
    print(f"\nreport: {page}  ({time.perf_counter() - started:.0f} s)")
    return 0


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.step == "base":
        from hacl.pocket.base import BaseSettings, find_or_make_base

        prepare(2)
        print(find_or_make_base(options.cache, BaseSettings(seed=options.seed)))
        return 0
    return quickstart(options)


if __name__ == "__main__":
    sys.exit(main())
