"""Attention of packed rows by choice: which implementation a run takes, and what the decoder is called with for it.

`segments` is this project's own: scaled dot-product attention over buckets of sequences of similar length, under
`transformers`' attention interface, so that stock decoders run it and no mask over a row exists. Without buckets (text
generation, a batch of plain rows) it is the stock `sdpa`.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from hacl.models.attention_masks import (
    Reach,
    Segments,
    additive_mask,
    block_mask,
    bucket_segments,
    dense_mask,
    is_plain,
    sequence_bounds,
    visible,
)

SHORT_ROW = 64  # tokens up to which one dense mask costs no more on a CPU than several attention calls
TREES = ("sdpa", "eager", "segments", "flex_attention")
NO_TREES = (
    "flash_attention_2 sees independent sequences only; objective.form=eos_branch and objective.share_prefixes need "
    "model.attn_implementation=flex_attention, segments or sdpa"
)

WITH_MASKS = ("sdpa", "eager", "flex_attention")


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    segments: Segments | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention bucket by bucket; query (R, H, T, d), key and value (R, H_kv, T, d). Returns (R, T, H, d)."""
    if segments is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    rows, heads, tokens, width = query.shape
    flat = [states.transpose(1, 2).flatten(0, 1) for states in (query, key, value)]
    parts = []
    for bucket in segments.buckets:
        places = bucket.queries, bucket.keys, bucket.keys
        chosen = (states[at].transpose(1, 2) for states, at in zip(flat, places, strict=True))
        attended, _ = sdpa_attention_forward(module, *chosen, bucket.mask, is_causal=bucket.mask is None, **options)
        parts.append(attended.flatten(0, 1))
    parts.append(query.new_zeros(1, heads, width))
    return torch.cat(parts)[segments.slots].unflatten(0, (rows, tokens)), None


AttentionInterface.register("segments", segment_attention)
AttentionMaskInterface.register("segments", sdpa_mask)


def packed_attention(
    implementation: str, segment_ids_RT: Tensor, subtree_end_RT: Tensor | None, dtype: torch.dtype
) -> dict[str, Any]:
    """What a decoder with this implementation is called with, besides embeddings and positions, to see its paths only.

    segment_ids_RT: 0 for padding, 1.. for the sequences or trees of a row; subtree_end_RT: see
    `hacl.models.attention_masks`, None without trees; dtype: of the embeddings. Raises ValueError for an implementation
    that packed rows cannot use, and for trees where it cannot express them.
    """
    if implementation == "flash_attention_2":
        if subtree_end_RT is not None:
            raise ValueError(NO_TREES)
        if is_plain(segment_ids_RT):
            return {"attention_mask": None}
        bounds, longest = sequence_bounds(segment_ids_RT)
        lengths = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}
        return {"attention_mask": None, **lengths}
    if implementation not in TREES:
        raise ValueError(f"packed rows need one of {', '.join(TREES)}, flash_attention_2; not {implementation!r}")
    if is_plain(segment_ids_RT, subtree_end_RT):
        return {"attention_mask": None}
    if implementation == "flex_attention":
        return {"attention_mask": block_mask(segment_ids_RT, subtree_end_RT)}
    if implementation == "segments" and segment_ids_RT.shape[1] > SHORT_ROW:
        # An empty 4-D mask keeps the decoder from building one of its own.
        unused = torch.empty(0, 0, 0, 0, device=segment_ids_RT.device)
        return {"attention_mask": unused, "segments": bucket_segments(segment_ids_RT, subtree_end_RT)}
    mask = dense_mask(segment_ids_RT, subtree_end_RT)
    return {"attention_mask": additive_mask(mask, dtype) if implementation == "eager" else mask}


def masked_attention(
    implementation: str, segment_ids_RT: Tensor, subtree_end_RT: Tensor | None, reach: Reach, dtype: torch.dtype
) -> Any:
    """The mask of rows whose tokens do not simply see their path, as a decoder with this implementation takes it; see
    `packed_attention`. Raises ValueError for an implementation that takes no mask."""
    check_masks(implementation)
    if implementation == "flex_attention":
        return block_mask(segment_ids_RT, subtree_end_RT, reach)
    mask = visible(segment_ids_RT, subtree_end_RT, reach)
    return additive_mask(mask, dtype) if implementation == "eager" else mask


def check_masks(implementation: str) -> None:
    """Raise ValueError, naming the fix, for an implementation that knows plain causal paths alone."""
    if implementation not in WITH_MASKS:
        raise ValueError(
            f"model.attn_implementation={implementation} knows causal sequences only, and in this family tokens see "
            f"later ones or not all earlier ones; use auto or one of {', '.join(WITH_MASKS)}"
        )


def resolve(
    asked: str,
    *,
    trees: bool,
    dtype: torch.dtype,
    compiled: bool = False,
    masks: bool = False,
    device: str | None = None,
) -> str:
    """The implementation that `model.attn_implementation` stands for on this machine.

    trees: whether sequences branch; dtype: of the forward pass; compiled: whether decoder blocks are compiled; masks:
    whether attention is more than causal paths (`Adapter.own_masks`); device: "cpu" or "cuda", this machine's where
    None. Raises ValueError, naming the fix, for one that cannot run here.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    has_flash = importlib.util.find_spec("flash_attn") is not None
    if asked == "auto":
        if device == "cpu":
            return "sdpa" if compiled or masks else "segments"
        if masks:
            return "sdpa"
        if trees:
            return "flex_attention"
        return "flash_attention_2" if has_flash and dtype != torch.float32 and not compiled else "sdpa"
    if masks:
        check_masks(asked)
    if asked == "flash_attention_2":
        if trees:
            raise ValueError(NO_TREES)
        if device == "cpu":
            raise ValueError("model.attn_implementation=flash_attention_2 needs a CUDA GPU; use auto, segments or sdpa")
        if not has_flash:
            raise ValueError(
                "model.attn_implementation=flash_attention_2 needs the package flash-attn: pip install flash-attn "
                "--no-build-isolation, or use auto"
            )
        if dtype == torch.float32:
            raise ValueError("model.attn_implementation=flash_attention_2 needs train.bf16=true")
    if asked == "flex_attention" and device == "cpu":
        raise ValueError("model.attn_implementation=flex_attention has no backward pass on a CPU; use auto or segments")
    return asked


def set_attention(decoder: nn.Module, implementation: str) -> None:
    """Let a stock decoder use `implementation` from now on."""
    decoder.set_attn_implementation(implementation)


@contextlib.contextmanager
def plain_attention(decoder: nn.Module) -> Iterator[None]:
    """Let a decoder run plain rows outside of a training step: with sdpa in place of a kernel that takes no fp32."""
    chosen = decoder.config._attn_implementation
    if chosen == "flash_attention_2":
        decoder.config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        decoder.config._attn_implementation = chosen
