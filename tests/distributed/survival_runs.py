"""Runs on a rank of a launch that end badly on purpose, and what a test wants to know of each.

One launch goes through all of them, since starting ranks costs more than the runs.
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file

STEPS = 6  # of three steps per epoch
COMMON = ("train.max_steps=6", "train.save_steps=2", "train.save_total_limit=null", "log.steps=1")
LORA = (
    "model.lora.rank=4",
    "model.lora.dropout=0.2",
    "model.learning_rate.llm=1e-3",
    "objective.learn_temperature=true",
)
STREAM = ("data.stream=true", "data.shuffle_buffer=8", "train.cache_text_states=false")
RESUMED = {
    "DDP, full, accumulation": ("train.num_workers=2", "objective.learn_temperature=true"),
    "DDP, LoRA, GradCache, queue": (*LORA, "train.grad_cache=true", "objective.queue_size=12", "train.num_workers=2"),
    "ZeRO-2, LoRA, queue": (*LORA, "train.deepspeed=2", "objective.queue_size=12", "log.steps=4"),  # lines 1 and 4
    "ZeRO-3, full, stream": (*STREAM, "train.deepspeed=3", "train.num_workers=1"),
}
NONFINITE = {
    "DDP loss raise": (),
    "DDP gradient raise": (),
    "DDP loss skip": ("objective.queue_size=12",),
    "ZeRO-0 gradient raise": ("train.deepspeed=0",),
    "ZeRO-1 loss raise": ("train.deepspeed=1",),
    "ZeRO-1 gradient skip": ("train.deepspeed=1",),
    "ZeRO-2 loss raise": ("train.deepspeed=2",),
    "ZeRO-2 gradient raise": ("train.deepspeed=2",),
    "ZeRO-2 loss skip": ("train.deepspeed=2",),
    "ZeRO-3 gradient raise": ("train.deepspeed=3",),
    "ZeRO-3 gradient skip": ("train.deepspeed=3",),
}


class Session:
    """train.py called again and again in one rank, with something done to it at chosen points."""

    def __init__(self, rank: int, yaml: str, folder: Path):
        from hacl.training import runtime, survival, trainer

        runtime.leave_group = lambda: None  # the ranks go on to the next run
        self.rank, self.yaml, self.folder = rank, yaml, folder
        self.ids: dict[int, list[list[str]]] = {}
        self.at_step, self.at_phase = {}, {}
        self.trainer = None
        session, begin, beat = self, trainer.HaclTrainer.begin_step, survival.SurvivingTrainer.beat

        def begin_step(self, records):
            session.trainer = self
            step = self.state.global_step + 1
            session.ids[step] = records
            begin(self, records)
            session.at_step.pop(step, lambda: None)()

        def noted(self, phase, records=None):
            beat(self, phase, records)
            session.at_phase.pop(phase, lambda: None)()

        trainer.HaclTrainer.begin_step, survival.SurvivingTrainer.beat = begin_step, noted

    def run(self, name: str, *how: str) -> tuple[int, str]:
        """(exit status, last line on standard error) of train.py in the run folder `name`."""
        from accelerate.state import AcceleratorState

        import train

        AcceleratorState._reset_state(True)
        for setting in [name for name in os.environ if name.startswith("ACCELERATE_")]:
            del os.environ[setting]  # of an earlier run with DeepSpeed
        dist.barrier()
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            status = train.main([self.yaml, f"train.output_dir={self.folder / name}", *COMMON, *how])
        errors = [line for line in said.getvalue().splitlines() if line.startswith("error:")]
        return status, errors[-1] if errors else ""

    def result(self, name: str) -> dict:
        """Logged losses as text, what the run returned as its loss, and weights of the last checkpoint."""
        run = self.folder / name
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        names = ("step", "loss", "grad_norm", "lm", "contrastive")
        losses = [" ".join(repr(row[name]) for name in names) for row in rows if "loss" in row]
        losses.append(repr(json.loads((run / "result.json").read_text())["metrics"]["train_loss"]))
        last = run / f"checkpoint-{STEPS}"
        tensors = {}
        for file in sorted(last.rglob("*.safetensors")):
            tensors |= {f"{file.name}/{key}": tensor for key, tensor in load_file(file).items()}
        return {"losses": losses, "tensors": tensors}


def interrupt(session: Session, name: str, how: tuple[str, ...], eval_path: str) -> dict:
    """A run left alone; and one that is stopped in step 3 by rank 1, then in validation by rank 0, then goes on."""
    from hacl.training.manifest import newest_checkpoint

    check = (f"data.eval_path={eval_path}", "train.eval_steps=4", "train.preempt_exit_code=75")
    status, _ = session.run(f"{name}/whole", *how, *check)
    facts = {"whole": session.result(f"{name}/whole"), "statuses": [status], "saved": []}
    whole_ids, session.ids = session.ids, {}

    def ask(number: int) -> None:
        for worker in multiprocessing.active_children():  # a scheduler signals loader workers too
            os.kill(worker.pid, number)
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)

    if session.rank == 1:
        session.at_step[3] = lambda: ask(signal.SIGUSR1)
    facts["statuses"].append(session.run(f"{name}/cut", *how, *check)[0])
    facts["saved"].append(newest_checkpoint(session.folder / name / "cut").name)
    if session.rank == 0:
        session.at_phase["validation"] = lambda: ask(signal.SIGTERM)
    facts["statuses"].append(session.run(f"{name}/cut", *how, *check)[0])
    facts["saved"].append(newest_checkpoint(session.folder / name / "cut").name)
    facts["statuses"].append(session.run(f"{name}/cut", *how, *check)[0])
    facts["cut"] = session.result(f"{name}/cut")
    facts["same ids"] = whole_ids == session.ids and len(whole_ids) == STEPS
    session.ids = {}
    dist.barrier()
    return facts


def poison(session: Session, name: str, how: tuple[str, ...]) -> dict:
    """A run of which rank 1 has a bad loss or gradient in the first micro-batch of step 2, which is not logged."""
    from hacl.training import trainer, weights

    _, kind, policy = name.rsplit(" ", 2)
    compose, state = trainer.compose, {"bad": False}

    def composed(objective, *parts):
        loss = compose(objective, *parts)
        if not (state["bad"] and isinstance(loss, torch.Tensor)):
            return loss
        state["bad"] = False
        if kind == "gradient":
            loss = loss * 1.0
            loss.register_hook(lambda grad: grad * float("nan"))
            return loss
        return loss * float("nan")

    trainer.compose = composed
    if session.rank == 1:
        session.at_step[2] = lambda: state.update(bad=True)
    last = 4 if policy == "skip" else 3
    options = (*how, f"train.on_nonfinite={policy}", "log.steps=100", "train.save_steps=1", f"train.max_steps={last}")
    status, error = session.run(name, *options)
    trainer.compose = compose
    dist.barrier()  # the first rank has written the report
    run = session.folder / name
    tensors = dict(weights.trained_tensors(session.trainer.model.backbone))
    now = {key: weights.full_tensor(tensor) for key, tensor in tensors.items()}
    kept = load_file(run / "checkpoint-1/trained.safetensors")
    facts = {
        "status": status,
        "error": error,
        "report": json.dumps(json.loads((run / "nonfinite-2.json").read_text())),
        "ids": session.ids[2],
        "unchanged": all(torch.equal(now[key].float(), kept[key].float()) for key in kept),
        "checkpoints": sorted(path.name for path in run.glob("checkpoint-*")),
        "finite": all(bool(tensor.isfinite().all()) for tensor in now.values()),
    }
    if policy == "skip":
        after = load_file(run / "checkpoint-2/trained.safetensors")
        facts["skipped"] = all(torch.equal(after[key], kept[key]) for key in kept)
        queues = [
            load_file(file) for file in (run / f"checkpoint-{i}/queue.safetensors" for i in (1, 2)) if file.is_file()
        ]
        facts["queue"] = all(torch.equal(queues[0][key], queues[1][key]) for key in (queues[0] if queues else ()))
    session.ids = {}
    dist.barrier()
    return facts


def all_runs(rank: int, yaml: str, folder: Path, eval_path: str) -> dict:
    """What every run of this launch showed on this rank."""
    multiprocessing.current_process().daemon = False  # or it could have no loader workers
    multiprocessing.set_start_method("fork", force=True)  # as in a rank that a launcher started
    session, facts = Session(rank, yaml, folder), {}
    # ZeRO-3 changes how models are made in this process for good, so the runs go from no DeepSpeed to its last stage.
    from tests.distributed import refusal_runs

    facts["signal while loading"] = refusal_runs.signal_while_loading(session)
    facts["one step"] = refusal_runs.read_one_step(rank)
    facts["two disks"] = refusal_runs.two_disks(session)
    facts["unreadable validation"] = refusal_runs.unreadable_validation(session, eval_path)
    facts["uneven"] = refusal_runs.uneven_step(session, "uneven")
    for name, how in sorted({**RESUMED, **NONFINITE}.items(), key=lambda item: stage_of(item[1])):
        facts[name] = interrupt(session, name, how, eval_path) if name in RESUMED else poison(session, name, how)
    facts["uneven, ZeRO-3"] = refusal_runs.uneven_step(session, "uneven-zero", "train.deepspeed=3")
    if rank == 0:
        shutil.rmtree(folder)
    return facts


def stage_of(how: tuple[str, ...]) -> str:
    """The setting of DeepSpeed among overrides, nothing without it."""
    return next((setting for setting in how if setting.startswith("train.deepspeed=")), "")
