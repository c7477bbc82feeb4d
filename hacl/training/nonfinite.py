"""Stop, or skip, a step whose loss or gradient norm is not finite: before its update, on all ranks together.

Flags stay on the device until the step has its gradients; one number then comes to the host per optimizer step. What is
checked when:

* Without DeepSpeed: the losses of all micro-batches and ranks (with GradCache also that of the window), and the norm
  of the gradients after they were averaged. Both before the optimizer.
* DeepSpeed: the losses before the backward of the last micro-batch, in which the engine also updates. The norm is
  computed inside the engine: ZeRO 1-3 themselves leave the update out when it is not finite, which is seen after it,
  with the weights as they were; at stage 0 a hook of the optimizer looks at the gradients before the update.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hacl.plain_text import short_line

NAMED = 8  # records in a message; the file has all of them


class NonFiniteError(ValueError):
    """Loss or gradient norm of a step is not a finite number; the update was not made."""


def report_path(folder: Path | str, step: int) -> Path:
    """The file that names the records of a step that was stopped or skipped."""
    return Path(folder) / f"nonfinite-{step}.json"


class NonFiniteGuard:
    """What `train.on_nonfinite` says about one step after the other. `begin` it, `note` losses, then ask.

    policy: "raise" or "skip"; most: skips allowed in this process before the next one raises; folder: run folder.
    """

    def __init__(self, policy: str, most: int, folder: Path | str):
        self.policy, self.most, self.folder = policy, most, Path(folder)
        self.skipped = 0
        self.begin([], step=0)

    def begin(self, records: Sequence[Sequence[str]], *, step: int) -> None:
        """Start an optimizer step. records: ids of every micro-batch of this rank; step: the number it will have."""
        self.records, self.step = records, step
        self._losses: list[Tensor] = []
        self._is_bad: Tensor | None = None
        self.is_skipping = False

    def note(self, loss: Tensor, *, is_of_window: bool = False) -> None:
        """Take in a loss of the step (0-d, of this rank), of a micro-batch or of all; no transfer to the host."""
        loss = loss.detach()
        bad = ~torch.isfinite(loss).all()
        self._is_bad = bad if self._is_bad is None else self._is_bad | bad
        if not is_of_window:
            self._losses.append(loss)

    def losses_are_finite(self, norm: Tensor | float | None = None) -> bool:
        """Whether all noted losses of all ranks (collective), and the norm where given, are finite."""
        bad = self._is_bad.to(torch.int32)
        if norm is not None:
            bad = bad | (~torch.isfinite(torch.as_tensor(norm, device=bad.device))).to(torch.int32).reshape(())
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(bad, op=torch.distributed.ReduceOp.MAX)
        return not bad.item()

    def refuse(self, what: str) -> None:
        """Handle a step that must not be made (collective): write its records, then raise or count the skip.

        Raises NonFiniteError with policy "raise", and after `most` skips.
        """
        ranks = self._everyone()
        if ranks[0]["rank"] == _rank():
            content = {"step": self.step, "what": what, "policy": self.policy, "ranks": ranks}
            self._report(content)
        self.is_skipping = True
        self.skipped += 1
        if self.policy == "skip" and self.skipped <= self.most:
            if _rank() == 0:
                print(f"step {self.step} skipped ({self.skipped} of at most {self.most}): {what}", flush=True)
            return
        raise NonFiniteError(self._message(what, ranks))

    def _report(self, content: dict[str, Any]) -> None:
        path = report_path(self.folder, self.step)
        try:
            path.write_text(json.dumps(content, indent=1), encoding="utf-8")
        except OSError as error:  # which must not hide what it is about
            print(f"warning: {path} could not be written: {error}", file=sys.stderr, flush=True)

    def _everyone(self) -> list[dict[str, Any]]:
        """Losses and records of the step, of every rank."""
        losses = [float(loss) for loss in self._losses]
        parts = [{"records": list(ids)} for ids in self.records]
        for part, loss in zip(parts, losses, strict=False):
            part["loss"] = loss if math.isfinite(loss) else str(loss)
        mine = {"rank": _rank(), "micro_batches": parts}
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return [mine]
        everyone: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(everyone, mine)
        return everyone

    def _message(self, what: str, ranks: list[dict[str, Any]]) -> str:
        parts = [part for rank in ranks for part in rank["micro_batches"]]
        bad = [part for part in parts if isinstance(part.get("loss"), str)] or parts
        ids = [record for part in bad for record in part["records"]]
        named = ", ".join(map(short_line, ids[:NAMED])) + (f" and {len(ids) - NAMED} more" if len(ids) > NAMED else "")
        skips = f" after {self.most} skipped steps" if self.policy == "skip" else ""
        return (
            f"{what} at step {self.step}{skips}, with records {named} ({report_path(self.folder, self.step)} has all "
            f"of the step); the update was not made. Look at these records, lower the learning rate, or set "
            "train.on_nonfinite=skip, and run the same command again to resume from the last checkpoint"
        )


def _rank() -> int:
    is_one_of_several = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if is_one_of_several else 0


def gradients_are_finite(optimizer: torch.optim.Optimizer) -> bool:
    """Whether every gradient that an optimizer would use is finite, on this rank."""
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return not grads or bool(torch.stack([torch.isfinite(grad).all() for grad in grads]).all())
