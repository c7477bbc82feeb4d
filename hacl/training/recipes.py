"""Dry runs of the training recipes in `configs/` at full size, without weights, as rows of one table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hacl.config import Config, load_config
from hacl.models.random_llava import Size, llava_config, llava_processor, write_random_llava
from hacl.training import dryrun, run, runtime
from hacl.training.memory import GIB
from hacl.training.minigpt4 import CHAT_TEMPLATE

CAPTIONS, STRICT = "captions", "captions, `strict`"  # the latter is the paper's form, with an image sequence of its own
LONGEST = "longest"  # instead of the records' own texts: as long as data.max_length lets them be
# Samples of an epoch of the data that a recipe names: LLaVA's 558K captions for stage 1 of both LLaVAs (HACL), the 665K
# mix (LLaVA-1.5) and the 158K (LLaVA) for stage 2, and for what this project adds the 558K again.
EPOCH = {
    "llava15_7b/stage2": 665_000, "llava15_7b/stage2_lora": 665_000,
    "llava_v1/stage2": 158_000, "llava_v1/stage2_lora": 158_000,
}  # fmt: skip
SAMPLES = 558_128


def write_llava(pixels: int) -> Callable[[Path, Iterable[str]], Any]:
    """Writer of a LLaVA with Vicuna-7B and CLIP ViT-L/14 for images of so many pixels."""
    return lambda folder, texts: write_random_llava(folder, Size(pixels=pixels), texts, weights=False)


def write_minigpt4(folder: Path, texts: Iterable[str]) -> None:
    """Configuration and processor of a MiniGPT-4 with Vicuna-7B: BLIP-2's tower and Q-Former are the stock defaults."""
    from transformers import Blip2Config, BlipImageProcessor, LlavaProcessor

    size = Size(pixels=224)
    tokenizer = llava_processor(texts, size).tokenizer
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = Blip2Config(text_config=llava_config(size, image).text_config.to_dict(), image_token_index=image)
    config.architectures = ["Blip2ForConditionalGeneration"]
    config.save_pretrained(folder)
    LlavaProcessor(
        image_processor=BlipImageProcessor(size={"height": size.pixels, "width": size.pixels}),
        tokenizer=tokenizer,
        patch_size=size.pixels,
        num_additional_image_tokens=config.num_query_tokens - 1,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)


SHAPES: dict[str, Callable[[Path, Iterable[str]], Any]] = {
    "llava15_7b": write_llava(336),
    "llava_v1": write_llava(224),
    "minigpt4": write_minigpt4,
}


@dataclass(frozen=True)
class Recipe:
    """A YAML file of `configs/` that trains one of the papers' models."""

    path: Path

    @property
    def shape(self) -> str:
        return self.path.parent.name

    @property
    def name(self) -> str:
        return f"{self.shape}/{self.path.stem}"


def find(configs: Path, only: Sequence[str] = ()) -> list[Recipe]:
    """Training recipes of full-size models. Raises ValueError for a name that none of them has."""
    found = [Recipe(path) for shape in SHAPES for path in sorted((configs / shape).glob("*.yaml"))]
    found = [recipe for recipe in found if recipe.path.stem != "base"]
    unknown = [name for name in only if name not in {n for r in found for n in (r.name, r.shape)}]
    if unknown:
        raise ValueError(f"no training recipe {unknown[0]!r}; there are {', '.join(recipe.name for recipe in found)}")
    return [recipe for recipe in found if not only or {recipe.name, recipe.shape} & set(only)]


def plan(
    recipe: Recipe, records: Path, images: Path, folder: Path, *, peak: float, ranks: int = 8
) -> list[dict[str, Any]]:
    """Rows for a recipe, one for each length of texts.

    records: captions with hallucinated captions; folder: for configurations and records that are made; peak: TFLOP/s of
    a GPU; ranks: GPUs over which memory is predicted.
    """
    model = folder / recipe.shape
    if not model.exists():
        SHAPES[recipe.shape](model, records.read_text(encoding="utf-8").splitlines())
    rows = []
    for texts, path, changes in _cases(recipe, records, folder):
        given = [f"model.path={model}", f"data.path={path}", f"data.image_root={images}", *changes]
        config = load_config(recipe.path, given)
        rows.append({"recipe": recipe.name, "texts": texts, **_row(config, recipe, peak, ranks)})
    return rows


