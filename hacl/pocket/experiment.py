"""Run the arms of a pocket experiment: tune one base by one configuration with one seed, measure it, keep the result.

Every unit of work is a folder with `result.json`; what is there is not done again, so that a long run can be stopped
and continued. Units run in separate processes, one thread each.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from hacl.pocket.evaluate import Sizes

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "pocket"
TRAIN_START = 50_000  # tuning scenes begin behind the scenes that any base was trained on
TUNING_TYPES = ("object", "insertion")  # the adversarial hallucinated captions; the other types are only measured


@dataclass(frozen=True)
class World:
    """Files of tuning and test scenes, one folder per experiment."""

    root: Path
    tuning: int
    test: int
    splits: tuple[str, ...]
    seed: int

    def prepare(self) -> None:
        """Draw what is missing."""
        from hacl.pocket.build import build_split

        if not (self.root / "train.jsonl").is_file():
            build_split(
                self.root,
                "train",
                self.tuning,
                seed=self.seed,
                start=TRAIN_START,
                types=TUNING_TYPES,
                question_share=0.25,
            )
        for split in self.splits:
            if not (self.root / f"{split}.jsonl").is_file():
                build_split(self.root, split, self.test, seed=self.seed)


@dataclass(frozen=True)
class Unit:
    """One run: ``arm`` names a file of configs/pocket; ``base`` is a base's number, ``base_folder`` where it is;
    ``tuning`` names the world's file of tuning scenes, without its ending."""

    arm: str
    base: int
    seed: int
    base_folder: Path
    folder: Path
    world: World
    sizes: Sizes
    overrides: tuple[str, ...] = ()
    tuning: str = "train"

    def key(self) -> dict[str, Any]:
        """What a finished result must agree with to be used again."""
        config = CONFIGS / f"{self.arm}.yaml"
        other = {"tuning_file": self.tuning} if self.tuning != "train" else {}
        return other | {
            "arm": self.arm,
            "base": self.base,
            "seed": self.seed,
            "base_folder": self.base_folder.name,
            "config": config.read_text(encoding="utf-8") + (CONFIGS / "base.yaml").read_text(encoding="utf-8")
            if self.arm != UNTUNED
            else "",
            "overrides": list(self.overrides),
            "tuning": self.world.tuning,
            "test": self.world.test,
            "splits": list(self.world.splits),
            "world_seed": self.world.seed,
            "sizes": asdict(self.sizes),
        }

    def finished(self) -> dict[str, Any] | None:
        path = self.folder / "result.json"
        if not path.is_file():
            return None
        result = json.loads(path.read_text(encoding="utf-8"))
        return result if result.get("key") == self.key() else None  # training leaves one without a key


UNTUNED = "base"


def run_unit(unit: Unit) -> dict[str, Any]:
    """Tune (or, for the arm ``base``, do not) and measure; writes and returns the result."""
    import torch

    done = unit.finished()
    if done is not None:
        return done
    torch.set_num_threads(1)
    from hacl.data.records import read_records
    from hacl.pocket.evaluate import evaluate

    start_folder(unit)
    start = time.perf_counter()
    model, processor = tune(unit)
    tuned = time.perf_counter()
    counts_from = {r.image_id: r.objects for r in read_records(unit.world.root / "train.jsonl")}
    metrics, items, captions = {}, {}, {}
    states = {}
    for split in unit.world.splits:
        records = read_records(unit.world.root / f"{split}.jsonl")
        found = evaluate(model, processor, records, unit.world.root, counts_from=counts_from, sizes=unit.sizes)
        metrics[split], items[split] = found.metrics, found.items
        captions[split] = found.captions[:24]
        states[split] = found.states
    _save_states(unit.folder / "states.safetensors", states)
    result = {
        "key": unit.key(),
        "arm": unit.arm,
        "base": unit.base,
        "seed": unit.seed,
        "metrics": metrics,
        "items": items,
        "captions": captions,
        "log_path": str(unit.folder / "metrics.jsonl") if unit.arm != UNTUNED else None,
        "seconds": round(tuned - start, 1),
        "seconds_measuring": round(time.perf_counter() - tuned, 1),
    }
    keep_result(unit, result)
    return result


