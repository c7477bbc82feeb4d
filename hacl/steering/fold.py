"""Fold a constant shift into a checkpoint's biases, where that is exact; the result needs no hooks and no project code.

h + alpha * v after a block equals a bias of its MLP's last layer only if nothing depends on the state, the sample or
the position, and only where the stock class has that bias: the Llama family with `mlp_bias`. All else is refused by
name. The folded folder is reloaded with stock classes and must give the logits of the steered original.

Shapes: T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hacl.models.adapters import auto_class
from hacl.models.identity import fingerprint, versions
from hacl.representations.parts import Parts, find_parts
from hacl.steering.compose import ComposeSteerer
from hacl.steering.flexac import FlexACSteerer
from hacl.steering.layers import FINAL_NORM, Layer, LayerKey, resolve_layers
from hacl.steering.plan import make_shifts, per_row
from hacl.steering.static import RandomSteerer, TableSteerer
from hacl.steering.steerer import Steerer
from hacl.steering.vectors import check_model

WITH_SLOT = ("llama",)
RECORD = "steering_fold.json"
TOLERANCE = 1e-5  # of the largest logit, in fp32
OWN_FILES = ("config.json", "generation_config.json", RECORD)


class FoldError(ValueError):
    """The shift cannot be folded exactly, or the folded checkpoint is not what it should be."""


def fold(
    steerer: Steerer,
    model_folder: Path | str,
    out: Path | str,
    *,
    layers: Iterable[LayerKey] | None = None,
    alpha: float | None = None,
) -> dict[str, Any]:
    """Write a stock checkpoint that behaves like the model under `steering(model, steerer, policy="all")`.

    layers, alpha: as in `steering`. `out` appears only when it is whole and verified. Returns what `steering_fold.json`
    there says, with the largest difference of logits in fp32 and how far the shift moved them.

    Raises:
        FoldError: the method, its settings, a layer or the model's class does not allow it, or verification failed.
        FileExistsError: `out` is there.
    """
    folder, out = Path(model_folder), Path(out)
    if out.exists():
        raise FileExistsError(f"{out} exists; remove it or choose another folder")
    check_model(steerer.model, folder, f"the {steerer.kind!r} steerer")
    strength = _one_strength(steerer, alpha)
    _refuse_method(steerer)
    model, _ = _load(folder)
    parts = find_parts(model)
    if (folder / "adapter_config.json").is_file():
        raise FoldError(f"{folder} is an adapter; merge it into its base first (scripts/export.py)")
    _refuse_model(parts, str(folder))
    dtype = model.config.dtype if isinstance(model.config.dtype, torch.dtype) else torch.float32
    steps = {
        index: step_D.to(dtype) for index, step_D in _steps(steerer, parts, layers, strength).items()
    }  # rounded once, as the bias is stored
    inputs = _probe(model, folder)
    plain_TV, steered_TV = _logits(model, inputs, {}), _logits(model, inputs, steps)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        _write(model.to(dtype), steps, folder, temporary)
        report = _verify(temporary, inputs, plain_TV, steered_TV)
        record = {
            "source": fingerprint(folder), "kind": steerer.kind, "steerer": steerer.fingerprint(), "alpha": strength,
            "layers": sorted(steps), "versions": versions(), **report,
        }  # fmt: skip
        (temporary / RECORD).write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return record


def folded_copy(
    model: nn.Module, steerer: Steerer, *, layers: Iterable[LayerKey] | None = None, alpha: float | None = None
) -> nn.Module:
    """A copy in memory of a stock model, with the shift in its biases; `fold` writes and verifies one on disk.

    Raises:
        FoldError: as `fold`.
    """
    _refuse_method(steerer)
    parts = find_parts(model)
    if parts.model is not model:
        raise FoldError(f"{type(model).__name__} wraps the model in an adapter; merge it first")
    _refuse_model(parts, type(model).__name__)
    steps = _steps(steerer, parts, layers, _one_strength(steerer, alpha))
    made = copy.deepcopy(model)
    _add_biases(made, steps)
    return made


def _one_strength(steerer: Steerer, alpha: float | None) -> float:
    value = per_row(steerer.alpha if alpha is None else alpha, "alpha")
    if len(value) != 1:
        raise FoldError(f"alpha has {len(value)} values; a checkpoint has one")
    return float(value)


def _refuse_method(steerer: Steerer, part: bool = False) -> None:
    """Raises FoldError for anything but one vector per layer that is added everywhere."""
    name = f"a {steerer.kind!r} steerer"
    if not part and str(steerer.policy) != "all":
        raise FoldError(
            f"policy {steerer.policy!s}: a bias acts on every token, image tokens too; only 'all' can be folded"
        )
    if steerer.norm not in ("none", "unit"):
        raise FoldError(
            f"norm {steerer.norm!r} depends on the length of the state; only 'none' and 'unit' can be folded"
        )
    if steerer.required_context():
        raise FoldError(f"{name} reads the prompt; its vectors are not constant")
    if isinstance(steerer, TableSteerer) or (isinstance(steerer, RandomSteerer) and steerer.per_sample):
        raise FoldError(f"{name} has a vector per sample; a checkpoint has one for all")
    if isinstance(steerer, FlexACSteerer):
        if steerer.gate.name != "const":
            raise FoldError(f"gate {steerer.gate.name!r} depends on the state; only 'const' can be folded")
    elif type(steerer).adjust is not Steerer.adjust:
        raise FoldError(f"{name} reads the state that it changes; its vectors are not constant")
    for inner in getattr(steerer, "parts", ()) if isinstance(steerer, ComposeSteerer) else ():
        _refuse_method(inner, part=True)


def _refuse_model(parts: Parts, name: str) -> None:
    """Raises FoldError where the class has no bias to fold into, or adds its MLP in another way."""
    config, family = parts.decoder.config, parts.decoder.config.model_type
    if getattr(config, "quantization_config", None) or getattr(parts.model.config, "quantization_config", None):
        raise FoldError(f"{name} is quantised; fold the full-precision checkpoint")
    if family in WITH_SLOT:
        return
    why = "its stock class has no bias in the MLP (mlp_bias)"
    if getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None):
        why = "its MLP is a mixture of experts"
    elif getattr(config, "residual_multiplier", 1.0) != 1.0:
        why = f"it multiplies what the MLP adds by residual_multiplier={config.residual_multiplier}"
    elif hasattr(config, "mlp_bias"):
        why = "it has mlp_bias, but folding into it is not proven"
    raise FoldError(f"{name}: model_type {family!r}: {why}; only {', '.join(WITH_SLOT)} can be folded")


def _steps(steerer: Steerer, parts: Parts, layers: Iterable[LayerKey] | None, alpha: float) -> dict[int, Tensor]:
    """{block index: alpha * v (D), fp32}."""
    names = {id(module): name for name, module in parts.model.named_modules()}
    blocks = [Layer(index, names[id(block)], block) for index, block in enumerate(parts.blocks)]
    wanted = list(steerer.layers if layers is None else layers)
    if FINAL_NORM in wanted:
        raise FoldError("layer 'final_norm': the norm has no bias to fold into")
    own = resolve_layers(steerer.layers, blocks) if steerer.layers else {}
    keys = {layer.index: key for key, layer in own.items()}
    chosen = {layer.index: layer for layer in resolve_layers(wanted, blocks).values()}
    strange = [str(layer) for index, layer in chosen.items() if own and index not in keys]
    if strange:
        raise FoldError(f"the {steerer.kind!r} steerer has no vector for layer {strange[0]}")
    values = steerer.vectors({}, None)
    given = {
        index: (layer, values[keys[index]] if index in keys and keys[index] in values else values[None])
        for index, layer in chosen.items()
    }
    shifts = make_shifts(steerer, given, torch.tensor([alpha]), 1, None, parts.hidden_size)
    return {index: shift.scaled()[0, 0] for index, shift in shifts.items()}


def _load(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The stock model in fp32, its config as it is stored, and what loading reports."""
    from transformers import AutoConfig

    stored = AutoConfig.from_pretrained(folder).dtype
    model, info = auto_class(folder).from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, use_safetensors=True
    )
    model.config.dtype = stored
    return model.eval(), info


