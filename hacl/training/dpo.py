"""Direct preference optimisation on (true, hallucinated) captions through TRL's DPOTrainer: a baseline of this project.

Method: Rafailov et al., arXiv 2305.18290, equation 7. The trainer is TRL's (1.16), with a stock model and processor;
pairs and batches are ours (`hacl.training.dpo_data`). The reference model is a frozen copy of the start, or with LoRA
the start itself. A step runs the decoder four times: policy and reference, each on chosen and rejected captions.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from hacl.config import DataConfig, LearningRates, LoraSettings, ModelConfig
from hacl.data.images import resolve_image
from hacl.data.records import Record
from hacl.training import build, manifest
from hacl.training.callbacks import JsonLines
from hacl.training.dpo_data import PreferenceCollator, plan_pairs, usable_records
from hacl.training.dpo_report import count_flops
from hacl.training.dpo_settings import MODULES, DpoSettings
from hacl.training.export import SIDECAR, check_reload, write_probe

RUN, RESULT, MODEL, COMPLETE = "dpo.json", "result.json", "model", "complete.json"


def tune_dpo(
    model_folder: Path | str,
    records: Sequence[Record],
    image_root: Path | str,
    settings: DpoSettings,
    out: Path | str,
    *,
    verify: bool = True,
) -> Path:
    """Tune a stock multimodal model by DPO; returns `out`/model, a folder that stock classes open.

    out: the run folder (dpo.json, metrics.jsonl, result.json, checkpoints with settings.save_steps). Called again it
    continues from the last whole checkpoint, or returns what is finished. verify: reload the result in a fresh process
    and compare logits and tokens.

    Raises:
        ValueError: no pair in the records, a folder of another run, TRL not installed, an image that cannot be read.
        FileNotFoundError: no such model or image.
    """
    check_trl()
    folder, out = Path(model_folder), Path(out)
    build.check_model_path(str(folder))
    usable = usable_records(records, settings.types)
    check_images(usable, Path(image_root))
    identity = _identity(folder, usable, settings)
    if _is_finished(out, identity):
        return out / MODEL
    trainer = build_dpo_trainer(folder, usable, image_root, settings, out)
    flops = count_flops(trainer)
    if trainer.args.should_save:
        _write_json(out / RUN, identity | {"versions": manifest.versions() | {"trl": _trl_version()}})
    outcome = trainer.train(resume_from_checkpoint=_newest(out))
    if trainer.args.should_save:
        export(trainer, out / MODEL, settings, identity, verify=verify)
        _write_json(
            out / RESULT,
            {
                "model": MODEL,
                "step": trainer.state.global_step,
                "pairs": len(trainer.train_dataset),
                "flops_per_step": flops,
                "flops": flops * trainer.state.global_step,
                "metrics": outcome.metrics,
            },
        )
    trainer.accelerator.wait_for_everyone()
    return out / MODEL


def build_dpo_trainer(
    model_folder: Path | str, records: Sequence[Record], image_root: Path | str, settings: DpoSettings, out: Path | str
):
    """TRL's trainer up to the first step, over the pairs of the whole run in their order.

    records: usable ones. Attribute `train_dataset` holds the pairs, `data_collator` makes batches of them.
    """
    from datasets import Dataset

    arguments = _arguments(settings, len(records), out)
    processor = build.load_processor(ModelConfig(path=str(model_folder)))
    model = build.load_backbone(ModelConfig(path=str(model_folder), dtype=settings.dtype))
    torch.manual_seed(settings.seed)
    rates = {name: settings.learning_rate if name in settings.modules else 0.0 for name in MODULES}
    lora = LoraSettings(rank=settings.lora_rank, alpha=settings.lora_alpha, dropout=0.0)
    reference = None if settings.lora_rank else copy.deepcopy(model).requires_grad_(False).eval()
    policy = build.select_trainable(
        model, ModelConfig(learning_rate=LearningRates(**rates, heads=0.0), lora=lora), masters=True
    )
    for part in build.find_adapter(policy).groups()["vision"]:
        part.register_forward_pre_hook(_stay_in_eval_mode)
    encoder = build.build_encoder(
        processor, DataConfig(template=settings.template, prompt=settings.prompt, max_length=settings.max_length)
    )
    check_inputs(policy, encoder)
    micro = settings.batch_size * arguments.world_size
    pairs = plan_pairs(
        records,
        prompt=settings.prompt,
        count=arguments.max_steps * micro * settings.gradient_accumulation_steps,
        global_batch=micro,
        types=settings.types,
        seed=settings.seed,
    )
    return _trainer_class()(
        model=policy,
        ref_model=reference,
        args=arguments,
        data_collator=PreferenceCollator(encoder, image_root, model.dtype),
        train_dataset=Dataset.from_list([asdict(pair) for pair in pairs]),
        processing_class=processor,
        callbacks=[_StopDiverged(), JsonLines(out), _MarkComplete()],
    )


def export(trainer, folder: Path, settings: DpoSettings, identity: dict[str, Any], *, verify: bool = True) -> Path:
    """Write the policy as a stock folder with processor, LoRA merged; it appears only when it is whole and verified."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if settings.lora_rank:
        model = model.merge_and_unload(adapter_names=["default"])
    vars(model).pop("forward", None)  # TRL's fused head, which only its trainer calls
    model = model.cpu().to(build.DTYPES[settings.dtype]).requires_grad_(False).eval()
    processor = trainer.processing_class
    temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        data = {"template": settings.template, "prompt": settings.prompt}
        (temporary / SIDECAR).mkdir()
        _write_json(temporary / SIDECAR / "config.json", {"data": data, "dpo": identity})
        if verify:
            write_probe(model, trainer.data_collator.encoder, temporary / "probe")
            _write_json(temporary / SIDECAR / "verified.json", check_reload(temporary))
            shutil.rmtree(temporary / "probe")
        if folder.exists():  # of a run that was killed before it could say that it was finished
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def check_trl() -> None:
    """Raise ValueError where TRL is not installed, with the command that installs it."""
    if importlib.util.find_spec("trl") is None:
        raise ValueError("DPO needs the package trl, which is not installed: pip install -e .[dpo]")


