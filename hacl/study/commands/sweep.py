"""`steer.py sweep`: settings from text, then the sweep, or what it would ask."""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hacl.compare.behaviour import Layers
from hacl.compare.behaviour_tasks import Tasks
from hacl.compare.forced import Side
from hacl.evaluation.runner.decoding import Decoding
from hacl.evaluation.runner.source import ModelSource, find_model
from hacl.models.identity import versions
from hacl.steering import Steerer, load_steerer
from hacl.steering.commands.extract import layer_keys
from hacl.steering.vectors import read_steering_manifest
from hacl.study.commands.curve import Vocabularies, read_vocabulary
from hacl.study.guards import Guards
from hacl.study.inputs import (
    caption_tasks,
    fitted_images,
    joined,
    pope_tasks,
    prompt_samples,
    seen_images,
    split_tasks,
)  # fmt: skip
from hacl.study.options import GUARDS
from hacl.study.prompt_only import prompt_only
from hacl.study.sweep import RANDOM, full_grid, point_count, sweep, with_random
from hacl.study.sweep_checks import size_of


def run(options: Namespace, open_model: Callable[[Namespace], tuple[Any, Any, str]], vocabularies: Vocabularies) -> int:
    """Sweep, print the table, say where the files are."""
    source = find_model(options.model, base=options.base)
    folders = named_folders(options.steer)
    steerers = {name: load_steerer(folder, model=source.folder) for name, folder in folders.items()}
    tasks, fitted = tasks_of(options, source, folders, vocabularies)
    validation, test = split_tasks(tasks, validation_of(options.validation), options.seed)
    layers = {name: layer_choices(options.layers, steerer) for name, steerer in steerers.items()}
    guards = Guards(**{name: getattr(options, name) for name in GUARDS})
    objective = options.objective or ("CHAIR_i" if tasks.captions else default_split(tasks))
    check_options(options, objective, tasks)
    if options.dry_run:
        print("\n".join(plan_lines(options, steerers, layers, validation, test)))
        return 0
    model, processor, template = open_model(options)
    result = sweep(
        Side(model, processor, template=template), steerers, validation, test, out=options.out, alphas=options.alphas,
        layers=layers, policies=options.policies, objective=objective, guards=guards,
        baselines={"prompt": prompt_only(options.prompt_only)} if options.prompt_only else None, fitted_on=fitted,
        random_draws=options.random_draws, seeds=tuple(range(options.seed, options.seed + options.seeds)),
        decoding=Decoding(options.max_new_tokens, temperature=options.temperature, top_p=options.top_p),
        batch_size=options.batch_size, draws=options.draws, seed=options.seed,
        manifest=manifest_of(options, source, folders),
        notes={"command": shlex.join(["steer.py", *sys.argv[1:]])},
    )  # fmt: skip
    print(result.to_markdown())
    print(f"written: {options.out}")
    return 0


def check_options(options: Namespace, objective: str, tasks: Tasks) -> None:
    """Raise ValueError for what would fail only when the folder belongs to a configuration already."""
    if options.seeds < 1 or (options.seeds > 1 and not options.temperature):
        raise ValueError(f"--seeds {options.seeds}: at least 1, and more than one only with --temperature above 0")
    splits = [*tasks.questions, "all"] if tasks.questions else []
    split = next((name for name in splits if objective.startswith(f"pope_{name}_")), None)
    if objective.startswith("pope_") and split is None:
        known = ", ".join(f"pope_{name}_accuracy" for name in splits) or "none: give --pope"
        raise ValueError(f"--objective {objective}: no such questions are asked; there are {known}")
    if not objective.startswith("pope_") and not tasks.captions:
        raise ValueError(f"--objective {objective}: nothing is captioned; give --records, or a pope_ measure")


def named_folders(entries: list[str]) -> dict[str, Path]:
    """{method: folder} of NAME=FOLDER. Raises ValueError for another form or a name that occurs twice."""
    found: dict[str, Path] = {}
    for entry in entries:
        name, equals, folder = entry.partition("=")
        if not (name and equals and folder):
            raise ValueError(f"--steer {entry}: write NAME=FOLDER, for example l2s=runs/pope_l2s")
        if name in found:
            raise ValueError(f"--steer {name}= was given twice")
        found[name] = Path(folder)
    return found


