"""For which decoders packed rows and trees give the states of separate passes, decided from a model's configuration."""

from __future__ import annotations

from typing import Any

LEARNT_POSITIONS = ("opt",)
LOCAL = ("sliding_attention", "chunked_attention")


def check_decoder(
    config: Any,
    *,
    longest: int,
    trees: bool,
    multiple: int = 1,
    own_positions: bool = False,
    own_masks: bool = False,
) -> None:
    """Raise ValueError, naming the setting to change, where rows of several sequences are not exact for this decoder.

    config: of the decoder; longest: tokens of the longest sequence; trees: whether sequences branch; multiple: what row
    lengths are rounded up to; own_positions, own_masks: whether the family's adapter gives positions of several axes,
    and masks with sliding windows and with tokens that see later ones (`Adapter`).
    """
    reason = obstacle(config, longest=longest, multiple=multiple, own_positions=own_positions, own_masks=own_masks)
    if reason is None:
        return
    form = "objective.form=eos_branch and objective.share_prefixes" if trees else "packed rows"
    raise ValueError(f"{form} would not be exact for a {config.model_type} decoder: {reason}")


def obstacle(
    config: Any, *, longest: int, multiple: int = 1, own_positions: bool = False, own_masks: bool = False
) -> str | None:
    """What keeps a token from depending on its own path alone, or None."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    recurrent = sorted(kinds - {"full_attention", *LOCAL})
    if recurrent:
        return (
            f"its {', '.join(recurrent)} layers carry a state along the row and know no sequence boundaries; use a "
            "decoder with attention in every layer"
        )
    window = _window(config, kinds)
    if window is not None and window < longest and not (own_masks and "chunked_attention" not in kinds):
        return (
            f"its attention window of {window} tokens would be measured along the row, and a sequence may have "
            f"{longest}; {_shorten(window)}"
        )
    is_bidirectional = getattr(config, "use_bidirectional_attention", False)
    if not own_masks and (is_bidirectional or getattr(config, "is_causal", True) is False):
        return "it attends in both directions within a prefix, so a state there depends on what follows it"
    for name in ("rope_parameters", "rope_scaling"):
        if not own_positions and "mrope_section" in (getattr(config, name, None) or {}):
            return "its rotary positions have several axes, which a row of one position per token cannot continue"
    row = -(-longest // multiple) * multiple
    table = config.max_position_embeddings if config.model_type in LEARNT_POSITIONS else row
    if table < row:
        return (
            f"it has learnt {table} positions, and a sequence may have {longest} tokens; "
            f"{_shorten(table // multiple * multiple)}"
        )
    limit = _constant_rotation(config)
    if limit is not None and limit < row:
        return (
            f"its rotary frequencies change for all sequences of a call once one is longer than {limit} tokens, and a "
            f"sequence may have {longest}; {_shorten(limit // multiple * multiple)}"
        )
    return None


def _shorten(longest: int) -> str:
    return f"set data.max_length and data.max_caption_length to {longest - 1} or less"


def _constant_rotation(config: Any) -> int | None:
    """Tokens up to which rotary frequencies do not depend on the longest position of a call, None where they never do.

    Of the types that `transformers` knows, "dynamic" computes them anew beyond the longest sequence of the pretraining,
    and "longrope" has a second set for there (`dynamic_rope_update` in its modeling_rope_utils.py).
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    limits = []
    for part in [parameters, *(value for value in parameters.values() if isinstance(value, dict))]:  # or by layer type
        if "dynamic" in str(part.get("rope_type")):
            limits.append(config.max_position_embeddings)
        elif part.get("rope_type") == "longrope":
            limits.append(part["original_max_position_embeddings"])
    return min(limits, default=None)


def _window(config: Any, kinds: set[str]) -> int | None:
    """Tokens that the most local layer looks back, None where all layers look back to the start."""
    if "chunked_attention" in kinds:
        return config.attention_chunk_size
    has_layers = getattr(config, "layer_types", None) is not None
    is_local = "sliding_attention" in kinds if has_layers else getattr(config, "use_sliding_window", True)
    return getattr(config, "sliding_window", None) if is_local else None
