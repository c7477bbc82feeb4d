"""From a training checkpoint to a folder that stock `transformers` opens: merged weights, processor, model card.

Heads and temperature, which no stock class has, go beside the model in `hacl/`. The result is reloaded in a fresh
process with stock classes only and must give the same logits and greedy tokens; otherwise nothing is left behind.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hacl.config import Config, to_dict
from hacl.config_io import from_dict
from hacl.data.model_inputs import prompt_inputs
from hacl.models.identity import HUB, parse_hub
from hacl.training import build, manifest, weights
from hacl.training.card import model_card

SIDECAR, RESULT = "hacl", "result.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ExportError(ValueError):
    """The exported folder does not behave like the trained model."""


def load_finetuned(checkpoint: Path | str, *, base: str | None = None, merge: bool = True):
    """Stock model in fp32 with what a checkpoint trained, on the CPU, and the resolved Config of its run.

    base: folder (or ``hub:owner/name@REVISION``) of the base checkpoint if it moved since. merge: fold LoRA into the
    weights, else a PEFT model. Raises CheckpointError if the checkpoint is incomplete or belongs to another base.
    """
    from transformers import AutoModelForImageTextToText

    folder = Path(checkpoint)
    content = manifest.read_manifest(folder)
    config = from_dict(Config, content["config"], where=str(folder / manifest.MANIFEST))
    build.check_model_path(base or content["base"]["path"])
    path = base_folder(content, base)
    found = manifest.fingerprint(path)
    if found != content["base"]["fingerprint"]:
        raise manifest.CheckpointError(
            f"{folder}: trained from another model than {path} ({content['base']['fingerprint']}, not {found}); "
            "pass the folder of its base checkpoint with --base"
        )
    model = AutoModelForImageTextToText.from_pretrained(
        path,
        dtype=torch.float32,
        attn_implementation=config.model.tower_attention,
        use_safetensors=True,
    )
    weights.load_trained(model, folder)
    if (folder / weights.ADAPTER).is_dir():
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, folder / weights.ADAPTER)
        if merge:
            model = model.merge_and_unload()
    return model.eval(), config


def base_folder(content: dict[str, Any], base: str | None = None) -> Path:
    """Local folder of a checkpoint's base model, at the revision its manifest names. base: as in `load_finetuned`."""
    if base is not None:
        return manifest.model_folder(base)
    return manifest.model_folder(content["base"]["path"], content["base"]["revision"])


def find_checkpoint(path: Path | str) -> tuple[Path, str]:
    """(checkpoint, why this one) for a checkpoint or a run folder.

    Of a run: the one its `result.json` names (the best one with train.best_metric), else the newest complete one.
    """
    path = Path(path)
    if (path / manifest.MANIFEST).is_file():
        return path, "the one given"
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder; give a checkpoint-N folder or the run folder that holds it")
    named = path / str(_result(path).get("checkpoint"))
    if (named / manifest.MANIFEST).is_file():
        return named, f"named by {path / RESULT}"
    newest = manifest.newest_checkpoint(path)
    if newest is None:
        raise manifest.CheckpointError(f"{path}: no complete checkpoint in it; give a checkpoint-N or a run folder")
    return newest, "the newest complete one"