def tasks_of(
    options: Namespace, source: ModelSource, folders: Mapping[str, Path], vocabularies: Vocabularies
) -> tuple[Tasks, set[str]]:
    """(what is asked, images that vectors were fitted on): the latter are taken out of the former."""
    parts = []
    if options.records is not None:
        beside = options.records.with_name("vocabulary.json")
        words = read_vocabulary(options.vocabulary or (str(beside) if beside.is_file() else "coco"), vocabularies)
        prompt = options.prompt if options.prompt is not None else source.prompt or ""
        parts.append(caption_tasks(options.records, options.images, prompt, words, options.limit))
    if options.pope is not None:
        parts.append(pope_tasks(options.pope, options.images, options.question or "{question}", options.limit))
    if not parts:
        raise ValueError("nothing to ask; give --records, --pope or both")
    outside = prompt_samples(options.outside, options.images) if options.outside else ()
    tasks = joined(parts, outside=outside, max_new_tokens=options.max_new_tokens)
    known = fitted_images(list(folders.values()))
    for name, folder in folders.items():
        if str(folder) not in known and read_steering_manifest(folder)["kind"] != "random":
            print(
                f"{name}: {folder} does not say which images it was fitted on; name them with --fitted-on", flush=True
            )
    names = set().union(*known.values()) | (lines_of(options.fitted_on) if options.fitted_on else set())
    seen = seen_images(tasks, names)
    if seen:
        print(f"{len(seen)} images are left out: vectors were fitted on them", flush=True)
    return tasks.without(seen), seen


def layer_choices(texts: list[str], steerer: Steerer) -> list[Layers]:
    """Choices of a method: its own layers, each of them, or the ones that are named."""
    found: list[Layers] = []
    for text in texts:
        if text == "own":
            found.append(None)
        elif text == "each":
            if not steerer.layers:
                raise ValueError("--layers each: a method with one vector for any layer has no layers; name them")
            found += [(layer,) for layer in steerer.layers]
        else:
            found.append(tuple(layer_keys(text)))
    return list(dict.fromkeys(found))


def default_split(tasks: Tasks) -> str:
    """Accuracy of the hardest split there is."""
    last = next((name for name in ("adversarial", "popular", "random") if name in tasks.questions), None)
    return f"pope_{last or next(iter(tasks.questions))}_accuracy"


def validation_of(text: str) -> float | set[str]:
    """A share, or the ids of a file. Raises ValueError, FileNotFoundError."""
    try:
        share = float(text)
    except ValueError:
        return lines_of(Path(text))
    if not 0 < share < 1:
        raise ValueError(f"--validation {text}: a share between 0 and 1, or a file of image ids")
    return share


def lines_of(path: Path) -> set[str]:
    """The lines of a file of ids."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of image ids")
    return {line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()}


def plan_lines(options: Namespace, steerers, layers, validation: Tasks, test: Tasks) -> list[str]:
    """What a run would ask, without opening a model."""
    methods = with_random(steerers, options.seed)
    grid = full_grid(methods, options.alphas, layers, options.policies)
    count = point_count(len(grid), len(methods), int(bool(options.prompt_only)), options.random_draws)
    lines, total = [], 0
    for split, tasks in (("validation", validation), ("test", test)):
        size = size_of(tasks)
        replies = count[split] * (size["captions"] + size["questions"] + size["outside"]) * options.seeds
        total += replies
        lines.append(
            f"{split}: {count[split]} points on {size['images']} images ({size['captions']} captions, "
            f"{size['questions']} questions, {size['outside']} prompts outside): {replies:,} replies at most"
        )
    added = f" and {RANDOM}" if len(methods) > len(steerers) else ""
    return [
        f"methods: {', '.join(steerers)}{added}; grid of {len(grid)} settings", *lines,
        f"{total:,} replies in all; no model was opened",
    ]  # fmt: skip


def manifest_of(options: Namespace, source: ModelSource, folders: Mapping[str, Path]) -> dict[str, Any]:
    """What the points depend on besides what is asked."""
    made = {
        name: {"folder": str(folder), "sha256": read_steering_manifest(folder)["sha256"]}
        for name, folder in folders.items()
    }
    return {
        "model": source.describe(), "dtype": options.dtype, "artefacts": made, "prompt_only": options.prompt_only,
        "question": options.question, "versions": versions(),
    }  # fmt: skip