@torch.no_grad()
def _add_biases(model: nn.Module, steps: Mapping[int, Tensor]) -> None:
    for index, block in enumerate(find_parts(model).blocks):
        for part in (block.mlp.gate_proj, block.mlp.up_proj, block.mlp.down_proj):
            if part.bias is None:
                part.bias = nn.Parameter(part.weight.new_zeros(part.out_features))
        if index in steps:
            block.mlp.down_proj.bias.add_(steps[index].to(block.mlp.down_proj.bias))
    model.config.get_text_config().mlp_bias = True


def _write(model: nn.Module, steps: Mapping[int, Tensor], folder: Path, temporary: Path) -> None:
    """The checkpoint with biases, and the files beside it (tokenizer, processor, templates). Changes the model."""
    _add_biases(model, steps)
    model.save_pretrained(temporary)
    for path in folder.iterdir():
        weights = path.suffix in (".safetensors", ".bin", ".pt", ".pth") or path.name.endswith(".index.json")
        if path.is_file() and not weights and path.name not in OWN_FILES and not (temporary / path.name).exists():
            shutil.copyfile(path, temporary / path.name)


def _probe(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """Inputs of one row: random words, after an image where the model reads images."""
    draw = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    image_token = getattr(model.config, "image_token_id", None)
    words = torch.randint(0, vocabulary, (12,), generator=draw)
    if image_token is None:
        return {"input_ids": words[None], "attention_mask": torch.ones(1, 12, dtype=torch.long)}
    from PIL import Image
    from transformers import AutoProcessor

    from hacl.data.model_inputs import prompt_inputs
    from hacl.data.templates import SequenceEncoder

    room = 1 << 20  # nothing is cut
    encoder = SequenceEncoder(
        AutoProcessor.from_pretrained(folder),
        template="plain",
        prompt="describe",
        max_length=room,
        max_caption_length=room,
    )
    gradient = Image.linear_gradient("L").resize((96, 64)).convert("RGB")
    made = prompt_inputs(encoder, [gradient])
    words = torch.where(words == image_token, 0, words)
    ids = torch.cat([made["input_ids"], words[None]], dim=1)
    own = {name: F.pad(made[name], (0, len(words))) for name in encoder.images.format.token_types}
    return {**made, **own, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.no_grad()
def _logits(model: nn.Module, inputs: Mapping[str, Tensor], steps: Mapping[int, Tensor]) -> Tensor:
    """(T, V), with a shift added after some blocks."""

    def adding(step_D: Tensor):
        def hook(module: nn.Module, args: tuple, output: Tensor | tuple) -> Tensor | tuple:
            if isinstance(output, tuple):
                return (output[0] + step_D.to(output[0]), *output[1:])
            return output + step_D.to(output)

        return hook

    with contextlib.ExitStack() as stack:
        for index, step_D in steps.items():
            handle = find_parts(model).blocks[index].register_forward_hook(adding(step_D))
            stack.callback(handle.remove)
        return model(**inputs, use_cache=False).logits[0].float()


def _verify(folder: Path, inputs: Mapping[str, Tensor], plain_TV: Tensor, steered_TV: Tensor) -> dict[str, Any]:
    """Raises FoldError unless stock classes open the folder completely and compute the steered logits."""
    model, info = _load(folder)
    if info["missing_keys"] or info["unexpected_keys"]:
        raise FoldError(
            f"{folder}: missing {sorted(info['missing_keys'])}, unexpected {sorted(info['unexpected_keys'])}"
        )
    difference = float((_logits(model, inputs, {}) - steered_TV).abs().max())
    allowed = TOLERANCE * max(float(steered_TV.abs().max()), 1.0)
    if difference > allowed:
        raise FoldError(f"{folder}: logits differ by {difference:.3g} from the steered model, more than {allowed:.3g}")
    return {
        "class": type(model).__name__,
        "max_logit_difference": difference,
        "tolerance": allowed,
        "max_logit_change": float((steered_TV - plain_TV).abs().max()),
    }
