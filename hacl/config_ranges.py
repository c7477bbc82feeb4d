"""The least value of settings that count something or weigh something."""

from __future__ import annotations

from typing import Any

NOT_NEGATIVE = {
    "model.learning_rate": ("vision", "projector", "llm", "heads"),
    "model.lora": ("rank",),
    "objective": (
        "lm_weight",
        "contrastive_weight",
        "hard_weight",
        "t2i_hard_weight",
        "text_margin_weight",
        "likelihood_margin_weight",
        "num_hallucinated",
        "queue_size",
    ),
    "train": (
        "warmup",
        "weight_decay",
        "max_grad_norm",
        "save_steps",
        "eval_steps",
        "num_workers",
        "preempt_exit_code",
        "max_nonfinite_skips",
    ),
    "log": ("sample_steps", "diagnostic_steps"),
}
AT_LEAST_ONE = {
    "data": ("max_length", "max_records", "shuffle_buffer"),
    "objective": ("num_captions", "layer", "projection_size"),
    "train": (
        "max_steps",
        "per_device_batch_size",
        "per_device_eval_batch_size",
        "gradient_accumulation_steps",
        "grad_cache_chunk",
        "length_multiple",
        "save_total_limit",
    ),
    "log": ("steps", "sample_count", "sample_max_new_tokens", "diagnostic_count"),
}


def _section(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def too_small(config: Any) -> str | None:
    """Which setting of a Config is below its least value, in its own key, or None."""
    for lowest, table in ((0, NOT_NEGATIVE), (1, AT_LEAST_ONE)):
        for section, names in table.items():
            for name in names:
                value = getattr(_section(config, section), name)
                if value is not None and value < lowest:
                    return f"{section}.{name} must be at least {lowest}; got {value}"
    return None
