"""What watches a run: JSON lines, TensorBoard, and captions generated for fixed images."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from hacl.data.records import Record
from hacl.training.stopping import Stopped
from hacl.training.storage import storage_errors


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
        self.path = Path(folder) / "metrics.jsonl"

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            keep_until(self.path, state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs:
            with storage_errors(self.path.parent, self.path.name):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps({"step": state.global_step, "time": time.time(), **logs}) + "\n")


def tensorboard(folder: Path | str) -> TensorBoardCallback:
    """Trainer's TensorBoard callback with its events in `<run>/tensorboard`."""
    callback = TensorBoardCallback()
    callback.logging_dir = str(Path(folder) / "tensorboard")
    return callback


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
        prompt_ids,
        *,
        paused,
        every,
        new_tokens,
        folder,
        poll=None,
    ):
        """prompt_ids: generation prompt of one image, with its image tokens; paused: context that stops clocks; poll:
        called with a name at every token, may raise to end the run."""
        from hacl.data.images import load_image, resolve_image

        self.model, self.processor = model, processor
        self.every, self.new_tokens, self.folder = every, new_tokens, Path(folder)
        self.records = [record for record in records if len(record.images) == 1]
        self.images = [load_image(resolve_image(image_root, record.images[0])) for record in self.records]
        self.prompt_ids, self.paused, self.poll = prompt_ids, paused, poll
        self.writer = None

    def on_train_begin(self, args, state, control, **kwargs):
        if self.every and state.is_world_process_zero and self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            keep_until(self.folder / "samples.jsonl", state.global_step)
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
        with (self.folder / "samples.jsonl").open("a", encoding="utf-8") as stream:
            for record, caption in zip(self.records, captions, strict=True):
                row = {"step": state.global_step, "id": record.id, "caption": caption, "reference": record.captions[:1]}
                stream.write(json.dumps(row) + "\n")
                self.writer.add_text(f"samples/{record.id}", caption, state.global_step)
        self.writer.flush()

    def on_train_end(self, args, state, control, **kwargs):
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def _keep_going(self, ids_BT, scores, **_) -> torch.Tensor:
        """A criterion of `generate` that never stops it, and is asked at every token."""
        if self.poll is not None:
            self.poll("sampling")
        return torch.zeros(len(ids_BT), dtype=torch.bool, device=ids_BT.device)

    @torch.no_grad()
    def generate(self, args) -> list[str]:
        """One greedy caption per fixed image."""
        backbone = self.model.adapter.model
        was_training = self.model.training
        self.model.eval()
        pixels = self.processor.image_processor(self.images, return_tensors="pt")["pixel_values"]
        parameter = next(self.model.adapter.vision_tower.parameters())
        ids = torch.tensor([self.prompt_ids] * len(self.images), device=args.device)
        with torch.autocast(args.device.type, dtype=torch.bfloat16, enabled=args.bf16 and not args.deepspeed):
            produced = backbone.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=pixels.to(args.device, parameter.dtype),
                max_new_tokens=self.new_tokens,
                do_sample=False,
                stopping_criteria=[self._keep_going],
                pad_token_id=self.processor.tokenizer.pad_token_id or self.processor.tokenizer.eos_token_id,
            )
        self.model.train(was_training)
        return self.processor.tokenizer.batch_decode(produced[:, ids.shape[1] :], skip_special_tokens=True)
