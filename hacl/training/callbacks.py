"""What watches a run: JSON lines, TensorBoard, and captions generated for fixed images."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from hacl.data.model_inputs import prompt_inputs
from hacl.data.records import Record
from hacl.models.modes import evaluating
from hacl.training.stopping import Stopped
from hacl.training.storage import explain, is_storage_failure


def keep_until(path: Path, step: int) -> None:
    """Drop the lines of later steps from a JSONL file, and a last line that an interruption cut; step 0 drops all."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if step else ():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except json.JSONDecodeError:
            continue
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


class Log:
    """A log in the run folder, which the first rank writes alone. A failed write is said once, and the run goes on.

    An error here would leave the other ranks waiting, and a log is no state: what is missing in it is lost, and a disk
    that stays full ends the run, on all ranks, at the next checkpoint.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self._is_told = False

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Around anything that writes the log; what follows a failed write inside is left out."""
        try:
            yield
        except Exception as error:
            if not is_storage_failure(error):
                raise
            if not self._is_told:
                print(
                    f"warning: {explain(error, self.path.parent, self.path.name)}. What it lacks now is lost; "
                    "the run goes on, and ends if it cannot save",
                    file=sys.stderr,
                    flush=True,
                )
            self._is_told = True

    def keep_until(self, step: int) -> None:
        """See the function of this name."""
        with self.writing():
            keep_until(self.path, step)

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write rows as lines, all of them or none."""
        with self.writing():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            size = self.path.stat().st_size if self.path.exists() else 0
            try:
                with self.path.open("a", encoding="utf-8") as stream:
                    stream.write("".join(json.dumps(row) + "\n" for row in rows))
            except OSError:
                if self.path.exists():
                    os.truncate(self.path, size)
                raise


@contextlib.contextmanager
def leaving_to_the_loop() -> Iterator[None]:
    """For a callback in the middle of a step: a request to stop ends it, and the loop stops after logging the step."""
    try:
        yield
    except Stopped:
        return


class JsonLines(TrainerCallback):
    """One JSON object per log line in `<run>/metrics.jsonl`; lines of steps that a resumed run repeats are dropped."""

    def __init__(self, folder: Path | str):
        self.lines = Log(Path(folder) / "metrics.jsonl")

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.lines.keep_until(state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs:
            self.lines.append([{"step": state.global_step, "time": time.time(), **logs}])


class Board(TensorBoardCallback):
    """Trainer's TensorBoard callback with its events in `<run>/tensorboard`."""

    def __init__(self, folder: Path | str):
        super().__init__()
        self.events = Log(Path(folder) / "tensorboard")
        self.logging_dir = str(self.events.path)

    def on_train_begin(self, *arguments, **options):
        with self.events.writing():
            super().on_train_begin(*arguments, **options)

    def on_log(self, *arguments, **options):
        with self.events.writing():
            super().on_log(*arguments, **options)

    def on_train_end(self, *arguments, **options):
        with self.events.writing():
            super().on_train_end(*arguments, **options)


class SampleCaptions(TrainerCallback):
    """Greedy captions of fixed images every `every` steps: `<run>/samples.jsonl`, and text and image on TensorBoard.

    All ranks generate the same captions (a sharded model needs every rank); the first one writes. Rows of steps that a
    resumed run repeats are dropped.
    """

    def __init__(
        self,
        model,
        processor,
        records: Sequence[Record],
        image_root: Path,
        encoder,
        *,
        paused,
        every,
        new_tokens,
        folder,
        poll=None,
    ):
        """encoder: of the prompt; paused: context that stops clocks; poll: called with a name at every token, may raise
        to end the run."""
        from hacl.data.images import load_image, resolve_image

        self.model, self.processor = model, processor
        self.every, self.new_tokens, self.folder = every, new_tokens, Path(folder)
        self.records = [record for record in records if len(record.images) == 1]
        self.images = [load_image(resolve_image(image_root, record.images[0])) for record in self.records]
        self.encoder, self.paused, self.poll = encoder, paused, poll
        self.lines, self.events = Log(self.folder / "samples.jsonl"), Log(self.folder / "tensorboard")
        self.writer = None

    def on_train_begin(self, args, state, control, **kwargs):
        if self.every and state.is_world_process_zero and self.writer is None:
            self.lines.keep_until(state.global_step)
            with self.events.writing():
                self._show_images()

    def _show_images(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self.folder / "tensorboard"))
        for record, image in zip(self.records, self.images, strict=True):
            pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
            pixels = pixels.reshape(image.height, image.width, 3)
            self.writer.add_image(f"samples/{record.id}", pixels, 0, dataformats="HWC")

    def on_step_end(self, args, state, control, **kwargs):
        if not self.every or not self.records or state.global_step % self.every:
            return
        with self.paused(), leaving_to_the_loop():
            self._write(args, state)

    def _write(self, args, state) -> None:
        captions = self.generate(args)
        if not state.is_world_process_zero:
            return
        told = list(zip(self.records, captions, strict=True))
        self.lines.append(
            [
                {"step": state.global_step, "id": record.id, "caption": caption, "reference": record.captions[:1]}
                for record, caption in told
            ]
        )
        if self.writer is not None:
            with self.events.writing():
                for record, caption in told:
                    self.writer.add_text(f"samples/{record.id}", caption, state.global_step)
                self.writer.flush()

    def on_train_end(self, args, state, control, **kwargs):
        if self.writer is not None:
            with self.events.writing():
                self.writer.close()
            self.writer = None

    def _keep_going(self, ids_BT, scores, **_) -> torch.Tensor:
        """A criterion of `generate` that never stops it, and is asked at every token."""
        if self.poll is not None:
            self.poll("sampling")
        return torch.zeros(len(ids_BT), dtype=torch.bool, device=ids_BT.device)

    def generate(self, args) -> list[str]:
        """One greedy caption per fixed image."""
        with evaluating(self.model):
            return self._generate(args)

    def _generate(self, args) -> list[str]:
        backbone = self.model.adapter.model
        dtype = next(self.model.adapter.vision_tower.parameters()).dtype
        given = prompt_inputs(self.encoder, self.images)
        given = {name: x.to(args.device, dtype if x.is_floating_point() else x.dtype) for name, x in given.items()}
        with torch.autocast(args.device.type, dtype=torch.bfloat16, enabled=args.bf16 and not args.deepspeed):
            produced = backbone.generate(
                **given,
                max_new_tokens=self.new_tokens,
                do_sample=False,
                stopping_criteria=[self._keep_going],
                pad_token_id=self.processor.tokenizer.pad_token_id or self.processor.tokenizer.eos_token_id,
            )
        return self.processor.tokenizer.batch_decode(
            produced[:, given["input_ids"].shape[1] :], skip_special_tokens=True
        )
