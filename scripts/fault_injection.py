"""Kill a short training run at random moments, start it again each time, and compare it with one that was left alone.

A tiny random model trains by `train.py`, alone or on several ranks of this machine. A kill is SIGKILL to the launcher
and to everything it started. The moment is drawn within start-up, within the steps, or within a save. After each kill
the newest complete checkpoint must be no older than before; the same command must go on by itself; and a run that has
finished must have the losses and the weights of the one that was left alone, bit for bit.

Example:
  python scripts/fault_injection.py --kills 50 --world-sizes 1 2 --out faults.json
  python scripts/fault_injection.py --kills 4 --world-sizes 2 --deepspeed 2 --seed 1
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
AIMS = ("start-up", "steps", "save", "save")  # a save is short, so it is aimed at more often
UNFINISHED = (".tmp-checkpoint-", ".old-checkpoint-", ".gone-checkpoint-")
PATIENCE = 600.0  # seconds for one start, before it counts as hung


class UnusableRun(Exception):
    """What must not happen: a start that failed by itself, a lost checkpoint, or another result."""


@dataclass
class Kill:
    """One kill. aimed and hit: phase drawn, and phase found; steps: newest complete checkpoint after it."""

    world_size: int
    run: int
    seconds: float
    aimed: str
    hit: str
    steps: int


@dataclass
class Setting:
    """What all runs of one call share."""

    folder: Path
    steps: int
    save_every: int
    deepspeed: int | None


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="kills in all, shared by the world sizes (default 50)")
    parser.add_argument("--world-sizes", type=int, nargs="+", default=[1, 2], help="ranks per run (default 1 2)")
    parser.add_argument("--deepspeed", type=int, choices=range(4), help="ZeRO stage of the runs; without it, none")
    parser.add_argument("--steps", type=int, default=24, help="optimizer steps of a run (default 24)")
    parser.add_argument("--save-every", type=int, default=3, help="steps between checkpoints (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--out", type=Path, help="JSON file with every kill, counts, hardware and versions")
    return parser.parse_args(argv)


def prepare(setting: Setting) -> None:
    """A tiny random LLaVA, records with images, and the configuration of the runs."""
    from PIL import Image

    from hacl.models.random_llava import Size, write_random_llava

    folder = setting.folder
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
            "lora": {"rank": 4, "dropout": 0.1},
            "learning_rate": {"llm": 1e-3},
        },
        "data": {"path": str(folder / "records.jsonl")},
        "objective": {"queue_size": 16, "learn_temperature": True},
        "train": {
            "max_steps": setting.steps,
            "save_steps": setting.save_every,
            "save_total_limit": 2,
            "per_device_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "deepspeed": setting.deepspeed,
        },
        "log": {"steps": 1},
    }
    (folder / "run.yaml").write_text(json.dumps(settings), encoding="utf-8")


def start(setting: Setting, run: Path, world_size: int) -> subprocess.Popen:
    """train.py on `world_size` ranks; its output goes to `<run>.log`."""
    launcher = []
    if world_size > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world_size}"]
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launcher, str(ROOT / "train.py"), str(setting.folder / "run.yaml")]
    with run.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(
            [*command, f"train.output_dir={run}"],
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


def saving(run: Path) -> bool:
    """Whether a save, or the removal of an old checkpoint, is under way."""
    return any(path.name.startswith(UNFINISHED) for path in run.glob(".*")) if run.is_dir() else False


def training_began(run: Path, since: float) -> bool:
    """Whether the loop of this start has begun: it then cuts the log, or writes its first line."""
    log = run / "metrics.jsonl"
    return log.is_file() and log.stat().st_mtime > since


def wait_until(condition, process: subprocess.Popen, seconds: float) -> bool:
    """Poll until a condition holds; False when the process ended or the time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if condition():
            return True
        time.sleep(0.0005)
    return False


def strike(setting: Setting, run: Path, world_size: int, chance: random.Random, usual: dict[str, float]):
    """Start a run and kill it at a random moment. Returns (aim, phase hit, seconds), or None if it finished before."""
    aimed = chance.choice(AIMS)
    began_at, clock = time.time(), time.monotonic()
    process = start(setting, run, world_size)
    if aimed == "start-up":
        wait_until(lambda: training_began(run, began_at), process, chance.uniform(0.0, usual["start-up"]))
    elif wait_until(lambda: training_began(run, began_at), process, PATIENCE):
        time.sleep(chance.uniform(0.0, usual["steps"]))
        if aimed == "save" and wait_until(lambda: saving(run), process, PATIENCE):
            time.sleep(chance.uniform(0.0, usual["save"]))
    if process.poll() is None:
        kill_all(process)
    if process.returncode == 0:
        return None
    if process.returncode != -signal.SIGKILL:
        raise UnusableRun(f"start failed with status {process.returncode}: {tail(run)}")
    # What an earlier kill left is there until the loop begins.
    hit = "start-up" if not training_began(run, began_at) else "save" if saving(run) else "steps"
    return aimed, hit, time.monotonic() - clock


