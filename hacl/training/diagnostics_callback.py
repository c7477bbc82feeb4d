"""The cheap state diagnostics of a few held-out records while a run trains: modality gap, cosines, margins.

Shapes: B records, K hallucinated captions per record, D hidden size, P contrastive size, Nl label tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback

from hacl.data.collate import GENERATION, HALLUCINATED_GENERATION, PackedCollator
from hacl.data.dataset import TrainingDataset
from hacl.data.records import HALLUCINATION_TYPES, Record
from hacl.data.templates import SequenceEncoder
from hacl.losses.lm import sequence_log_likelihood, token_losses
from hacl.models.modes import evaluating
from hacl.training.callbacks import Log, leaving_to_the_loop
from hacl.training.objective import HaclModel
from hacl.training.state_measures import gap_measures, paired_margins

MOST_HALLUCINATED = 8  # of one record
Features = dict[str, np.ndarray]


def usable_records(records: Sequence[Record], count: int) -> list[Record]:
    """The first records with one image and a hallucinated caption, cut down to one caption and what was made from it.

    Raises:
        ValueError: there is none.
    """
    found = []
    for record in records:
        if len(record.images) != 1 or not record.captions or not record.hallucinated:
            continue
        caption = record.hallucinated[0].of or 0
        edits = [h for h in record.hallucinated if (h.of or 0) == caption][:MOST_HALLUCINATED]
        edits = tuple(replace(edit, of=0) for edit in edits)
        found.append(replace(record, captions=(record.captions[caption],), hallucinated=edits, conversation=()))
        if len(found) == count:
            break
    if not found:
        raise ValueError(
            "log.diagnostic_steps: no record has one image, a caption and a hallucinated caption; give such records, "
            "or set log.diagnostic_steps=0"
        )
    return found


class StateDiagnostics(TrainerCallback):
    """Measures of fixed records every `every` steps and before the first: `<run>/diagnostics.jsonl` and TensorBoard.

    Measures stand under `pre/` (states before the heads) and, with heads, `post/`: those of
    :func:`~hacl.training.state_measures.gap_measures`, `state_margin_accuracy` (also by type); and
    `caption_margin_accuracy` and `caption_margin` (nats per token) by the likelihood of true against hallucinated
    captions. All ranks run the same forward passes (a sharded model needs every rank); the first one writes. Nothing
    random is drawn, so training goes on as it would have. Rows of steps that a resumed run repeats are dropped.
    """

    def __init__(
        self,
        model: HaclModel,
        encoder: SequenceEncoder,
        records: Sequence[Record],
        image_root: Path | None,
        *,
        paused: Callable[[], AbstractContextManager],
        every: int,
        count: int,
        batch_size: int,
        folder: Path | str,
        poll: Callable[[str], None] | None = None,
    ):
        """records: candidates, of which the first `count` usable ones serve; paused: context that stops clocks; poll:
        called with a name before every batch, may raise to end the run."""
        self.poll = poll
        self.model, self.every, self.folder, self.paused = model, every, Path(folder), paused
        chosen = usable_records(records, count)
        objective = replace(
            model.objective,
            lm_weight=1.0,
            contrastive_weight=1.0,
            likelihood_margin_weight=1.0,
            num_captions=1,
            num_hallucinated=max(len(record.hallucinated) for record in chosen),
        )
        samples = TrainingDataset(chosen, encoder, image_root=image_root, objective=objective, seed=0)
        collator = PackedCollator(encoder, objective)
        rows = [samples[i] for i in range(len(samples))]
        self.batches = [collator(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]
        self.lines, self.events = Log(self.folder / "diagnostics.jsonl"), Log(self.folder / "tensorboard")
        self.writer = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero and self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self.lines.keep_until(state.global_step)
            with self.events.writing():
                self.writer = SummaryWriter(str(self.folder / "tensorboard"))
        if state.global_step == 0:
            self._write(args, state)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0:
            with leaving_to_the_loop():
                self._write(args, state)

    def on_train_end(self, args, state, control, **kwargs):
        if self.writer is not None:
            with self.events.writing():
                self.writer.close()
            self.writer = None

    def _write(self, args, state) -> None:
        with self.paused():
            measures = self.measure(args)
        if not state.is_world_process_zero:
            return
        self.lines.append([{"step": state.global_step, **measures}])
        if self.writer is None:
            return
        with self.events.writing():
            for name, value in measures.items():
                self.writer.add_scalar(f"diagnostics/{name}", value, state.global_step)
            self.writer.flush()

    def measure(self, args) -> dict[str, float]:
        """All measures of the fixed records with the model as it is now."""
        mixed = args.bf16 and not args.deepspeed
        cast = torch.autocast(args.device.type, dtype=torch.bfloat16) if mixed else contextlib.nullcontext()
        with evaluating(self.model), cast:
            found = [self._measured(batch, args.device) for batch in self.batches]
        whole = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
        return summarise(whole)

    def _measured(self, batch: dict[str, Tensor], device: torch.device) -> Features:
        if self.poll is not None:
            self.poll("diagnostics")
        return self._features({name: value.to(device) for name, value in batch.items()})

    def _features(self, batch: dict[str, Tensor]) -> Features:
        model = self.model
        states_RTD, read_states_RTD = model.encode(batch)
        states = model.read(read_states_RTD, batch)
        usable_BK = batch["hallucinated_valid"]
        found = {
            "pre/image": states.image_BD,
            "pre/true": states.caption_BCD[:, 0],
            "pre/hallucinated": states.hallucinated_BKD,
            "usable": usable_BK,
            "type": batch["hallucinated_type"],
            "margin": self._margins(states_RTD, batch),
        }
        if model.heads is not None:
            dtype = next(model.heads.parameters()).dtype
            found["post/image"] = model.heads.project_image(states.image_BD.to(dtype))
            found["post/true"] = model.heads.project_text(states.caption_BCD[:, 0].to(dtype))
            found["post/hallucinated"] = model.heads.project_text(states.hallucinated_BKD.to(dtype))
        return {name: (v.float() if v.is_floating_point() else v).cpu().numpy() for name, v in found.items()}

    def _margins(self, states_RTD: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """log p(true) - log p(hallucinated) given the image, nats per token, (B, K); zero where there is no pair."""
        row_Nl, column_Nl = batch["label_read"].unbind(-1)
        losses_Nl = token_losses(self.model.adapter.logits(states_RTD[row_Nl, column_Nl]), batch["label_target"])
        kind_S, owner_S, sequence_Nl = batch["sequence_kind"], batch["sequence_sample"], batch["label_sequence"]
        tokens_S = torch.bincount(sequence_Nl, minlength=len(kind_S)).clamp_min(1)
        mean_S = sequence_log_likelihood(losses_Nl, sequence_Nl, len(kind_S)) / tokens_S
        usable_BK = batch["hallucinated_valid"]
        true_B = mean_S.new_zeros(len(usable_BK))
        true_B[owner_S[kind_S == GENERATION]] = mean_S[kind_S == GENERATION]
        false_BK = mean_S.new_zeros(usable_BK.shape)
        false_BK[usable_BK] = mean_S[kind_S == HALLUCINATED_GENERATION]  # both run by record, then by slot
        return torch.where(usable_BK, true_B[:, None] - false_BK, 0.0)


def summarise(features: Features) -> dict[str, float]:
    """Measures of features of all records: image and true (B, P), hallucinated (B, K, P), usable, type, margin (B, K).

    What is undefined (a cosine of unmatched pairs with one record) is left out.
    """
    usable_BK, types_BK = features["usable"], features["type"]
    owner_H, slot_H = np.nonzero(usable_BK)
    found: dict[str, float | None] = {}
    for stage in ("pre", "post"):
        if f"{stage}/image" not in features:
            continue
        image, true = features[f"{stage}/image"], features[f"{stage}/true"]
        measures = gap_measures(image, true, np.arange(len(image)))
        found |= {f"{stage}/{name}": value for name, value in measures.items()}
        wins_H = paired_margins(image[owner_H], true[owner_H], features[f"{stage}/hallucinated"][owner_H, slot_H]) > 0
        found[f"{stage}/state_margin_accuracy"] = float(wins_H.mean())
        for index in np.unique(types_BK[usable_BK]).tolist():
            of_type = types_BK[owner_H, slot_H] == index
            found[f"{stage}/state_margin_accuracy/{HALLUCINATION_TYPES[index]}"] = float(wins_H[of_type].mean())
    margins_H = features["margin"][owner_H, slot_H]
    found |= {"caption_margin_accuracy": float((margins_H > 0).mean()), "caption_margin": float(margins_H.mean())}
    return {name: value for name, value in found.items() if value is not None}
