"""For which decoders packed rows and trees give the states of separate passes, decided from a model's configuration."""

from __future__ import annotations

from typing import Any

LOCAL = ("sliding_attention", "chunked_attention")


PREFIX_LM = ("paligemma",)


def check_decoder(config: Any, *, longest: int, trees: bool, family: str = "") -> None:
    """Raise ValueError, naming the setting to change, where rows of several sequences are not exact for this decoder.

    config: of the decoder; longest: tokens of the longest sequence; trees: whether sequences branch; family: model type
    of the whole multimodal model.
    """
    reason = obstacle(config, longest=longest, family=family)
    if reason is None:
        return
    form = "objective.form=eos_branch and objective.share_prefixes" if trees else "packed rows"
    raise ValueError(f"{form} would not be exact for a {config.model_type} decoder: {reason}")


def obstacle(config: Any, *, longest: int, family: str = "") -> str | None:
    """What keeps a token from depending on its own path alone, or None."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    recurrent = sorted(kinds - {"full_attention", *LOCAL})
    if recurrent:
        return (
            f"its {', '.join(recurrent)} layers carry a state along the row and know no sequence boundaries; use a "
            "decoder with attention in every layer"
        )
    window = _window(config, kinds)
    if window is not None and window < longest:
        return (
            f"its attention window of {window} tokens would be measured along the row, and a sequence may have "
            f"{longest}; set data.max_length to {window - 1} or less"
        )
    is_bidirectional = getattr(config, "use_bidirectional_attention", False)
    if family in PREFIX_LM or is_bidirectional or getattr(config, "is_causal", True) is False:
        return "it attends in both directions within a prefix, so a state there depends on what follows it"
    for name in ("rope_parameters", "rope_scaling"):
        if "mrope_section" in (getattr(config, name, None) or {}):
            return "its rotary positions have several axes, which a row of one position per token cannot continue"
    return None


def _window(config: Any, kinds: set[str]) -> int | None:
    """Tokens that the most local layer looks back, None where all layers look back to the start."""
    if "chunked_attention" in kinds:
        return config.attention_chunk_size
    has_layers = getattr(config, "layer_types", None) is not None
    is_local = "sliding_attention" in kinds if has_layers else getattr(config, "use_sliding_window", True)
    return getattr(config, "sliding_window", None) if is_local else None