def export_checkpoint(
    checkpoint: Path | str,
    out: Path | str,
    *,
    base: str | None = None,
    dtype: str | None = None,
    metrics: dict[str, Any] | None = None,
    verify: bool = True,
) -> Path:
    """Write the exported folder and return it.

    dtype: "float32", "bfloat16" or "float16"; None keeps the dtype of the base checkpoint. metrics: for the model card,
    beside those of the run's `result.json` if that names this checkpoint. The folder appears at `out` only when it is
    whole and verified; an `out` that exists is refused.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    if out.exists():
        raise FileExistsError(f"{out} exists; remove it or choose another --out")
    model, config = load_finetuned(checkpoint, base=base, merge=False)
    content = manifest.read_manifest(checkpoint)
    place = base_folder(content, base)
    processor = build.load_processor(replace(config.model, path=str(place), revision=None))
    target = DTYPES[dtype] if dtype else _stored_dtype(place)
    if base is not None:
        config = _moved(config, base)
    encoder = build.build_encoder(processor, config.data)
    unmerged_logits = None
    if config.model.lora.rank:
        if verify:
            unmerged_logits = _logits(model, encoder)
        model = model.merge_and_unload()
    _cast(model, target)
    temporary = out.with_name(f"{out.name}.tmp-{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        _write_sidecar(checkpoint, temporary / SIDECAR, config)
        card = model_card(config, content, {**_run_metrics(checkpoint), **(metrics or {})})
        (temporary / "README.md").write_text(card, encoding="utf-8")
        if verify:
            logits = write_probe(model, encoder, temporary / "probe")
            report = check_reload(temporary)
            if unmerged_logits is not None:
                _check_merge(unmerged_logits, logits, target, report)
            shutil.rmtree(temporary / "probe")
            (temporary / SIDECAR / "verified.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """What is stored, to dtype in place. Buffers that no checkpoint holds (rotary frequencies) stay in fp32, as stock
    classes load them: cast, they would move the logits of long sequences."""
    stored = model.state_dict(keep_vars=True)
    for tensor in stored.values():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)


def _moved(config: Config, base: str) -> Config:
    config.model.path, config.model.revision = parse_hub(base) if base.startswith(HUB) else (base, None)
    return config


def _stored_dtype(folder: Path) -> torch.dtype:
    from transformers import AutoConfig

    dtype = AutoConfig.from_pretrained(folder).dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _result(run: Path) -> dict[str, Any]:
    path = run / RESULT
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _run_metrics(checkpoint: Path) -> dict[str, Any]:
    """Metrics of the run, where they are of this checkpoint."""
    result = _result(checkpoint.resolve().parent)
    return result["metrics"] if result.get("checkpoint") == checkpoint.resolve().name else {}


def _write_sidecar(checkpoint: Path, folder: Path, config: Config) -> None:
    """Heads, temperature and the settings they need, without folders; nothing a stock class would read."""
    folder.mkdir()
    if (checkpoint / weights.HEADS).is_file():
        shutil.copyfile(checkpoint / weights.HEADS, folder / weights.HEADS)
    content = json.loads((checkpoint / manifest.MANIFEST).read_text(encoding="utf-8"))
    for name, values in (("config.json", to_dict(config)), ("training_manifest.json", content)):
        (folder / name).write_text(json.dumps(without_folders(values), indent=1), encoding="utf-8")


def without_folders(value: Any) -> Any:
    """Nested JSON with every absolute (or home) path cut to its last part."""
    if isinstance(value, dict):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_folders(item) for item in value]
    if isinstance(value, str) and (value.startswith("~") or os.path.isabs(value)):
        return Path(value).name
    return value


@torch.no_grad()
def write_probe(model: nn.Module, encoder, folder: Path) -> Tensor:
    """Store inputs, logits and greedy tokens of the model in this process for `check_reload`; returns the logits."""
    from safetensors.torch import save_file

    inputs = _probe_inputs(encoder, model.dtype)
    logits = model(**inputs).logits.float()
    tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    folder.mkdir()
    tensors = {**inputs, "logits": logits, "tokens": tokens}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "probe.safetensors")
    return logits


def _probe_inputs(encoder, dtype: torch.dtype) -> dict[str, Tensor]:
    from PIL import Image

    gradient = Image.linear_gradient("L").resize((96, 64)).convert("RGB")
    inputs = prompt_inputs(encoder, [gradient])
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}


@torch.no_grad()
def _logits(model: nn.Module, encoder) -> Tensor:
    """Logits of a model in fp32 for the inputs of the probe."""
    return model(**_probe_inputs(encoder, torch.float32)).logits.float()


def _check_merge(unmerged_logits: Tensor, merged_logits: Tensor, dtype: torch.dtype, report: dict) -> None:
    """The merged weights must say what base plus adapter said, within the precision they are stored in."""
    allowed = (1e-4 if dtype == torch.float32 else 5e-2) * max(float(unmerged_logits.abs().max()), 1.0)
    difference = float((unmerged_logits - merged_logits).abs().max())
    report["max_merge_difference"] = difference
    if difference > allowed:
        raise ExportError(f"merging LoRA changed the logits by {difference:.3g}, more than {allowed:.3g}")


def load_exported_heads(folder: Path | str, hidden_size: int):
    """Contrastive heads of an exported folder, in eval mode. Raises FileNotFoundError where it has none."""
    sidecar = Path(folder) / SIDECAR
    if not (sidecar / weights.HEADS).is_file():
        raise FileNotFoundError(f"{sidecar / weights.HEADS}: this model was exported without contrastive heads")
    content = json.loads((sidecar / "config.json").read_text(encoding="utf-8"))
    config = from_dict(Config, content, where=str(sidecar / "config.json"))
    heads = build.make_heads(hidden_size, config.objective, seed=config.train.seed)
    weights.load_heads(heads, sidecar)
    return heads.eval()


def check_reload(folder: Path) -> dict:
    """Reload in a fresh process with stock classes; returns its report. Raises ExportError when anything differs."""
    command = [sys.executable, "-m", "hacl.training.reload_check", str(folder), str(folder / "probe/probe.safetensors")]
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise ExportError(f"{folder}: reloading with stock classes failed: {done.stderr.strip()[-800:]}")
    report = json.loads(done.stdout.strip().splitlines()[-1])
    if report["unexpected_keys"] or report["missing_keys"]:
        raise ExportError(f"{folder}: stock classes report unexpected or missing keys: {report}")
    if not report["max_logit_difference"] <= report["tolerance"] or not report["same_tokens"]:  # NaN fails too
        raise ExportError(f"{folder}: the reloaded model differs from the trained one: {report}")
    return report
