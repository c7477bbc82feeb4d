"""Make steering vectors for a multimodal model, and look at them.

  python scripts/steer.py extract --model M --rows FILE --behaviours FILE --images DIR --layers 14 --out STATES
  python scripts/steer.py fit --data STATES --method l2s --out VECTORS
  python scripts/steer.py associate --data STATES --out REPORT
  python scripts/steer.py flexac --data STATES --layers 13-15 --out VECTORS
  python scripts/steer.py inspect VECTORS
  python scripts/steer.py import-network --network NET.pt --model M --context-layer 14 --layer 14 --out VECTORS
  python scripts/steer.py fold VECTORS --model M --out FOLDED
  python scripts/steer.py generate --model M --steer VECTORS --rows FILE --images DIR --alpha -1 0 1 --out REPLIES
  python scripts/steer.py sweep --model M --steer NAME=VECTORS --pope FILE --images DIR --out SWEEP
  python scripts/steer.py combine SWEEP SWEEP SWEEP --out SWEEPS
  python scripts/steer.py curve --model M --data STATES --records FILE --validation FILE --images DIR --out CURVE
  python scripts/steer.py COMMAND --help

extract reads every prompt with the reply that is wanted and the one that is not; fit turns the difference of the two
states into vectors (constant, per sample, or predicted from the prompt by a network); inspect describes either folder;
import-network takes over a network of the released Learn-to-Steer code.
generate writes replies at chosen strengths, sweep chooses layer, positions and strength on validation images and asks
once on test images, combine puts the sweeps of several models together, curve turns FlexAC's dial.
associate says at which layers the states differ beyond chance, flexac makes FlexAC's calibrated directions, and fold
writes a copy of a model that needs no steering. docs/learn_to_steer.md and docs/flexac.md go through examples.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hacl.options_file import read_options_file
from hacl.study import curve_options
from hacl.study import options as study_options

EXTRACT = """Write the states of each prompt and of its two continuations to a folder.

A behaviours file (configs/steering has examples) says for each kind of row which reply is wanted and which is not. What
image and question have in common is computed once. An interrupted run goes on where it was when called again.

example:
  python scripts/steer.py extract --model MODEL --rows coco_pope_random.json --behaviours configs/steering/pope.yaml \\
      --images val2014 --layers 14 --pooling mean_answer --out runs/pope_states
  python scripts/steer.py extract --model MODEL --records hallucinated.jsonl --images images --layers 10-14 \\
      --prompt "Describe the image." --out runs/caption_states
"""
FIT = """Make a steering artefact from extracted states.

  mean     the mean difference (CAA)          l2s     a small network that reads the prompt (Learn-to-Steer)
  pca      the leading direction              affine  a ridge map of the prompt, in closed form
  random   the control: length of the mean    p2s     each row's own difference, by id (an oracle)

All but p2s see only training rows; rows are split by image, and the report is about the test rows. The report is
written beside the artefact, as fit.json.

example:
  python scripts/steer.py fit --data runs/pope_states --method l2s --preset paper --set hidden=400 --out runs/pope_l2s
"""
INSPECT = """Describe a steering artefact, or a folder of extracted states. No model is opened.

example:
  python scripts/steer.py inspect runs/pope_l2s
"""

ASSOCIATE = """Say at which layers wanted and unwanted continuations differ beyond chance.

Distances with their null, coherence against random labels, held-out AUC, stability; all in one page, JSON and CSV.

example:
  python scripts/steer.py associate --data runs/caption_states --out runs/caption_layers
  python scripts/steer.py associate --data runs/caption_states --model MODEL --records hallucinated.jsonl \\
      --images images --out runs/caption_layers

The second also puts grounded states into associative runs, block by block, and draws what distance that leaves.
"""
FLEXAC = """Make a FlexAC artefact from extracted states: alpha -1 is faithful, +1 creative.

The direction points from wanted to unwanted continuations. Presets: paper, released (the published code), safe.

example:
  python scripts/steer.py flexac --data runs/caption_states --preset safe --layers 13-15 --alpha -1 --out runs/flexac
"""
FOLD = """Write a copy of a model with a constant shift in its biases; it needs no hooks and none of this code.

Only where that is exact: one constant vector per layer, policy all, no gate and no norm restore, a Llama-family model.
The copy is reloaded with stock classes and must give the logits of the steered model.

example:
  python scripts/steer.py fold runs/mean --model exported/model --alpha 0.5 --out exported/folded
