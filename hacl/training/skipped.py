"""How many training samples could not be read and were replaced, by reason, and how many gave no token to learn, over
all ranks, workers and resumed runs; and when there are too many to go on.

The counters are saved in the trainer state of each checkpoint. They change where a step takes its batches, in the
collective that counts labels, so all ranks hold the same numbers and stop at the same step.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from hacl.data.bad_samples import REASONS, UNLABELLED

logger = logging.getLogger(__name__)
COUNTED = (*REASONS, UNLABELLED)
LOGGED = 5  # of each reason and process, in full; after that every tenth, hundredth, ... of the power of ten reached


class SkippedSamples(TrainerCallback, ExportableState):
    """The counters of a run.

    allowed: `data.max_bad_fraction`; epoch_samples: samples drawn in an epoch, None where that is not known;
    unlabelled: `data.max_unlabelled_fraction`. The first share is of the samples of all epochs begun (of the whole run
    where that is less, or where an epoch's are not known): a bad sample in the first batch stops no run, and one order
    of the samples is as good as another. The second is of no fewer than those of one epoch.
    """

    def __init__(self, allowed: float, epoch_samples: int | None, unlabelled: float = 1.0):
        self.allowed, self.epoch_samples, self.unlabelled = allowed, epoch_samples, unlabelled
        self.run_samples = 1
        self.samples = 0
        self.totals = dict.fromkeys(COUNTED, 0)
        self._seen = dict.fromkeys(COUNTED, 0)
        self._first = ""  # sample of this rank without a label, for the message

    def take(self, batches: list[dict[str, Any]]) -> list[int]:
        """Remove the notes from the batches of this rank and log them; [samples, how many of each of `COUNTED`]."""
        counts = dict.fromkeys(COUNTED, 0)
        for batch in batches:
            for reason, message in batch.pop("skipped", ()):
                counts[reason] += 1
                self._log(reason, message)
        return [sum(batch["sample_index"].numel() for batch in batches), *counts.values()]

    def add(self, counts: Sequence[int]) -> str | None:
        """Add what `take` returned, summed over ranks; or, above the share, add nothing and say what is wrong."""
        samples, *skipped = counts
        totals = {name: self.totals[name] + count for name, count in zip(COUNTED, skipped, strict=True)}
        bad, base = sum(totals[name] for name in REASONS), self._begun(self.samples + samples)
        if bad > self.allowed * base:
            by_reason = ", ".join(f"{totals[name]} {name}" for name in REASONS if totals[name])
            return (
                f"{bad} sample(s) could not be read ({by_reason}), more than data.max_bad_fraction={self.allowed:g} of "
                f"{base}; list them with data_prep/validate.py and mend them, or raise that share"
            )
        base = max(base, self.epoch_samples or 0)  # a short run draws few samples, and which ones is chance
        if totals[UNLABELLED] > self.unlabelled * base:
            return (
                f"{totals[UNLABELLED]} sample(s) have no token to learn, more than data.max_unlabelled_fraction="
                f"{self.unlabelled:g} of {base}{self._first}; raise data.max_length, see whether data.template fits "
                "the records (data_prep/validate.py shows one), or raise that share"
            )
        self.samples += samples
        self.totals = totals
        return None

    def _begun(self, samples: int) -> int:
        """Samples of the epochs begun when so many were drawn."""
        epoch = min(self.run_samples, self.epoch_samples or self.run_samples)
        return -(-samples // epoch) * epoch

    def metrics(self) -> dict[str, int]:
        """`skipped/<reason>`: samples replaced since the run began, for reasons that occurred; `unlabelled`: samples
        without a token to learn, where there were any."""
        found = {f"skipped/{name}": self.totals[name] for name in REASONS if self.totals[name]}
        return found | ({UNLABELLED: self.totals[UNLABELLED]} if self.totals[UNLABELLED] else {})

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"samples": self.samples, "totals": self.totals}}

    def on_train_begin(self, args, state, control, **kwargs):
        window = args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps
        self.run_samples = state.max_steps * window
        name = type(self).__name__
        if name in state.stateful_callbacks:
            saved = state.stateful_callbacks[name]["attributes"]
            self.samples, self.totals = saved["samples"], {**self.totals, **saved["totals"]}
        state.stateful_callbacks[name] = self.state()  # which a checkpoint of an earlier version lacks

    def on_train_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero and any(self.totals.values()):
            found = ", ".join(f"{count} {name}" for name, count in self.metrics().items())
            print(f"of {self.samples} samples since the run began: {found}", flush=True)

    def _log(self, reason: str, message: str) -> None:
        self._seen[reason] = seen = self._seen[reason] + 1
        if reason == UNLABELLED and not self._first:
            self._first = f", here first {message}"
        step = 10 ** (len(str(seen)) - 1)
        if seen <= LOGGED or (seen >= 10 and seen % step == 0):
            what = "no token to learn" if reason == UNLABELLED else f"skipped, {reason}"
            logger.warning("%s, number %d of this process: %s", what, seen, message)