def _trainer_class():
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText
    from trl import DPOTrainer

    class ResumingTrainer(DPOTrainer):
        """Trainer reads a checkpoint by the names in its file, which for LLaVA are not those of the modules, and starts
        from the untuned weights without an error; `from_pretrained` knows both."""

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
            if isinstance(self.model, PeftModel):
                super()._load_from_checkpoint(resume_from_checkpoint, model)
            else:
                saved = AutoModelForImageTextToText.from_pretrained(
                    resume_from_checkpoint, dtype=torch.float32, use_safetensors=True
                )
                self.model.load_state_dict(saved.state_dict())

    return ResumingTrainer


def check_inputs(policy, encoder) -> None:
    """Refuse a family whose stock forward pass needs more than the `PreferenceCollator` gives. Raises ValueError."""
    adapter = build.find_adapter(policy)
    if adapter.inputs != ("pixel_values",) or not adapter.is_split or encoder.images.format.token_types:
        raise ValueError(
            f"DPO gives a model token ids and pixel_values alone; {adapter.model.config.model_type} needs more"
            ". Train it with train.py and objective.likelihood_margin_weight instead"
        )


def _stay_in_eval_mode(tower: nn.Module, inputs: Any) -> None:
    """Batch norm and dropout of the tower act as in the reference; otherwise the two differ before the first step."""
    tower.eval()


class _StopDiverged(TrainerCallback):
    """Ends a run whose loss or gradient is not a number, before anything is exported."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        for name in ("loss", "grad_norm", "train_loss"):
            value = float((logs or {}).get(name, 0.0))
            if not math.isfinite(value):
                raise ValueError(
                    f"step {state.global_step}: {name} is {value}; lower learning_rate, or look at the pairs"
                )


class _MarkComplete(TrainerCallback):
    """A file in each checkpoint that was written to its end; others are not resumed from."""

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            _write_json(
                Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE, {"step": state.global_step}
            )


def _arguments(settings: DpoSettings, count: int, out: Path | str):
    from trl import DPOConfig

    cuda = torch.cuda.is_available()
    arguments = DPOConfig(
        output_dir=str(out),
        beta=settings.beta,
        loss_type=[settings.loss_type],
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        max_steps=settings.max_steps or 1,
        bf16=settings.bf16,
        use_cpu=not cuda,
        gradient_checkpointing=settings.gradient_checkpointing,
        seed=settings.seed,
        logging_steps=settings.log_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # a loss that is not finite is shown, and stops the run
        report_to="none",
        save_strategy="steps" if settings.save_steps else "no",
        save_steps=settings.save_steps or 500,
        save_total_limit=2,
        dataloader_num_workers=settings.num_workers,
        dataloader_pin_memory=cuda,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",  # the pairs are in the order of the plan
        max_length=None,  # sequences come encoded
        disable_tqdm=not os.isatty(2),
    )
    if settings.max_steps is None:
        per_step = settings.batch_size * arguments.world_size * settings.gradient_accumulation_steps
        arguments.max_steps = max(1, count // per_step)
    return arguments


def check_images(records: Sequence[Record], root: Path) -> None:
    """Raise FileNotFoundError or ValueError, naming the record, where an image is not there or outside the root."""
    for record in records:
        try:
            resolve_image(root, record.images[0])
        except (ValueError, OSError) as error:
            raise type(error)(f"record {record.id!r}: {error}") from error


def _identity(folder: Path, records: Sequence[Record], settings: DpoSettings) -> dict[str, Any]:
    """What decides the result: another one in the same folder is another run."""
    free = {"save_steps", "log_steps", "num_workers"}
    return {
        "model": manifest.fingerprint(manifest.model_folder(str(folder))),
        "records": manifest.data_fingerprint(records),
        "ranks": int(os.environ.get("WORLD_SIZE", "1")),  # the order of the pairs depends on it
        "settings": {name: value for name, value in asdict(settings).items() if name not in free},
    }


def _is_finished(out: Path, identity: dict[str, Any]) -> bool:
    """Whether a run folder holds this run, finished. Raises ValueError where it holds another one."""
    if not (out / RUN).is_file():
        if any(out.glob("checkpoint-*")) or (out / MODEL).exists():
            raise ValueError(f"{out} holds a model or checkpoints and no {RUN}: choose another folder or remove it")
        return False
    held = json.loads((out / RUN).read_text(encoding="utf-8"))
    for name, value in identity.items():
        if held.get(name) != value:
            old, new = held.get(name), value
            if isinstance(value, dict) and isinstance(old, dict):
                changed = next(key for key in {**old, **value} if old.get(key) != value.get(key))
                name, old, new = f"{name}.{changed}", old.get(changed), value.get(changed)
            raise ValueError(
                f"{out / RUN}: another run is in it, with {name}={old!r} and not {new!r}; choose another folder"
            )
    return (out / RESULT).is_file() and (out / MODEL).is_dir()


def _newest(out: Path) -> str | None:
    whole = [path.parent for path in out.glob(f"checkpoint-*/{COMPLETE}")]
    return str(max(whole, key=lambda path: int(path.name.split("-")[1]))) if whole else None


def _trl_version() -> str:
    from importlib.metadata import version

    return version("trl")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(temporary, path)