"""
IMPORT_NETWORK = """Make an artefact of a network that the released Learn-to-Steer code trained.

The .pt file is read as tensors only. It does not say which state the network reads and which layer it steers: give
both, and the model they are of.
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text, declare in (
        ("extract", EXTRACT, extract_options), ("fit", FIT, fit_options), ("inspect", INSPECT, inspect_options),
        ("import-network", IMPORT_NETWORK, import_options),
        ("associate", ASSOCIATE, associate_options), ("flexac", FLEXAC, flexac_options), ("fold", FOLD, fold_options),
        ("generate", study_options.GENERATE, declare_generate), ("sweep", study_options.SWEEP, declare_sweep),
        ("combine", study_options.COMBINE, study_options.combine_options), ("curve", curve_options.TEXT, declare_curve),
    ):  # fmt: skip
        command = commands.add_parser(name, description=text, help=text.splitlines()[0], formatter_class=raw)
        command.add_argument(
            "--config", type=Path, help="YAML file of options by their long names; the command line wins"
        )
        declare(command.add_argument)
    return read_options_file(parser, commands.choices, sys.argv[1:] if argv is None else list(argv))


def model_options(add: Callable, *, required: bool = True) -> None:
    add(
        "--model",
        required=required,
        help="exported or stock folder, checkpoint of train.py, LoRA adapter, hub:owner/name@REVISION",
    )
    add("--base", help="folder of the base model of a checkpoint or adapter, if it moved")
    add("--template", choices=("auto", "plain", "chat"), default="auto", help="default: as the model was tuned")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1; default: %(default)s")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="default: %(default)s")


def extract_options(add: Callable) -> None:
    model_options(add)
    add("--rows", nargs="+", metavar="FILE", help="JSONL, JSON array or JSON object of rows; needs --behaviours")
    add("--behaviours", metavar="FILE", help="which continuations belong to which rows")
    add("--records", metavar="FILE", help="instead of rows: captions against their hallucinated captions")
    add("--prompt", default="", help="what the captions of --records answer")
    add("--images", metavar="DIR", help="folder that image paths start from")
    add("--layers", required=True, help="steered decoder blocks: 14, 10-14, or --layers=-2,-1")
    add("--context-layer", help="block whose state a network will read (default: the first of --layers)")
    add("--context-token", default="last_prompt", help="last_prompt, mean_prompt, mean_text or mean_image")
    add("--pooling", default="last_answer", help="last_answer, last_template, mean_answer or mean_continuation")
    add("--continuation", type=int, default=32, help="tokens the model may add for mean_continuation")
    add("--batch-size", type=int, default=8, help="default: %(default)s")
    add("--limit", type=int, help="only the first N rows")
    add("--whole", action="store_true", help="read whole sequences; the default gives the same for less")
    add("--out", type=Path, required=True, help="folder of the states")


def fit_options(add: Callable) -> None:
    add("--data", type=Path, required=True, help="folder that extract wrote")
    add("--method", required=True, choices=("mean", "pca", "random", "p2s", "l2s", "affine"))
    add("--layers", help="some of the extracted layers (default: all)")
    add("--preset", default="paper", help="of l2s: paper, upstream or upstream-safety")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="another training setting; repeatable")
    add("--equalise", action="store_true", help="give every behaviour's targets the same mean length")
    add("--fractions", type=float, nargs=3, default=(0.7, 0.15, 0.15), metavar="SHARE", help="train, validation, test")
    add("--seed", type=int, default=0, help="of split, network and random direction")
    add("--device", default="cpu", help="where the network is trained; default: %(default)s")
    add("--alpha", type=float, default=1.0, help="strength that the artefact suggests; default: %(default)s")
    add("--policy", default="all", help="positions that it suggests: all, prompt, generated, last-1, ...")
    add("--norm", default="none", choices=("none", "preserve", "clip"), help="how a vector is applied")
    add("--clip", type=float, default=1.0, help="longest step as a share of the state, for --norm clip")
    add("--out", type=Path, required=True, help="folder of the artefact")


def inspect_options(add: Callable) -> None:
    add("path", type=Path, help="folder of an artefact or of extracted states")
    add("--json", action="store_true", help="as JSON")


