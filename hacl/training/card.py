"""The model card of an exported checkpoint: data, settings and metrics, from the manifest and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hacl.config import Config
from hacl.plain_text import markdown, markdown_row


def model_card(config: Config, manifest: dict, metrics: dict[str, Any]) -> str:
    """Markdown with the front matter that model hubs read. Paths are shortened to their last parts."""
    base = Path(config.model.path).name if Path(config.model.path).is_absolute() else config.model.path
    revision = f"@{config.model.revision}" if config.model.revision else ""
    rates = vars(config.model.learning_rate)
    trained = ", ".join(f"{name} ({rate:g})" for name, rate in rates.items() if rate > 0)
    rows = [
        ("Base model", f"{base}{revision} (weights {manifest['base']['fingerprint']})"),
        ("Preset", config.model.preset),
        ("Trained modules (learning rate)", trained),
        ("LoRA", f"rank {config.model.lora.rank}, merged" if config.model.lora.rank else "none"),
        ("Records", ", ".join(Path(p).name for p in config.data.path) + f" (fingerprint {manifest['data']})"),
        ("Hallucinated captions per image", str(config.objective.num_hallucinated)),
        ("Loss", _losses(config)),
        ("Pooling", f"image {config.objective.image_pool}, text {config.objective.text_pool}, layer {_layer(config)}"),
        ("Contrastive batch", f"{config.train.contrastive_batch_size * manifest['ranks']} samples"),
        ("Steps", str(manifest["step"])),
        ("Seed", str(config.train.seed)),
        ("Versions", ", ".join(f"{name} {value}" for name, value in manifest["versions"].items())),
    ]
    numbers = [(name, value) for name, value in sorted(metrics.items()) if isinstance(value, (int, float))]
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: image-text-to-text",
        "tags: [hacl, contrastive-fine-tuning, hallucination]",
        "---",
        "",
        f"# {markdown(base)}, fine-tuned with hallucination-augmented contrastive learning",
        "",
        "Fine-tuned with HACL (Jiang et al., CVPR 2024, arXiv 2312.06968). It opens with stock `transformers`:",
        "",
        "```python",
        "from transformers import AutoModelForImageTextToText, AutoProcessor",
        "",
        'model = AutoModelForImageTextToText.from_pretrained("FOLDER")',
        'processor = AutoProcessor.from_pretrained("FOLDER")',
        "```",
        "",
        "The contrastive heads and the temperature are in `hacl/heads.safetensors`; generation does not need them.",
        "",
        "## Training",
        "",
        "| setting | value |",
        "| --- | --- |",
        *map(markdown_row, rows),
        "",
        "The complete configuration is in `hacl/config.json`.",
        "",
        "## Metrics",
        "",
    ]
    if numbers:
        lines += [
            "| metric | value |",
            "| --- | --- |",
            *(markdown_row((name, f"{value:.6g}")) for name, value in numbers),
        ]
    else:
        lines.append("None were recorded for this run.")
    lines += ["", "## Limits", "", "Hallucination was not necessarily reduced: compare with a control before use.", ""]
    return "\n".join(lines)


def _losses(config: Config) -> str:
    objective = config.objective
    parts = {
        "generation": objective.lm_weight,
        "contrastive": objective.contrastive_weight,
        "likelihood margin": objective.likelihood_margin_weight,
        "text margin": objective.text_margin_weight,
        "text-to-image hard negatives": objective.t2i_hard_weight,
    }
    return " + ".join(f"{weight:g} x {name}" for name, weight in parts.items() if weight)


def _layer(config: Config) -> str:
    return "after the final norm" if config.objective.layer is None else str(config.objective.layer)
