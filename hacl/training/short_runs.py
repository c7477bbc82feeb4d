"""Short runs of a tiny random model, started as users start them: what they may vary, and how to end them at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
VARIANTS: dict[str, dict] = {  # overrides, in which fields of a Setting may stand
    "plain": {},
    "lora": {"model.lora.rank": 4, "model.lora.dropout": 0.1},
    "queue": {"objective.queue_size": 16},
    "gradcache": {"train.grad_cache": "true"},
    "validation": {
        "data.eval_path": "{folder}/records.jsonl",
        "train.eval_steps": "{save_every}",
        "train.best_metric": "eval_loss",
        "log.steps": 1,
    },
    "workers": {"train.num_workers": 2},
    "stream": {"data.stream": "true", "data.shuffle_buffer": 8, "train.cache_text_states": "false"},
    **{f"zero{stage}": {"train.deepspeed": stage} for stage in (1, 2, 3)},
}


@dataclass
class Setting:
    """What the runs of one variant on one number of ranks share. more: overrides, as for train.py."""

    folder: Path
    steps: int
    save_every: int
    variant: str
    world_size: int
    more: tuple[str, ...] = ()

    @property
    def parts(self) -> list[str]:
        return self.variant.split("+")

    @property
    def overrides(self) -> list[str]:
        chosen = {key: value for name in self.parts for key, value in VARIANTS[name].items()}
        return [f"{key}={value}".format(**vars(self)) for key, value in chosen.items()] + list(self.more)

    def run(self, name: str) -> Path:
        """A run folder."""
        return self.folder / f"{self.variant}-{self.world_size}-{name}"


def prepare(folder: Path, steps: int, save_every: int) -> None:
    """A tiny random LLaVA, records with images, and what all configurations share."""
    from PIL import Image

    from hacl.models.random_llava import Size, write_random_llava

    (folder / "images").mkdir(parents=True)
    colours = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "yellow": (230, 220, 40)}
    lines = []
    for index in range(24):
        colour, other = list(colours)[index % 4], list(colours)[(index + 1) % 4]
        shade = tuple(min(255, part + index) for part in colours[colour])
        Image.new("RGB", (28, 28), shade).save(folder / "images" / f"{index}.png")
        caption = f"a {colour} field number {index}"
        hallucinated = [{"text": caption.replace(colour, other), "type": "attribute"}]
        lines.append(
            {"id": f"s{index}", "image": f"images/{index}.png", "captions": [caption], "hallucinated": hallucinated}
        )
    text = [json.dumps(line) for line in lines]
    (folder / "records.jsonl").write_text("\n".join(text) + "\n", encoding="utf-8")
    size = Size(layers=2, width=128, vision_layers=2, vision_width=64, pixels=28, vocabulary=600)
    write_random_llava(folder / "model", size, text)
    settings = {
        "model": {
            "path": str(folder / "model"),
            "preset": "stage1-llm",
            "learning_rate": {"llm": 1e-3},
        },
        "data": {"path": str(folder / "records.jsonl")},
        "objective": {"learn_temperature": True},
        "train": {
            "max_steps": steps,
            "save_steps": save_every,
            "save_total_limit": 2,
            "per_device_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "per_device_eval_batch_size": 2,
        },
        "log": {"steps": 2},
    }
    (folder / "run.yaml").write_text(json.dumps(settings), encoding="utf-8")


def start(setting: Setting, run: Path) -> subprocess.Popen:
    """train.py in a run folder; its output goes to `<run>.log`."""
    launcher = []
    if setting.world_size > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={setting.world_size}"]
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launcher, str(ROOT / "train.py"), str(setting.folder / "run.yaml")]
    with run.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(
            [*command, f"train.output_dir={run}", *setting.overrides],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def descendants(pid: int) -> list[int]:
    """Processes below `pid`, parents first."""
    table = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    children: dict[int, list[int]] = {}
    for line in table.splitlines():
        child, parent = map(int, line.split())
        children.setdefault(parent, []).append(child)
    found, rest = [], [pid]
    while rest:
        below = children.get(rest.pop(), [])
        found += below
        rest += below
    return found


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL to a process and everything below it. The root is stopped first, so that it starts nothing meanwhile."""
    os.kill(process.pid, signal.SIGSTOP)
    for pid in [process.pid, *descendants(process.pid)]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def rows_of(run: Path) -> list[dict]:
    """Lines of the log that are whole."""
    log = run / "metrics.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if log.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
