"""Several training runs one after another in the same ranks, so that a test pays for one launch.

`torchrun ... several_runs.py CONFIG RUNS`, where RUNS is a JSON list of lists of overrides. Accelerate and Transformers
remember DeepSpeed's settings for the process; they are made to forget them between runs.
"""

import gc
import json
import os
import sys


def main(config: str, runs: str) -> None:
    from accelerate.state import AcceleratorState, GradientState
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    from hacl.config import load_config
    from hacl.training.run import run

    for overrides in json.loads(runs):
        run(load_config(config, overrides))
        gc.collect()
        AcceleratorState._reset_state()
        GradientState._reset_state()
        unset_hf_deepspeed_config()
        os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)


if __name__ == "__main__":
    main(*sys.argv[1:])
    from hacl.training.runtime import end_process, leave_group

    leave_group()
    end_process(0)
