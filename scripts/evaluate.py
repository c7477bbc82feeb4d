"""Put benchmarks to a model and score its replies, or compare two finished evaluations.

python scripts/evaluate.py --model MODEL --benchmark pope,chair --data DATA --out RUN
python scripts/evaluate.py --model MODEL --benchmark pope --data DATA --out VCD --vcd-alpha 1 --vcd-noise 500
python scripts/evaluate.py --compare RUN_A RUN_B

DATA holds one folder or file per benchmark (docs/evaluate.md). A run that was stopped continues where it was; several
processes share the questions under torchrun.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", help="exported or stock folder, checkpoint of train.py, LoRA adapter, or hub:owner/name@REVISION")
    add("--base", help="folder of the base model of a checkpoint or adapter, if it moved")
    add("--benchmark", help="comma-separated: pope, chair, amber, mme, mmhal, mm_safety, sugarcrepe, caption_margin")
    add(
        "--data", action="append", default=[], metavar="[NAME=]PATH", help="data folder, or one benchmark's; repeatable"
    )
    add("--images", action="append", default=[], metavar="[NAME=]DIR", help="image root, if not images/ in the data")
    add("--out", type=Path, help="folder of the evaluation; an interrupted one is continued")
    add(
        "--prompt", action="append", default=[], metavar="NAME=ID", help="wording: id of the table, trained, text:WORDS"
    )
    add("--template", choices=("auto", "plain", "chat"), default="auto", help="default: as the model was tuned")
    add("--batch-size", type=int, default=16, help="default: %(default)s")
    add("--max-new-tokens", type=int, help="for every reply (default: 16 for yes/no, 512 for descriptions)")
    add("--min-new-tokens", type=int, default=0, help="default: %(default)s")
    add("--temperature", type=float, default=0.0, help="0 decodes greedily (default)")
    add("--top-p", type=float, default=1.0, help="default: %(default)s")
    add("--top-k", type=int, default=0, help="0 is off (default)")
    add("--num-beams", type=int, default=1, help="default: %(default)s")
    add("--repetition-penalty", type=float, default=1.0, help="default: %(default)s")
    add("--seed", type=int, default=0, help="of sampled replies (default: %(default)s)")
    add(
        "--vcd-alpha",
        type=float,
        metavar="A",
        help="visual contrastive decoding: strength (released code: 1; default: off)",
    )
    add("--vcd-beta", type=float, metavar="B", help="of --vcd-alpha: plausibility, 0 to 1 (default: 0.1)")
    add(
        "--vcd-noise",
        type=int,
        metavar="T",
        help="of --vcd-alpha: diffusion step of the noise, 0 to 999 (default: 500)",
    )
    add("--steering", type=Path, metavar="DIR", help="steering artefact under which replies are generated")
    add("--alpha", type=float, help="strength of --steering (default: the artefact's own)")
    add("--cut-sentences", choices=("keep", "drop"), default="keep", help="of captions that reach the token limit")
    add("--option", action="append", default=[], metavar="NAME.KEY=VALUE", help="of a scorer, as pope.parser=strict")
    add("--limit", type=int, help="only the first N questions of each file")
    add("--only", metavar="IDS", help="pattern of question ids, or JSON file of ids (the split.json of steer.py fit)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: %(default)s)")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="default: bfloat16 on a GPU, else float32")
    add("--attention", choices=("sdpa", "eager", "flash_attention_2"), default="sdpa", help="default: %(default)s")
    add("--check-batching", type=int, metavar="N", help="compare batch size 1 with --batch-size on N questions and end")
    add("--dry-run", action="store_true", help="load everything, show one prompt and its reply, write nothing")
    add("--compare", nargs=2, type=Path, metavar=("A", "B"), help="two runs, or two of their report files")
    options = parser.parse_args(argv)
    if options.compare is None:
        needed = ["model", "benchmark", *([] if options.dry_run or options.check_batching else ["out"])]
        for name in needed:
            if getattr(options, name) is None:
                parser.error(f"--{name} is needed (or --compare A B)")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    from hacl.evaluation.runner import command

    try:
        if options.compare is not None:
            print(command.compare(*options.compare))
            return 0
        command_line = shlex.join(["python", "scripts/evaluate.py", *(sys.argv[1:] if argv is None else argv)])
        return command.evaluate(options, command_line)
    except (ValueError, OSError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
