"""How many bytes the ranks of a run exchange per optimizer step: counted, not timed.

Weights and gradients are counted by DeepSpeed's communication logger, in model sizes: a collective over a whole tensor
of S bytes counts S / (bytes of all parameters), whatever the number of ranks W. On the wire a rank sends (W - 1) / W of
that for an all-gather, a reduce-scatter or a reduce, and twice that for an all-reduce. Features of the contrastive loss
go through `hacl.losses.gather`, whose calls are counted beside it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers import TrainerCallback

from hacl.config import Config
from hacl.losses import gather
from hacl.training import run, runtime

CALLS = 4  # decoder calls of the released form of HACL: generation, image, caption, hallucinated caption


@dataclass
class Traffic:
    """Of one step. gathered, scattered, all_reduced: model sizes of weights gathered, of gradients reduced to their
    owners, and of gradients reduced to all ranks; feature_bytes: what the contrastive loss exchanged."""

    gathered: float = 0.0
    scattered: float = 0.0
    all_reduced: float = 0.0
    feature_bytes: int = 0

    @property
    def on_the_wire(self) -> float:
        """Model sizes that a rank sends, for many ranks: an all-reduce is a reduce-scatter and an all-gather."""
        return self.gathered + self.scattered + 2 * self.all_reduced


# Collective in DeepSpeed's log -> what it does, and whether the logged size is that of one rank's share.
KINDS = {
    "all_gather_into_tensor": ("gathered", True),
    "reduce_scatter_tensor": ("scattered", False),
    "reduce": ("scattered", False),
    "all_reduce": ("all_reduced", False),
    "broadcast": ("gathered", False),
}


class _CountedCollectives:
    """torch.distributed for `hacl.losses.gather`, counting bytes of whole tensors."""

    # Which argument is the whole: the list of what all ranks give, or the tensor that is scattered or reduced.
    whole = {"all_gather": 0, "reduce_scatter_tensor": 1, "all_reduce": 0}

    def __init__(self) -> None:
        self.bytes = 0

    def __getattr__(self, name: str):
        collective = getattr(torch.distributed, name)
        if name not in self.whole:
            return collective

        def counted(*tensors, **options):
            whole = tensors[self.whole[name]]
            parts = whole if isinstance(whole, list) else [whole]
            self.bytes += sum(part.numel() * part.element_size() for part in parts)
            return collective(*tensors, **options)

        return counted


@dataclass
class TrafficMeter(TrainerCallback):
    """Counts what is exchanged between the beginning and the end of each step; `steps` holds the counts in order.

    model_bytes: bytes of all parameters as they are exchanged. Needs the plan of `counting_plan`. Raises RuntimeError
    for a collective that KINDS does not know, so that nothing is missed.
    """

    model_bytes: int
    steps: list[Traffic] = field(default_factory=list)

    def on_step_begin(self, args, state, control, **kwargs):
        from deepspeed.comm.comm import comms_logger

        comms_logger.comms_dict.clear()
        gather.dist = _CountedCollectives()

    def on_step_end(self, args, state, control, **kwargs):
        from deepspeed.comm.comm import comms_logger

        step = Traffic(feature_bytes=gather.dist.bytes)
        gather.dist = torch.distributed
        for name, by_size in comms_logger.comms_dict.items():
            if name == "barrier":
                continue
            if name not in KINDS:
                raise RuntimeError(f"DeepSpeed's log holds {name}, which is not counted; add it to KINDS")
            kind, is_share = KINDS[name]
            logged = sum(count * size for size, (count, *_) in by_size.items())
            whole = logged * (torch.distributed.get_world_size() if is_share else 1)
            setattr(step, kind, getattr(step, kind) + whole / self.model_bytes)
        self.steps.append(step)


def counting_plan(config: Config) -> dict:
    """The DeepSpeed configuration of a run with the communication log on. ZeRO-3 keeps nothing gathered: by default it
    never shards tensors below a size and holds on to what it needs again within a billion parameters, which is all of a
    small model."""
    plan = runtime.deepspeed_config(config.train)
    plan["comms_logger"] = {"enabled": True, "prof_all": True, "verbose": False}
    if plan["zero_optimization"]["stage"] == 3:
        plan["zero_optimization"] |= {
            "stage3_param_persistence_threshold": 0,
            "stage3_max_reuse_distance": 0,
            "stage3_max_live_parameters": 1,
        }
    return plan


def count_step(config: Config, folder: Path, *, calls: int = 1) -> Traffic:
    """Traffic of the second step of a run (the first one records in which order ZeRO-3 needs its weights).

    Every rank calls this together. folder: for the run, may be of this rank alone. calls: how often the decoder runs on
    a batch, CALLS for what the released form exchanges; the losses mean nothing then.
    """
    plan_file = folder / "deepspeed.json"
    plan_file.write_text(json.dumps(counting_plan(config)), encoding="utf-8")
    train = replace(
        config.train, deepspeed=str(plan_file), output_dir=str(folder / "run"), max_steps=2, save_steps=0, resume="none"
    )
    trainer = run.build_trainer(replace(config, train=train))
    if calls > 1:
        once = trainer.model.encode

        def encode(*batch):
            return tuple(sum(states) for states in zip(*(once(*batch) for _ in range(calls)), strict=True))

        trainer.model.encode = encode
    sizes = [getattr(p, "ds_numel", p.numel()) * p.element_size() for p in trainer.model.parameters()]
    meter = TrafficMeter(sum(sizes))
    trainer.add_callback(meter)
    trainer.train()
    return meter.steps[1]
