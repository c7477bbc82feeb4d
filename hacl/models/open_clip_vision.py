"""Vision towers of open_clip under the names and the configuration of the stock `CLIPVisionModel`.

A checkpoint of open_clip_torch 3.3 (mlfoundations/open_clip) is a state dict with the tower under `visual.` and a model
configuration (`vision_cfg`). Both classes compute the same function where the tower is a plain ViT of CLIP's layout;
every other layout is refused, because the stock class has no place for it.

Shapes: Dv width, E size of the joint embedding (`embed_dim`, left out: a tower for a decoder has no use for it).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from transformers import CLIPVisionConfig

# Entries of `vision_cfg` with the one value that the stock class computes. Anything else in them is refused.
FIXED: dict[str, Any] = {
    "timm_model_name": None, "ls_init_value": None, "attentional_pool": False, "no_ln_pre": False,
    "final_ln_after_pool": False, "pool_type": "tok", "qk_norm": False, "scaled_cosine_attn": False,
    "scale_heads": False, "scale_attn_inner": False, "scale_attn": False, "scale_fc": False, "act_kwargs": None,
}  # fmt: skip
# Entries that decide nothing here: defaults of timm towers, dropout of patches in training, how tokens are returned.
FREE = {
    "timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path",
    "attn_pooler_queries", "attn_pooler_heads", "patch_dropout", "output_tokens", "pos_embed_type", "block_type",
}  # fmt: skip
READ = {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "norm_kwargs"}
DEFAULTS = {"layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4.0, "patch_size": 16, "image_size": 224}
PREFIX = "visual."
PARTS = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}
BLOCK_PARTS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
BLOCKS, STOCK_BLOCKS = "transformer.resblocks.", "encoder.layers."
LEFT_OUT = {"proj"}  # (Dv, E)


def clip_vision_config(model_cfg: Mapping[str, Any]) -> CLIPVisionConfig:
    """Stock configuration of the tower of an open_clip model configuration.

    Raises ValueError naming each entry that the stock class does not compute.
    """
    from transformers import CLIPVisionConfig

    vision = model_cfg.get("vision_cfg")
    if not isinstance(vision, Mapping):
        raise ValueError("no vision_cfg in the open_clip configuration: give one with model_cfg or --architecture")
    if vision.get("timm_model_name"):
        raise ValueError(f"vision_cfg.timm_model_name={vision['timm_model_name']!r}: a tower of timm is no CLIP ViT")
    odd = {name: vision[name] for name, fixed in FIXED.items() if vision.get(name, fixed) != fixed}
    odd |= {name: value for name, value in vision.items() if name not in FIXED and name not in READ | FREE}
    if odd:
        shown = ", ".join(f"vision_cfg.{name}={value!r}" for name, value in sorted(odd.items()))
        raise ValueError(f"{shown}: the stock CLIPVisionModel does not compute this tower")
    norm = vision.get("norm_kwargs") or {}
    if set(norm) - {"eps"}:
        raise ValueError(f"vision_cfg.norm_kwargs={norm!r}: the stock CLIPVisionModel has plain layer norms")
    sizes = {name: vision.get(name, default) for name, default in DEFAULTS.items()}
    for name in ("layers", "patch_size", "image_size"):
        if not isinstance(sizes[name], int):
            raise ValueError(f"vision_cfg.{name}={sizes[name]!r}: the stock CLIPVisionModel takes one number")
    if sizes["width"] % sizes["head_width"]:
        raise ValueError(f"vision_cfg.width={sizes['width']}: no multiple of head_width={sizes['head_width']}")
    return CLIPVisionConfig(
        hidden_size=sizes["width"],
        intermediate_size=int(sizes["width"] * sizes["mlp_ratio"]),
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["width"] // sizes["head_width"],
        image_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        projection_dim=model_cfg.get("embed_dim", 512),
        hidden_act="quick_gelu" if model_cfg.get("quick_gelu") else "gelu",
        layer_norm_eps=norm.get("eps", 1e-5),
    )


def stock_vision_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the tower by their names in `CLIPVisionModel`; those of the text side are left out.

    Raises ValueError for a state without a tower, or for a part of one that the stock class lacks.
    """
    tower = {name.removeprefix(PREFIX): tensor for name, tensor in state.items() if name.startswith(PREFIX)}
    if not tower:
        raise ValueError(f"no {PREFIX}* among its weights: this is no open_clip checkpoint")
    found: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in tower.items():
        parts = {} if name in LEFT_OUT else _stock_parts(name, tensor)
        if parts is None:
            unknown.append(name)
        else:
            found.update(parts)
    if unknown:
        raise ValueError(f"{len(unknown)} parts that a CLIP ViT does not have, the first {PREFIX}{sorted(unknown)[0]}")
    return found


def _stock_parts(name: str, tensor: Tensor) -> dict[str, Tensor] | None:
    """What a tensor of the tower becomes; None for a name that CLIP's layout does not have."""
    if name in PARTS:
        return {PARTS[name]: tensor}
    if not name.startswith(BLOCKS):
        return None
    at, _, inner = name.removeprefix(BLOCKS).partition(".")
    part, _, kind = inner.rpartition(".")
    if inner in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = inner.rpartition("_")[2]
        thirds = tensor.chunk(3)
        return {
            f"{STOCK_BLOCKS}{at}.self_attn.{letter}_proj.{kind}": third.clone()
            for letter, third in zip("qkv", thirds, strict=True)
        }
    return {f"{STOCK_BLOCKS}{at}.{BLOCK_PARTS[part]}.{kind}": tensor} if part in BLOCK_PARTS else None