def _cases(recipe: Recipe, records: Path, folder: Path) -> list[tuple[str, Path, list[str]]]:
    """(name of the texts, their file, changes of the recipe)"""
    found = [(CAPTIONS, records, [])]
    if recipe.path.stem == "stage1":
        found.append((STRICT, records, ["objective.form=strict"]))
    if recipe.shape != "minigpt4" and recipe.path.stem.startswith("stage2"):
        found.append((LONGEST, _longest(records, folder / "longest.jsonl"), []))
    return found


def _longest(records: Path, path: Path) -> Path:
    """The images of some records with an answer that no limit of length leaves whole."""
    lines = records.read_text(encoding="utf-8").splitlines()[:64]
    if not path.exists():
        answer = " ".join("a photograph of many things" for _ in range(2000))
        turns = [{"from": "human", "value": "<image>\nDescribe the image."}, {"from": "gpt", "value": answer}]
        rows = [
            {"id": str(i), "image": json.loads(line)["image"], "conversations": turns} for i, line in enumerate(lines)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _row(config: Config, recipe: Recipe, peak: float, ranks: int) -> dict[str, Any]:
    inputs = run.read_inputs(config)
    found = dryrun.predict(config, inputs)
    step = dryrun.first_step(config, inputs)
    epoch = EPOCH.get(recipe.name, SAMPLES)
    stages = {
        "none" if stage is None else f"zero{stage}": round(
            dryrun.peak_bytes(config, found, step, stage=stage, ranks=ranks) / GIB + found.queue, 2
        )
        for stage in dryrun.STAGES
    }
    alone = dryrun.hours(config, found, records=epoch, ranks=ranks, tflops=peak, mfu=dryrun.ASSUMED_MFU)
    chosen = runtime.zero_stage(config.train)
    return {
        "parameters": found.total,
        "trained": found.trained,
        "parts": {name: list(counts) for name, counts in found.parameters.items()},
        "samples": found.batch["samples"],
        "tokens": found.batch["tokens"],
        "tflop": round(found.tflops, 2),
        "least_tflop": round(found.minimal_tflops, 2),
        "activations_gib": round(step.activations / GIB, 2),
        "gib_per_rank": stages,
        "configured": "none" if chosen is None else f"zero{chosen}",
        "steps": dryrun.optimizer_steps(config, epoch, ranks),
        "gpu_hours": round(alone * ranks, 2),
    }


def settings(records: Path, peak: float, ranks: int) -> dict[str, Any]:
    """What the rows rest on."""
    import torch
    import transformers

    return {
        "records": records.name,
        "records_sha256": hashlib.sha256(records.read_bytes()).hexdigest()[:16],
        "peak_tflops": peak,
        "assumed_mfu": dryrun.ASSUMED_MFU,
        "ranks": ranks,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| recipe | texts | parameters, trained | samples | TFLOP per micro-batch, at least | GiB per rank: none, "
        "ZeRO-1, 2, 3 | steps | GPU-hours |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        memory = row["gib_per_rank"]
        cells = [
            f"{memory[name]:.1f}" if name != row["configured"] else f"**{memory[name]:.1f}**"
            for name in ("none", "zero1", "zero2", "zero3")
        ]
        lines.append(
            f"| `{row['recipe']}` | {row['texts']} | {row['parameters'] / 1e9:.2f} G, {_short(row['trained'])} | "
            f"{row['samples']} | {row['tflop']:.4g}, {row['least_tflop']:.4g} | {', '.join(cells)} | "
            f"{row['steps']:,} | {row['gpu_hours']:.3g} |"
        )
    return "\n".join(lines)


def _short(count: int) -> str:
    return f"{count / 1e9:.2f} G" if count >= 1e9 else f"{count / 1e6:.2f} M"
