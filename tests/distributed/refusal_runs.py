"""Runs of the survival launch that end before their first step or in a validation, and one with an uneven step."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist

from hacl.data.images import load_image
from hacl.training.trainer import DataError, HaclTrainer
from tests.distributed.survival_runs import Session

ROOT = Path(__file__).resolve().parents[2]
UNEVEN = ("objective.contrastive_weight=0", "train.max_steps=3", "train.save_steps=0", "train.max_grad_norm=1e9")


def signal_while_loading(session: Session) -> dict:
    """Rank 1 is asked to stop while it reads its processor."""
    from hacl.training import build

    processor, backbone, loaded = build.load_processor, build.load_backbone, []

    def asked(config):
        if session.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return processor(config)

    def load(*arguments):
        loaded.append(True)
        return backbone(*arguments)

    build.load_processor, build.load_backbone = asked, load
    try:
        status, _ = session.run("asked", "train.preempt_exit_code=75")
    finally:
        build.load_processor, build.load_backbone = processor, backbone
    dist.barrier()
    return {"status": status, "loaded": bool(loaded), "left": (session.folder / "asked").exists()}


def two_disks(session: Session) -> dict:
    """Every rank has a run folder of its own under one name."""
    from hacl.training import run_folder

    run_folder.SEEN_WITHIN = 0.2
    status, error = session.run(f"disk-{session.rank}")
    dist.barrier()
    return {"status": status, "error": error, "left": list(map(str, session.folder.glob("disk-0/checkpoint-*")))}


def unreadable_validation(session: Session, eval_path: str) -> dict:
    """Rank 1 cannot read a record of the validation after step 2; then it can, and the run goes on."""
    from hacl.data.dataset import TrainingDataset

    read, bad = TrainingDataset.__getitem__, []

    def damaged(self, index):
        if bad:
            bad.clear()
            raise OSError("7.png: the disk is gone")
        return read(self, index)

    TrainingDataset.__getitem__ = damaged
    if session.rank == 1:
        session.at_phase["validation"] = lambda: bad.append(True)
    how = (f"data.eval_path={eval_path}", "train.eval_steps=2", "train.save_steps=0", "train.max_steps=3")
    try:
        status, error = session.run("unread", *how)
    finally:
        TrainingDataset.__getitem__ = read
    dist.barrier()
    saved = (session.folder / "unread/checkpoint-2/manifest.json").is_file()
    facts = {"status": status, "error": error, "saved": saved, "again": session.run("unread", *how)[0]}
    session.ids = {}
    dist.barrier()
    return facts


def uneven_step(session: Session, name: str, *how: str) -> dict:
    """In step 2 rank 1 has one micro-batch of two. Without DeepSpeed: also how far its gradient is from that of all
    label tokens that there are, put together by hand (relative, of all parameters)."""
    from transformers import TrainerCallback

    from hacl.training import trainer

    read, take, steps, facts = trainer._read, trainer.HaclTrainer.get_batch_samples, [], {}

    def read_short(iterator, count):
        steps.append(len(steps) + 1)
        batches, failure = read(iterator, count)
        return batches[:1] if session.rank == 1 and len(steps) == 2 else batches, failure

    def noted(self, *arguments):
        batches, labels = take(self, *arguments)
        if len(steps) == 2 and not how:
            mine = batches[:1] if session.rank == 1 else batches
            expected = _mean_gradient(self, mine, labels)
            self.add_callback(Compare(self, expected))
        return batches, labels

    class Compare(TrainerCallback):
        def __init__(self, owner, expected):
            self.owner, self.expected = owner, expected

        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            if state.global_step == 1:
                found = torch.cat([p.grad.flatten() for p in _trained(self.owner)])
                facts["off"] = float((found - self.expected).norm() / self.expected.norm())

    trainer._read, trainer.HaclTrainer.get_batch_samples = read_short, noted
    try:
        facts["status"], _ = session.run(name, *UNEVEN, *how)
    finally:
        trainer._read, trainer.HaclTrainer.get_batch_samples = read, take
    dist.barrier()
    rows = [json.loads(line) for line in (session.folder / name / "metrics.jsonl").read_text().splitlines()]
    facts["rows"] = [[row["loss"], row["lm"], row["grad_norm"]] for row in rows if "loss" in row]
    session.ids = {}
    dist.barrier()
    return facts


def _trained(trainer) -> list:
    return [p for p in trainer.model.parameters() if p.requires_grad]


def _mean_gradient(trainer, batches, labels) -> torch.Tensor:
    """Of the generation loss over the label tokens of these micro-batches of all ranks, flat."""
    total = 0.0
    for batch in batches:
        loss = trainer.model(**trainer._prepare_inputs(dict(batch))).lm_sum
        parts = torch.autograd.grad(loss, _trained(trainer), allow_unused=True)
        shapes = zip(parts, _trained(trainer), strict=True)
        total = total + torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in shapes])
    dist.all_reduce(total)
    return total / labels


def killed():
    raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Aborted.")


def read_one_step(rank):
    """What this rank hears when rank 1 cannot read its data, and when it loses a loader worker."""
    trainer = HaclTrainer.__new__(HaclTrainer)
    trainer.args = SimpleNamespace(world_size=2)
    heard = []
    for fail in (lambda: load_image(ROOT / "pyproject.toml"), killed):
        batches = iter([{"sequence_kind": torch.tensor([0]), "label_sequence": torch.tensor([0, 0])}])
        damaged = (fail() for _ in range(1))
        try:
            trainer.get_batch_samples(damaged if rank else batches, 1, torch.device("cpu"))
        except DataError as error:
            heard.append(str(error))
    return heard