def start_folder(unit: Unit) -> None:
    """An empty folder for a run that was not done, or not finished."""
    shutil.rmtree(unit.folder, ignore_errors=True)
    unit.folder.mkdir(parents=True)


def keep_result(unit: Unit, result: dict[str, Any]) -> None:
    """Write the result in one step: its presence says that the run is finished."""
    temporary = unit.folder / "result.tmp"
    temporary.write_text(json.dumps(result), encoding="utf-8")
    os.replace(temporary, unit.folder / "result.json")


def config_of(unit: Unit):
    """The training configuration of a run."""
    from hacl.config import load_config

    return load_config(
        CONFIGS / f"{unit.arm}.yaml",
        [
            f"model.path={unit.base_folder}",
            f"data.path=[{unit.world.root / f'{unit.tuning}.jsonl'}]",
            f"data.seed={unit.seed}",
            f"train.seed={unit.seed}",
            f"train.output_dir={unit.folder}",
            f"train.cache_dir={unit.world.root / 'cache'}",
            *unit.overrides,
        ],
    )


def tune(unit: Unit):
    """(model, processor) after training, or of the base for the arm ``base``."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(unit.base_folder)
    if unit.arm == UNTUNED:
        return AutoModelForImageTextToText.from_pretrained(unit.base_folder, use_safetensors=True).eval(), processor
    from hacl.training.export import load_finetuned
    from hacl.training.run import run

    with (unit.folder / "train.log").open("w", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        result = run(config_of(unit))
    model, _ = load_finetuned(result.checkpoint)
    return model, processor


def store_features(unit: Unit) -> None:
    """Compute the tower's features of the tuning scenes, so that runs in several processes all find them."""
    from hacl.training.run import build_trainer

    build_trainer(config_of(unit))


def _save_states(path: Path, states: dict) -> None:
    """Image, true and hallucinated states per split, for the picture."""
    import torch
    from safetensors.torch import save_file

    tensors = {
        f"{split}/{name}": torch.from_numpy(getattr(found, name)).float().contiguous()
        for split, found in states.items()
        if found is not None
        for name in ("image", "true", "hallucinated")
    }
    save_file(tensors, path)


def run_units(
    units: Sequence[Unit],
    *,
    workers: int,
    run: Callable[[Unit], dict[str, Any]] = run_unit,
    prepare: Callable[[Unit], None] | None = store_features,
) -> list[dict[str, Any]]:
    """Results in the order of ``units``. Raises RuntimeError naming the unit that failed; finished ones are kept.

    run: what does one unit and keeps its result; a module's function, since other processes look it up by name.
    prepare: called once for every base that is tuned, before any unit runs.
    """
    from tqdm import tqdm

    results: dict[int, dict[str, Any]] = {}
    waiting: list[int] = []
    for index, unit in enumerate(units):
        done = unit.finished()
        if done is None:
            waiting.append(index)
        else:
            results[index] = done
    if results:
        print(f"{len(results)} of {len(units)} runs are already there")
    for base in dict.fromkeys(units[index].base for index in waiting if prepare is not None):
        tuned = [units[i] for i in waiting if units[i].base == base and units[i].arm != UNTUNED]
        if tuned:
            prepare(tuned[0])
    with tqdm(total=len(units), initial=len(results), desc="runs", unit="run") as bar:
        if workers <= 1:
            for index in waiting:
                results[index] = run(units[index])
                bar.update()
        else:
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
                futures = {pool.submit(run, units[index]): index for index in waiting}
                for future in as_completed(futures):
                    unit = units[futures[future]]
                    try:
                        results[futures[future]] = future.result()
                    except Exception as error:
                        pool.shutdown(cancel_futures=True)
                        raise RuntimeError(f"arm {unit.arm}, base {unit.base}, seed {unit.seed}: {error}") from error
                    bar.update()
    return [results[index] for index in range(len(units))]


def _one_thread() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TQDM_DISABLE"] = "1"
