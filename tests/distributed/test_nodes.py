"""The launchers of several nodes: what they would run, and two nodes on this machine that are stopped and go on."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.distributed.ranks import free_port
from tests.tiny import write_tiny_records
from tests.trajectories import BASE, RECORDS, cut, trajectory

ROOT = Path(__file__).resolve().parents[2]
LAUNCH, SBATCH = "scripts/launch_nodes.sh", "scripts/slurm/train.sbatch"


def shown(*command, **environment):
    """Words of what a launcher prints."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    done = subprocess.run(
        ["bash", *command], cwd=ROOT, env={**kept, **environment}, capture_output=True, text=True, check=True
    )
    return [shlex.split(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("script", [LAUNCH, SBATCH])
def test_launchers_are_valid_shell(script):
    assert subprocess.run(["bash", "-n", script], cwd=ROOT).returncode == 0


def test_a_launcher_passes_its_arguments_on_unchanged():
    wanted = ["configs/a b.yaml", 'data.prompt=what\'s $HOME "here" ?', "train.deepspeed=3"]
    options = {"--nodes": "4", "--per-node": "8", "--head": "n0:1", "--id": "j"}
    (words,) = shown(LAUNCH, *[word for pair in options.items() for word in pair], "--dry-run", "--", *wanted)
    assert words[words.index("train.py") + 1 :] == wanted
    command = words[words.index("-m") :]
    named = {"--nnodes": "4", "--nproc-per-node": "8", "--rdzv-endpoint": "n0:1", "--rdzv-id": "j"}
    assert named == {option: command[command.index(option) + 1] for option in named}
    assert any(word.startswith("TORCH_EXTENSIONS_DIR=") for word in words), "a compile cache for each node"
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in words, "no addresses of processes that died"


def test_without_a_configuration_or_with_a_misplaced_option_a_launcher_says_so():
    for arguments, message in ((["--nodes", "2"], "no configuration"), (["train.epochs=1"], "come after --")):
        done = subprocess.run(["bash", LAUNCH, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2 and message in done.stderr


def test_the_batch_script_starts_one_launcher_per_node_and_names_the_attempt():
    job = {"SLURM_JOB_ID": "123", "SLURM_JOB_NUM_NODES": "8", "SLURM_GPUS_ON_NODE": "4", "SLURM_RESTART_COUNT": "2"}
    srun, node = shown(SBATCH, "--dry-run", "configs/llava15_7b/stage2.yaml", "data.path=a b.jsonl", **job)
    assert srun[0] == "srun" and srun[-2:] == ["configs/llava15_7b/stage2.yaml", "data.path=a b.jsonl"]
    assert node[node.index("--nnodes") + 1] == "8" and node[node.index("--nproc-per-node") + 1] == "4"
    assert node[node.index("--rdzv-id") + 1] == "hacl-123-2"
    assert node[node.index("--rdzv-endpoint") + 1].endswith(":20123")
    directives = [line.split()[1] for line in (ROOT / SBATCH).read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"--requeue", "--signal=B:USR1@300", "--ntasks-per-node=1"} <= set(directives)


AGENT = """#!/usr/bin/env python
import subprocess, sys
rank = '''
import os, signal, sys, time
print("loading", flush=True)
time.sleep(3)  # a signal in this time is lost, for it is ignored
heard = []
signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
print("ready", flush=True)
end = time.monotonic() + 60
while not heard and time.monotonic() < end:
    time.sleep(0.1)
time.sleep(2.5)  # saving, while the signal comes again
sys.exit(0 if heard else 3)
'''
sys.exit(subprocess.run([sys.executable, "-c", rank]).returncode)
"""


def test_a_signal_that_comes_while_a_rank_loads_reaches_it_once_it_listens(tmp_path):
    agent = tmp_path / "agent"
    agent.write_text(AGENT.replace("/usr/bin/env python", sys.executable))
    agent.chmod(0o755)
    command = ["bash", LAUNCH, "--per-node", "1", "--", "run.yaml"]
    environment = {**os.environ, "PYTHON": str(agent)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.readline() == "ready\n"
    assert process.wait(timeout=120) == 0


class Nodes:
    """Two launchers on this machine, one process each; `said` is what they have printed."""

    def __init__(self, folder, *arguments):
        options = ["--nodes", "2", "--per-node", "1", "--head", f"127.0.0.1:{free_port()}"]
        options += ["--local-addr", "127.0.0.1", "--"]
        environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
        folder.mkdir()
        self.logs = [folder / "first.log", folder / "second.log"]
        self.processes = []
        for log in self.logs:
            with log.open("w") as stream:
                command = ["bash", LAUNCH, *options, *map(str, arguments)]
                process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stream, stderr=stream)
            self.processes.append(process)

    @property
    def said(self):
        return "".join(log.read_text() for log in self.logs)

    def wait_until(self, reached):
        deadline = time.monotonic() + 300
        while not reached():
            running = all(process.poll() is None for process in self.processes)
            assert running and time.monotonic() < deadline, self.said
            time.sleep(0.1)

    def end(self):
        """Wait for the end of both, which must be a good one."""
        assert [process.wait(timeout=300) for process in self.processes] == [0, 0], self.said

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Whatever happened, nothing of them is left running."""
        for process in self.processes:
            if process.poll() is None:
                for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                    child.kill()
                process.wait()

    def ranks(self, node):
        """The training processes of a node: children of torchrun's agent, which is the launcher's child."""
        return [rank for agent in psutil.Process(self.processes[node].pid).children() for rank in agent.children()]


def losses(run):
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


@pytest.mark.slow
def test_two_nodes_survive_a_killed_rank_stop_by_a_signal_and_go_on_to_the_losses_of_one_process(tiny_llava, tmp_path):
    records, run = write_tiny_records(tmp_path / "records", **RECORDS), tmp_path / "run"
    (tmp_path / "run.yaml").write_text("{}")
    how = [tmp_path / "run.yaml", f"model.path={tiny_llava}", f"data.path={records}", f"train.output_dir={run}"]
    how += [*BASE, *cut(6, ranks=2), "train.save_steps=2"]

    def last():
        return max(losses(run), default=0)

    with Nodes(tmp_path / "first", *how, "train.max_steps=3000") as nodes:
        nodes.wait_until(lambda: last() >= 3)
        (killed,) = nodes.ranks(0)
        killed.kill()
        nodes.wait_until(lambda: "resuming" in nodes.said)  # torchrun started both ranks again
        reached = last()
        nodes.wait_until(lambda: last() > reached)
        nodes.processes[1].send_signal(signal.SIGUSR1)
        nodes.end()
    stopped = last()
    assert f"after step {stopped}, which is saved" in nodes.said
    with Nodes(tmp_path / "second", *how, f"train.max_steps={stopped + 2}") as nodes:
        nodes.end()
    assert f"resuming {run}/checkpoint-{stopped}" in nodes.said
    one = trajectory(tiny_llava, records, tmp_path / "one", [*cut(12), f"train.max_steps={stopped + 2}"])
    assert list(losses(run)) == list(range(1, stopped + 3))
    assert list(losses(run).values()) == pytest.approx(one["steps"]["loss"], rel=1e-2)