def associate_options(add: Callable) -> None:
    add("--data", type=Path, required=True, help="folder that extract wrote")
    add("--records", metavar="FILE", help="records to replace states in, block by block; needs --model and --images")
    add("--images", metavar="DIR", help="folder that image paths start from")
    add("--prompt", default="", help="what the captions of --records answer")
    model_options(add, required=False)
    add("--limit", type=int, default=16, help="of --records: the first N rows, L + 2 passes each; default: %(default)s")
    add("--window", type=int, default=3, help="adjacent layers to suggest; default: %(default)s")
    add("--draws", type=int, default=1000, help="bootstrap draws over groups; default: %(default)s")
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--out", type=Path, required=True, help="folder of the report")


def flexac_options(add: Callable) -> None:
    add("--data", type=Path, required=True, help="folder that extract wrote, for the general direction")
    add("--task", action="append", default=[], metavar="NAME=STATES", help="a further direction; repeatable")
    add("--keep-overlap", action="store_true", help="leave in a task direction what it shares with the general one")
    add("--weights", type=float, nargs="+", help="of the general and the task directions; default: 1 each")
    add("--preset", default="safe", help="paper, released or safe; default: %(default)s")
    add("--k", type=int, help="instances to keep (default: 50, as published)")
    add("--cross", choices=("auto", "on", "off"), help="cross the two orders of a question; default: as the preset")
    add("--leave-out", nargs="+", default=[], metavar="ID", help="ids or groups that the artefact will be judged on")
    add("--layers", help="some of the extracted layers (default: all)")
    add("--alpha", type=float, default=-1.0, help="strength that the artefact suggests; default: %(default)s")
    add("--out", type=Path, required=True, help="folder of the artefact")


def fold_options(add: Callable) -> None:
    add("path", type=Path, help="folder of a steering artefact")
    add("--model", required=True, help="folder of the stock checkpoint, or its hub name")
    add("--layers", help="some of its layers, or where a vector for any layer goes")
    add("--alpha", type=float, help="strength (default: the artefact's)")
    add("--out", type=Path, required=True, help="folder to write; must not exist")


def import_options(add: Callable) -> None:
    add("--network", type=Path, required=True, metavar="FILE", help="the .pt file")
    add("--model", required=True, help="folder of the model it was trained for")
    add("--context-layer", required=True, help="block whose output it reads")
    add("--context-token", default="last_prompt", help="default: %(default)s")
    add("--layer", required=True, help="block whose output it steers")
    add("--alpha", type=float, default=1.0, help="strength that the artefact suggests; default: %(default)s")
    add("--policy", default="all", help="positions that it suggests; default: %(default)s")
    add("--out", type=Path, required=True, help="folder of the artefact")


def declare_generate(add: Callable) -> None:
    model_options(add)
    study_options.generate_options(add)


def declare_sweep(add: Callable) -> None:
    model_options(add)
    study_options.sweep_options(add)


def declare_curve(add: Callable) -> None:
    model_options(add)
    curve_options.curve_options(add)


def coco_words() -> dict[str, str]:
    from hacl.evaluation.coco_objects import coco_vocabulary

    return coco_vocabulary()


def pocket_words() -> dict[str, str]:
    from hacl.pocket.world import object_vocabulary

    return object_vocabulary()


def open_model(options: argparse.Namespace) -> tuple[Any, Any, str]:
    """(model, processor, template) of --model."""
    from hacl.evaluation.runner.ranks import local_device
    from hacl.evaluation.runner.source import find_model

    source = find_model(options.model, base=options.base)
    template = (source.template or "plain") if options.template == "auto" else options.template
    return source.load(dtype=options.dtype, device=local_device(options.device)), source.processor(), template


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    try:
        if options.command in ("extract", "associate"):
            from importlib import import_module

            return import_module(f"hacl.steering.commands.{options.command}").run(options, open_model)
        if options.command == "generate":
            from hacl.study.commands import generate

            return generate.run(options, open_model)
        if options.command == "sweep":
            from hacl.study.commands import sweep

            status = sweep.run(options, open_model, {"coco": coco_words, "pocket": pocket_words})
            if not options.dry_run:
                from hacl.report.steering_sweep import write_sweep_page

                print(f"written: {write_sweep_page(options.out / 'sweep.json', options.out / 'page.html')}")
            return status
        if options.command == "combine":
            from hacl.study.commands import combine

            return combine.run(options)
        if options.command == "curve":
            from hacl.report.steering import write_curve_page
            from hacl.study.commands import curve

            return curve.run(options, open_model, {"coco": coco_words, "pocket": pocket_words}, write_curve_page)
        from importlib import import_module

        return import_module(f"hacl.steering.commands.{options.command.replace('-', '_')}").run(options)
    except (ValueError, OSError) as error:
        print(f"steer {options.command}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
