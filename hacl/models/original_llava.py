"""Weights of the original LLaVA code base, and of HACL's, which is a fork of it, by the names of the stock class.

Sources of the names: haotian-liu/LLaVA@c121f04 (`llava_arch.py`, `multimodal_projector/builder.py`), HACL
X-PLUG/mPLUG-HalOwl@63863fc. Original checkpoints keep the decoder as a text-only model does, the projector as
`model.mm_projector`, the tower, where it is there at all, as `model.vision_tower.vision_tower`.

Shapes: D hidden size, Dv width of the vision tower, P contrastive size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

PROJECTOR, STOCK_PROJECTOR = "model.mm_projector.", "model.multi_modal_projector."
TOWERS, STOCK_TOWER = (
    ("model.vision_tower.vision_tower.vision_model.", "model.vision_tower.vision_tower."),
    ("model.vision_tower."),
)
DECODER, STOCK_DECODER = "model.", "model.language_model."
LM_HEAD = "lm_head.weight"
HEADS = {"model.vision_projector.": "image_projection.", "model.text_projector.": "text_projection."}
TEMPERATURE, STOCK_TEMPERATURE = "model.itc_temp", "temperature.log_inverse"
QUEUE = ("model.image_queue", "model.text_queue", "model.queue_ptr")
BUFFERS = (".inv_freq", ".position_ids")  # older versions of `transformers` saved them; they are computed
ACTIVATIONS = {"linear": "linear", "mlp2x_gelu": "gelu"}


@dataclass
class StockWeights:
    """state: tensors by their names in the stock model in memory; projector: its original type; heads: of the
    contrastive loss, as `ContrastiveHeads` names them; dropped: original names that have no counterpart.
    """

    state: dict[str, Tensor] = field(default_factory=dict)
    projector: str = ""
    heads: dict[str, Tensor] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)


def to_stock(original: Mapping[str, Tensor]) -> StockWeights:
    """Original tensors under stock names. Raises ValueError for names that no LLaVA or HACL checkpoint has."""
    found, projector, unknown = StockWeights(), {}, []
    for name, tensor in original.items():
        head = next((prefix for prefix in HEADS if name.startswith(prefix)), None)
        tower = next((prefix for prefix in TOWERS if name.startswith(prefix)), None)
        if name in QUEUE or name.endswith(BUFFERS):
            found.dropped.append(name)
        elif head is not None:
            found.heads[HEADS[head] + name.removeprefix(head)] = tensor.float()
        elif name == TEMPERATURE:
            found.heads[STOCK_TEMPERATURE] = -torch.log(tensor.float().reshape(1))
        elif name.startswith(PROJECTOR):
            projector[name.removeprefix(PROJECTOR)] = tensor
        elif tower is not None:
            found.state[STOCK_TOWER + name.removeprefix(tower)] = tensor
        elif name == LM_HEAD:
            found.state[name] = tensor
        elif name.startswith(("model.layers.", "model.norm.", "model.embed_tokens.")):
            found.state[STOCK_DECODER + name.removeprefix(DECODER)] = tensor
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(f"{len(unknown)} names that no LLaVA or HACL checkpoint has, the first {sorted(unknown)[:3]}")
    if projector:
        found.projector, layers = stock_projector(projector)
        found.state.update({STOCK_PROJECTOR + name: tensor for name, tensor in layers.items()})
    return found


def stock_projector(original: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """(original type, tensors of the stock projector) for the tensors of an original one, without their prefix.

    The stock projector has two linear maps with an activation between. One linear map (LLaVA; HACL always) is the
    first of them, beside an identity as activation and as second map: the same function, and the same only until it is
    trained on.
    """
    if set(original) == {"weight", "bias"}:
        weight_DDv, bias_D = original["weight"], original["bias"]
        identity = {
            "linear_2.weight": torch.eye(len(weight_DDv), dtype=weight_DDv.dtype),
            "linear_2.bias": torch.zeros_like(bias_D),
        }
        return "linear", {"linear_1.weight": weight_DDv, "linear_1.bias": bias_D} | identity
    wanted = {f"{at}.{kind}": f"linear_{i}.{kind}" for i, at in ((1, 0), (2, 2)) for kind in ("weight", "bias")}
    if set(original) != set(wanted):
        raise ValueError(
            f"a projector of {sorted(original)}: the stock class holds a linear one (weight, bias) or mlp2x_gelu "
            f"({', '.join(wanted)})"
        )
    return "mlp2x_gelu", {wanted[name]: tensor for name, tensor in original.items()}


def to_original(
    state: Mapping[str, Tensor], activation: str, heads: Mapping[str, Tensor] | None = None, vocabulary: int = 0
) -> tuple[str, dict[str, Tensor]]:
    """(projector type, tensors under original names) of a stock model in memory.

    activation: `projector_hidden_act` of its config; heads: as `ContrastiveHeads` names them; vocabulary: rows of
    embeddings and LM head to keep, 0 for all. Two linear maps without an activation become the one they are.

    Heads other than linear ones have no place there and stay behind. Raises ValueError for another activation or
    another part without a place.
    """
    kinds = {stock: original for original, stock in ACTIVATIONS.items()}
    if activation not in kinds:
        raise ValueError(f"projector_hidden_act={activation!r}: the original code base has linear and gelu projectors")
    found: dict[str, Tensor] = {}
    projector: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith(STOCK_PROJECTOR):
            projector[name.removeprefix(STOCK_PROJECTOR)] = tensor
        elif name.startswith(STOCK_TOWER):
            found[TOWERS[0] + name.removeprefix(STOCK_TOWER)] = tensor
        elif name.startswith(STOCK_DECODER) or name == LM_HEAD:
            is_table = vocabulary and name in (LM_HEAD, f"{STOCK_DECODER}embed_tokens.weight")
            original = name if name == LM_HEAD else DECODER + name.removeprefix(STOCK_DECODER)
            found[original] = tensor[:vocabulary].clone() if is_table else tensor
        else:
            raise ValueError(f"{name}: the original code base has no place for it")
    found.update({PROJECTOR + name: tensor for name, tensor in _original_projector(projector, kinds[activation])})
    for prefix, stock in HEADS.items():
        found.update(
            {prefix + part: heads[stock + part] for part in ("weight", "bias") if stock + part in (heads or {})}
        )
    if heads and STOCK_TEMPERATURE in heads:
        found[TEMPERATURE] = torch.exp(-heads[STOCK_TEMPERATURE].float()).reshape(())
    return kinds[activation], found


def _original_projector(stock: Mapping[str, Tensor], kind: str) -> list[tuple[str, Tensor]]:
    places = [(f"{at}.{part}", f"linear_{i}.{part}") for i, at in ((1, 0), (2, 2)) for part in ("weight", "bias")]
    missing = [name for _, name in places if name not in stock]
    if missing:
        raise ValueError(f"the projector lacks {', '.join(missing)}, which the original one has")
    if kind == "mlp2x_gelu":
        return [(original, stock[name]) for original, name in places]
    first_DDv, second_DD = stock["linear_1.weight"].double(), stock["linear_2.weight"].double()
    weight_DDv = second_DD @ first_DDv
    bias_D = second_DD @ stock["linear_1.bias"].double() + stock["linear_2.bias"].double()
    dtype = stock["linear_1.weight"].dtype
    return [("weight", weight_DDv.to(dtype)), ("bias", bias_D.to(dtype))]


def temperature_of(heads: Mapping[str, Tensor]) -> float | None:
    """The contrastive temperature among the heads, None without one."""
    found = heads.get(STOCK_TEMPERATURE)
    return None if found is None else math.exp(-float(found))


def merge_lora(
    original: dict[str, Tensor], adapter: Mapping[str, Tensor], *, rank: int, alpha: float
) -> dict[str, Tensor]:
    """Original tensors with the LoRA matrices of a PEFT adapter added: W + alpha / rank * B A, in fp32, kept in W's
    dtype. Raises ValueError for a matrix whose weight is not there or whose pair is missing.
    """
    merged = dict(original)
    names = {name.removeprefix("base_model.model.").replace(".default", ""): tensor for name, tensor in adapter.items()}
    for name, down_rD in names.items():
        if not name.endswith(".lora_A.weight"):
            if not name.endswith(".lora_B.weight"):
                raise ValueError(f"{name}: no LoRA matrix")
            continue
        base = name.removesuffix(".lora_A.weight")
        up = names.get(f"{base}.lora_B.weight")
        if up is None or f"{base}.weight" not in merged:
            raise ValueError(f"{base}: {'lora_B' if up is None else 'the weight that it adapts'} is missing")
        weight = merged[f"{base}.weight"]
        merged[f"{base}.weight"] = (weight.float() + alpha / rank * up.float() @ down_rD.float()).to(weight.dtype)
    return merged
