"""Train a pocket base once and keep it: tower, then language model on text, then both on images.

A base is a folder that stock classes open, with `base.json` beside the weights (settings, losses, seconds). The
folder's name holds a hash of the settings, so another recipe never finds it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from hacl.models.pocket import TOWER, pocket_model, pocket_processor
from hacl.pocket.scenes import sample_scene

RECIPE = 1  # raised whenever the world or the training of a base changes without a setting changing


@dataclass(frozen=True)
class BaseSettings:
    """seed: of weights, scenes and order; scenes: drawn scenes of the train split; steps of the three phases."""

    seed: int = 0
    scenes: int = 12000
    tower_steps: int = 600
    text_steps: int = 100
    align_steps: int = 100
    image_steps: int = 900
    tower_batch: int = 64
    batch_size: int = 32
    tower_learning_rate: float = 3e-3
    tower: str = TOWER

    def name(self) -> str:
        text = json.dumps([RECIPE, dataclasses.asdict(self)], sort_keys=True)
        return f"base-{self.seed}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def parse_settings(items: Sequence[str]) -> dict[str, int]:
    """Whole-number settings of a base from ``KEY=N`` words, e.g. ``tower_steps=130``.

    Raises:
        ValueError: an unknown key, or a value that is no positive whole number.
    """
    known = [each.name for each in dataclasses.fields(BaseSettings) if each.type == "int" and each.name != "seed"]
    found = {}
    for item in items:
        key, _, value = item.partition("=")
        if key not in known:
            raise ValueError(f"{item!r}: no such setting of a base; use {', '.join(known)}")
        if not value.isdecimal() or int(value) == 0:
            raise ValueError(f"{item!r}: give {key} a positive whole number")
        found[key] = int(value)
    return found


def find_or_make_base(cache: Path | str, settings: BaseSettings, *, report: Callable[[str], None] = print) -> Path:
    """The folder of the base with these settings under ``cache``, trained now if it is not there."""
    folder = Path(cache) / settings.name()
    if (folder / "base.json").is_file():
        return folder
    report(f"training base {settings.seed}: about {settings.image_steps * settings.batch_size:,} image dialogues")
    model, record = train_base(settings, report=report)
    # Written aside and moved in one step: a killed run leaves no half base behind.
    aside = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    model.save_pretrained(aside)
    pocket_processor().save_pretrained(aside)
    (aside / "base.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(aside, folder)
    return folder


def find_or_make_bases(cache: Path | str, settings: Sequence[BaseSettings], *, workers: int) -> list[Path]:
    """Folders of several bases; those that are missing are trained side by side, one thread each."""
    missing = [each for each in settings if not (Path(cache) / each.name() / "base.json").is_file()]
    if len(missing) > 1 and workers > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
            list(pool.map(partial(_make_quietly, cache), missing))
    return [find_or_make_base(cache, each) for each in settings]


def _make_quietly(cache: Path | str, settings: BaseSettings) -> None:
    def report(line: str) -> None:
        if "300/" in line or "training base" in line:
            print(f"[base {settings.seed}] {line}", flush=True)

    find_or_make_base(cache, settings, report=report)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def train_base(settings: BaseSettings, *, report: Callable[[str], None] = print):
    """Returns the trained model (eval mode, fp32) and what `base.json` records."""
    from hacl.models.adapters import find_adapter
    from hacl.pocket.pretrain import (
        DialogueEncoder,
        Phase,
        align_projector,
        image_dialogues,
        text_dialogues,
        train_language,
    )
    from hacl.pocket.tower import pretrain_tower, tower_features

    seconds, start = {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal start
        seconds[name], start = round(time.perf_counter() - start, 1), time.perf_counter()

    scenes = [sample_scene("train", index, settings.seed) for index in range(settings.scenes)]
    weights = pretrain_tower(
        scenes,
        seed=settings.seed,
        steps=settings.tower_steps,
        batch_size=settings.tower_batch,
        learning_rate=settings.tower_learning_rate,
        report=report,
    )
    model = pocket_model(settings.seed)
    adapter = find_adapter(model)
    adapter.vision_tower.timm_model.load_state_dict(weights)
    lap("tower")
    features = tower_features(model, scenes)
    vocabulary = pocket_processor().tokenizer.get_vocab()
    encoder = DialogueEncoder(vocabulary)
    fit: list[float] = []
    losses = train_language(
        model,
        [
            Phase("text", settings.text_steps, text_dialogues(encoder, settings.seed)),
            Phase(
                "align",
                settings.align_steps,
                image_dialogues(encoder, scenes, settings.seed, read_outs=0.75, asked=0.1, text=0.05),
            ),
            Phase(
                "image",
                settings.image_steps,
                image_dialogues(encoder, scenes, settings.seed, read_outs=0.05, asked=0.4, text=0.2),
            ),
        ],
        features=features,
        batch_size=settings.batch_size,
        before={
            "align": lambda: fit.append(
                align_projector(adapter, features[:1500], scenes[:1500], vocabulary, settings.seed)
            )
        },
        report=report,
    )
    lap("language")
    record = {
        "settings": dataclasses.asdict(settings),
        "recipe": RECIPE,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "losses": losses,
        "projector_fit": fit[0],
        "seconds": seconds,
    }
    return model, record
