"""train.py whose rank 1 stops for good in its third step: started by a launcher, see test_survival_launch.py."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import train
from hacl.training import runtime, trainer

begin_step = trainer.HaclTrainer.begin_step


def hang_in_step_3(self, records):
    begin_step(self, records)
    while runtime.rank() == 1 and self.state.global_step == 2:
        time.sleep(1.0)


if __name__ == "__main__":
    trainer.HaclTrainer.begin_step = hang_in_step_3
    runtime.end_process(train.main())
