"""Kill a short training run at random moments, start it again each time, and compare it with one that was left alone.

A tiny random model trains by `train.py`, alone or on several ranks of this machine. A kill is SIGKILL to the launcher
and to everything it started. The moment is drawn within start-up, the steps, a validation, or a save. After each kill
the newest complete checkpoint must be no older than before; the same command must go on by itself; and a run that has
finished must have the losses, weights and result of the one that was left alone, bit for bit.

A variant says what the runs do: plain is full fine-tuning with accumulation and a log line every other step; lora,
queue, gradcache, validation (every save, with a best checkpoint), workers, stream, zero1, zero2 and zero3 add their
part, and + joins them. Kills are shared by all pairs of a variant and a number of ranks.

Example:
  python scripts/fault_injection.py --kills 50 --world-sizes 1 2 --out faults.json
  python scripts/fault_injection.py --kills 4 --world-sizes 2 --variants zero2+lora stream+workers --seed 1
  python scripts/fault_injection.py --kills 4 --set train.grouping=length log.steps=5
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

from hacl.training.short_runs import VARIANTS, Setting, kill_all, prepare, rows_of, start

AIMS = ("start-up", "steps", "save", "save")  # a save is short, so it is aimed at more often
UNFINISHED = (".tmp-checkpoint-", ".old-checkpoint-", ".gone-checkpoint-")
PATIENCE = 600.0  # seconds for one start, before it counts as hung


class UnusableRun(Exception):
    """What must not happen: a start that failed by itself, a lost checkpoint, or another result."""


@dataclass
class Kill:
    """One kill. aimed and hit: phase drawn, and phase found; steps: newest complete checkpoint after it."""

    variant: str
    world_size: int
    run: int
    seconds: float
    aimed: str
    hit: str
    steps: int


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="kills in all (default 50)")
    parser.add_argument("--world-sizes", type=int, nargs="+", default=[1, 2], help="ranks per run (default 1 2)")
    parser.add_argument("--variants", type=_variant, nargs="+", default=["lora+queue"], help="(default lora+queue)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="more settings, as for train.py")
    parser.add_argument("--steps", type=int, default=24, help="optimizer steps of a run (default 24)")
    parser.add_argument("--save-every", type=int, default=3, help="steps between checkpoints (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--out", type=Path, help="JSON file with every kill, counts, hardware and versions")
    return parser.parse_args(argv)


def _variant(text: str) -> str:
    unknown = [part for part in text.split("+") if part not in VARIANTS]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"no variant {', '.join(unknown)}; there are {', '.join(VARIANTS)}, joined by +"
        )
    return text


def saving(run: Path) -> bool:
    """Whether a save, or the removal of an old checkpoint, is under way."""
    return any(path.name.startswith(UNFINISHED) for path in run.glob(".*")) if run.is_dir() else False


def validating(setting: Setting, run: Path) -> bool:
    """Whether a validation is under way: the last line is of a step after which there is one."""
    last = rows_of(run)[-1:]
    is_due = [row for row in last if "loss" in row and row["step"] % setting.save_every == 0]
    return "validation" in setting.parts and bool(is_due) and not saving(run)


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


def strike(setting: Setting, run: Path, chance: random.Random, usual: dict[str, float]):
    """Start a run and kill it at a random moment. Returns (aim, phase hit, seconds), or None if it finished before."""
    aimed = chance.choice((*AIMS, "validation") if "validation" in setting.parts else AIMS)
    under_way = {"save": lambda: saving(run), "validation": lambda: validating(setting, run)}.get(aimed)
    began_at, clock = time.time(), time.monotonic()
    process = start(setting, run)
    if aimed == "start-up":
        wait_until(lambda: training_began(run, began_at), process, chance.uniform(0.0, usual["start-up"]))
    elif wait_until(lambda: training_began(run, began_at), process, PATIENCE):
        time.sleep(chance.uniform(0.0, usual["steps"]))
        if under_way is not None and wait_until(under_way, process, PATIENCE):
            time.sleep(chance.uniform(0.0, usual[aimed]))
    if process.poll() is None:
        kill_all(process)
    if process.returncode == 0:
        return None
    if process.returncode != -signal.SIGKILL:
        raise UnusableRun(f"start failed with status {process.returncode}: {tail(run)}")
    # What an earlier kill left is there until the loop begins.
    hit = "steps"
    if not training_began(run, began_at):
        hit = "start-up"
    elif saving(run):
        hit = "save"
    elif validating(setting, run):
        hit = "validation"
    return aimed, hit, time.monotonic() - clock


def tail(run: Path) -> str:
    return run.with_suffix(".log").read_text(encoding="utf-8", errors="replace")[-1500:]


def newest_step(run: Path) -> int:
    """Step of the newest complete checkpoint, 0 without one."""
    from hacl.training.manifest import newest_checkpoint

    folder = newest_checkpoint(run) if run.is_dir() else None
    return 0 if folder is None else int(folder.name.split("-")[1])


def result_of(run: Path, steps: int) -> tuple[dict[str, str], list[str], dict]:
    """Hashes of the final weights, heads and queue; the logged losses as written; and what the run returned."""
    import hashlib

    last = run / f"checkpoint-{steps}"
    files = sorted(last.rglob("*.safetensors"))
    hashes = {file.relative_to(last).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    names = ("step", "loss", "grad_norm", "lm", "contrastive", "eval_loss")
    # The line with the rates of a process is left out: one that finds no step to make has none.
    rows = [row for row in rows_of(run) if "loss" in row or "eval_loss" in row]
    losses = [" ".join(repr(row[name]) for name in names if name in row) for row in rows]
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    kept = {name: value for name, value in result["metrics"].items() if name.startswith(("eval_", "train_loss"))}
    return hashes, losses, {**result, "metrics": kept}


def leave_alone(setting: Setting) -> tuple[tuple, dict[str, float]]:
    """The run to compare with, and about how long its phases take here."""
    run = setting.run("whole")
    began_at, clock = time.time(), time.monotonic()
    process = start(setting, run)
    wait_until(lambda: training_began(run, began_at), process, PATIENCE)
    usual = {"start-up": time.monotonic() - clock}
    began, taken = time.monotonic(), {"save": [0.05], "validation": [0.1]}
    phases = {"save": lambda: saving(run), "validation": lambda: validating(setting, run)}
    while wait_until(lambda: any(is_on() for is_on in phases.values()), process, PATIENCE):
        name = next((name for name, is_on in phases.items() if is_on()), "save")
        at = time.monotonic()
        wait_until(lambda name=name: not phases[name](), process, PATIENCE)
        taken[name].append(time.monotonic() - at)
    if process.wait() != 0:
        raise UnusableRun(f"the run that nobody disturbs failed: {tail(run)}")
    usual["steps"] = 0.7 * (time.monotonic() - began)
    usual |= {name: sorted(times)[len(times) // 2] for name, times in taken.items()}
    return result_of(run, setting.steps), usual


def torment(setting: Setting, kills: int, chance: random.Random, done: list[Kill]) -> int:
    """Kill runs until there are `kills` in `done`, and let the last run finish. Returns how many ended as expected."""
    expected, usual = leave_alone(setting)
    who, number = f"{setting.variant} on {setting.world_size} rank(s)", 0
    while True:
        number += 1
        run, before = setting.run(f"killed-{number}"), 0
        while len(done) < kills:
            struck = strike(setting, run, chance, usual)
            if struck is None:
                break
            aimed, hit, seconds = struck
            now = newest_step(run)
            if now < before:
                raise UnusableRun(f"a kill took checkpoint-{before}: {run} now has step {now}")
            done.append(Kill(setting.variant, setting.world_size, number, round(seconds, 3), aimed, hit, now))
            before = now
            print(f"kill {len(done)} of {kills}, {who}: {hit}, step {now} kept", flush=True)
        process = start(setting, run)  # to its end; a finished run says so and leaves
        if process.wait(PATIENCE) != 0:
            raise UnusableRun(f"run {number} of {who} did not finish: {tail(run)}")
        if (found := result_of(run, setting.steps)) != expected:
            raise UnusableRun(
                f"run {number} of {who} ended otherwise than one left alone: {differences(expected, found)}"
            )
        if any(path.name.startswith(UNFINISHED) for path in run.iterdir()):
            raise UnusableRun(f"{run} still holds what a killed save left")
        if len(done) >= kills:
            return number


def differences(expected: tuple, found: tuple) -> str:
    """What of a result is another one: files of the last checkpoint, lines of the log, and what was returned."""
    files = [name for name in sorted({*expected[0], *found[0]}) if expected[0].get(name) != found[0].get(name)]
    lines = [
        f"{line!r}, expected {wanted!r}" for wanted, line in zip(expected[1], found[1], strict=False) if line != wanted
    ]
    counts = [] if len(expected[1]) == len(found[1]) else [f"{len(found[1])} lines, expected {len(expected[1])}"]
    returned = [] if expected[2] == found[2] else [f"{found[2]}, expected {expected[2]}"]
    return "; ".join([*files, *counts, *lines[:3], *returned])


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    chance, began = random.Random(arguments.seed), time.monotonic()
    kills: list[Kill] = []
    finished, problem = Counter(), None
    with tempfile.TemporaryDirectory(prefix="hacl-faults-") as temporary:
        folder = Path(temporary) / "w"
        prepare(folder, arguments.steps, arguments.save_every)
        cells = [
            Setting(folder, arguments.steps, arguments.save_every, variant, ranks, tuple(arguments.set))
            for variant in dict.fromkeys(arguments.variants)
            for ranks in dict.fromkeys(arguments.world_sizes)
        ]
        for position, setting in enumerate(cells):
            share = arguments.kills // len(cells) + (position < arguments.kills % len(cells))
            found: list[Kill] = []
            try:
                finished[setting.variant, setting.world_size] = torment(setting, share, chance, found)
            except UnusableRun as error:
                problem = str(error)
            kills += found
            content = report(arguments, kills, finished, problem) | {"seconds": round(time.monotonic() - began, 1)}
            if arguments.out is not None:
                arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            if problem is not None:
                break
    print(json.dumps({name: value for name, value in content.items() if name not in ("each", "versions")}, indent=1))
    return 0 if problem is None else 1


def report(arguments: argparse.Namespace, kills: list[Kill], finished: Counter, problem: str | None) -> dict:
    """What was done so far, for the JSON file."""
    from hacl.models.identity import versions

    pairs = dict.fromkeys([*((kill.variant, kill.world_size) for kill in kills), *finished])
    return {
        "kills": len(kills),
        "unusable_runs": int(problem is not None),
        "problem": problem,
        "finished_runs_equal_to_the_undisturbed_one": finished.total(),
        "hit": dict(Counter(kill.hit for kill in kills)),
        "by_variant_and_ranks": [
            {
                "variant": variant,
                "world_size": ranks,
                "hit": dict(Counter(k.hit for k in kills if (k.variant, k.world_size) == (variant, ranks))),
                "finished_and_equal": finished[variant, ranks],
            }
            for variant, ranks in pairs
        ],
        "options": {**vars(arguments), "out": None},
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": versions(),
        "each": [asdict(kill) for kill in kills],
    }


if __name__ == "__main__":
    sys.exit(main())