def tail(run: Path) -> str:
    return run.with_suffix(".log").read_text(encoding="utf-8", errors="replace")[-1500:]


def newest_step(run: Path) -> int:
    """Step of the newest complete checkpoint, 0 without one."""
    from hacl.training.manifest import newest_checkpoint

    folder = newest_checkpoint(run) if run.is_dir() else None
    return 0 if folder is None else int(folder.name.split("-")[1])


def result_of(run: Path, steps: int) -> tuple[dict[str, str], list[str]]:
    """Hashes of the final weights, heads and queue, and the logged losses as they were written."""
    import hashlib

    last = run / f"checkpoint-{steps}"
    files = sorted(last.rglob("*.safetensors"))
    hashes = {file.relative_to(last).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return hashes, [f"{row['step']} {row['loss']!r} {row['grad_norm']!r}" for row in rows if "loss" in row]


def leave_alone(setting: Setting, world_size: int) -> tuple[tuple, dict[str, float]]:
    """The run to compare with, and about how long its phases take here."""
    run = setting.folder / f"whole-{world_size}"
    began_at, clock = time.time(), time.monotonic()
    process = start(setting, run, world_size)
    wait_until(lambda: training_began(run, began_at), process, PATIENCE)
    usual = {"start-up": time.monotonic() - clock}
    began, saves = time.monotonic(), []
    while wait_until(lambda: saving(run), process, PATIENCE):
        at = time.monotonic()
        wait_until(lambda: not saving(run), process, PATIENCE)
        saves.append(time.monotonic() - at)
    if process.wait() != 0:
        raise UnusableRun(f"the run that nobody disturbs failed: {tail(run)}")
    usual["steps"] = 0.7 * (time.monotonic() - began)
    usual["save"] = sorted(saves)[len(saves) // 2] if saves else 0.05
    return result_of(run, setting.steps), usual


def torment(setting: Setting, world_size: int, kills: int, chance: random.Random, done: list[Kill]) -> int:
    """Kill runs until there are `kills` in `done`, and let the last run finish. Returns how many ended as expected."""
    expected, usual = leave_alone(setting, world_size)
    number = 0
    while True:
        number += 1
        run, before = setting.folder / f"killed-{world_size}-{number}", 0
        while len(done) < kills:
            struck = strike(setting, run, world_size, chance, usual)
            if struck is None:
                break
            now = newest_step(run)
            if now < before:
                raise UnusableRun(f"a kill took checkpoint-{before}: {run} now has step {now}")
            done.append(Kill(world_size, number, round(struck[2], 3), struck[0], struck[1], now))
            before = now
            print(f"kill {len(done)} of {kills}, {world_size} rank(s): {done[-1].hit}, step {now} kept", flush=True)
        process = start(setting, run, world_size)  # to its end; a finished run says so and leaves
        if process.wait(PATIENCE) != 0:
            raise UnusableRun(f"run {number} did not finish: {tail(run)}")
        if result_of(run, setting.steps) != expected:
            raise UnusableRun(f"run {number} on {world_size} rank(s) ended with other losses or weights: {run}")
        if any(path.name.startswith(UNFINISHED) for path in run.iterdir()):
            raise UnusableRun(f"{run} still holds what a killed save left")
        if len(done) >= kills:
            return number


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    from hacl.models.identity import versions

    chance = random.Random(arguments.seed)
    kills: list[Kill] = []
    finished, problem = 0, None
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hacl-faults-") as folder:
        setting = Setting(Path(folder) / "w", arguments.steps, arguments.save_every, arguments.deepspeed)
        prepare(setting)
        sizes = arguments.world_sizes
        for position, world_size in enumerate(sizes):
            share = arguments.kills // len(sizes) + (position < arguments.kills % len(sizes))
            found: list[Kill] = []
            try:
                finished += torment(setting, world_size, share, chance, found)
            except UnusableRun as error:
                problem = str(error)
            kills += found
            if problem is not None:
                break
    content = {
        "kills": len(kills),
        "unusable_runs": int(problem is not None),
        "problem": problem,
        "finished_runs_equal_to_the_undisturbed_one": finished,
        "hit": dict(Counter(kill.hit for kill in kills)),
        "hit_by_world_size": {str(size): dict(Counter(k.hit for k in kills if k.world_size == size)) for size in sizes},
        "options": {**vars(arguments), "out": None},
        "seconds": round(time.monotonic() - began, 1),
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": versions(),
        "each": [asdict(kill) for kill in kills],
    }
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: value for name, value in content.items() if name not in ("each", "versions")}, indent=1))
    return 0 if problem is None else 1


if __name__ == "__main__":
    sys.exit(main())
