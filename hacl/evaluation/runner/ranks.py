"""Which of several processes this one is, and how they wait for each other; torchrun sets the variables."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

# A rank may wait for the slowest one's whole share of the questions.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """rank: of this process, from 0; world: how many there are."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """This process writes what is written once."""
        return self.rank == 0

    def wait(self) -> None:
        """Return when every rank has come here."""
        if self.world > 1:
            import torch.distributed as dist

            dist.barrier()


def join_ranks() -> Ranks:
    """The ranks that torchrun (or the caller) set up; one process where there is none. Gloo: only barriers are used."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Ranks()
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=PATIENCE)
    return Ranks(dist.get_rank(), dist.get_world_size())


def leave_ranks(ranks: Ranks) -> None:
    """End the process group that `join_ranks` made."""
    if ranks.world > 1:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


def local_device(device: str) -> str:
    """The device of this rank: "auto" takes the GPU of the local rank where there is one; "cuda" likewise."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % max(torch.cuda.device_count(), 1)}"
    return device
