"""Fine-tune a multimodal LLM with HACL: `python train.py CONFIG.yaml [section.key=value ...]`.

One process, `torchrun --nproc_per_node N train.py ...` and `deepspeed train.py ...` run the same code.
"""

import argparse
import os
import sys
from collections.abc import Sequence


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    from hacl.config import Config
    from hacl.config_io import describe

    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="configuration keys:\n" + "\n".join(describe(Config)),
    )
    parser.add_argument("config", help="YAML file, e.g. configs/llava15_7b/stage1.yaml")
    parser.add_argument("overrides", nargs="*", help="section.key=value, e.g. data.path=captions.jsonl train.epochs=2")
    parser.add_argument("--dry-run", action="store_true", help="build everything, run one batch or predict its cost")
    parser.add_argument("--local_rank", type=int, default=None, help=argparse.SUPPRESS)  # passed by `deepspeed`
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    if arguments.local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(arguments.local_rank))
    from hacl.config import load_config
    from hacl.training.stopping import Stopped

    try:
        config = load_config(arguments.config, arguments.overrides)
        if arguments.dry_run:
            from hacl.training.dryrun import dry_run

            dry_run(config)
            return 0
        from hacl.training.run import run
        from hacl.training.runtime import leave_group, rank

        result = run(config)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        if rank() == 0:
            print(f"{stopped}{', which is saved' if stopped.saved else ''}; the same command goes on from there")
        leave_group()
        return config.train.preempt_exit_code
    if rank() == 0:
        print(f"done after step {result.step}: {result.checkpoint}")
        print(f"next: python scripts/export.py --checkpoint {result.checkpoint} --out {result.checkpoint.parent}/model")
    leave_group()
    return 0


if __name__ == "__main__":
    status = main()
    from hacl.training.runtime import end_process

    end_process(status)
